"""Picture sets: where they come from (`sources`), how they become batches (`loader`,
and `prior` for two sets at once).

`SOURCES` names the ones with random access; `seqio_tasks` holds the streams. TensorFlow is imported
only by `tfds_source`, `tfds_emoji` and `seqio_tasks`, and only when they are used.
"""

from imagen_jax.data.loader import Loader
from imagen_jax.data.prior import PriorLoader
from imagen_jax.data.sources import ArraySource, BrokenExample, Source, read_folder, read_npz
from imagen_jax.data.tfds_source import read_tfds

# Each is called as read(path, split=..., conditioning=...).
SOURCES = {"npz": read_npz, "folder": read_folder, "tfds": read_tfds}

__all__ = [
    "SOURCES",
    "ArraySource",
    "BrokenExample",
    "Loader",
    "PriorLoader",
    "Source",
    "read_folder",
    "read_npz",
    "read_tfds",
]

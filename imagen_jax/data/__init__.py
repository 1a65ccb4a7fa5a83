"""Image sets: where they come from (`sources`, `folder`) and how they become batches (`loader`).

`SOURCES` names the ones with random access; `seqio_tasks` holds the streams. `image_files` finds
the images of a folder, `classes` says what label numbers stand for. Large sets lie in
shards: `shards` finds them, `index` notes where their examples are (`tar_index`, `records`),
`shard_sources` reads them, `filters` chooses among them, `fields` parses what they say. `icons` is
an image set that we make: out of `icon_sets`, with `unicode_names` and `icon_captions`, by
`icon_drawing`, into `icon_files`. TensorFlow is imported only by `tfds_source`, `tfds_icons` and
`seqio_tasks`, and only when they are used.
"""

from imagen_jax.data.folder import read_folder
from imagen_jax.data.loader import Loader, PriorLoader
from imagen_jax.data.shard_sources import read_array_record, read_tar, read_tfrecord
from imagen_jax.data.sources import (
    ArraySource,
    BrokenExample,
    MixtureSource,
    Source,
    read_npz,
)
from imagen_jax.data.tfds_source import read_tfds

# Each is called as read(path, split=..., conditioning=...).
SOURCES = {
    "npz": read_npz,
    "folder": read_folder,
    "tar": read_tar,
    "array_record": read_array_record,
    "tfrecord": read_tfrecord,
    "tfds": read_tfds,
}

__all__ = [
    "SOURCES",
    "ArraySource",
    "BrokenExample",
    "Loader",
    "MixtureSource",
    "PriorLoader",
    "Source",
    "read_array_record",
    "read_folder",
    "read_npz",
    "read_tar",
    "read_tfds",
    "read_tfrecord",
]

"""Any TensorFlow Datasets name, read by random access. Imports TensorFlow when it is called."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.fields import to_captions
from imagen_jax.data.sources import CONDITIONINGS, broken_as, check_choice, make_example
from imagen_jax.images import decoding, pixels
from imagen_jax.storage.folders import user_path


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """The records of a prepared TFDS split."""

    records: Any
    name: str
    image: str  # names of features; None: not read
    text: str | None
    label: str | None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = f"{self.name}[{index}]"
        with broken_as(key):
            record = self.records[index]
            return make_example(
                key,
                image=_rgb(record[self.image]),
                captions=to_captions(record[self.text], self.text) if self.text else None,
                label=int(record[self.label]) if self.label else None,
            )


def _rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] of an image as TFDS decodes it, with 1 to 4 channels."""
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or not 1 <= image.shape[-1] <= 4:
        raise ValueError(
            f"its image is {image.dtype} {list(image.shape)}; it must be uint8 or uint16 "
            "[height, width, 1 to 4]"
        )
    return decoding.to_rgb(pixels.to_pil(image))


def read_tfds(
    path: str,
    split: str = "train",
    conditioning: str | None = "label",
    data_dir: str | Path | None = None,
    image: str = "image",
    text: str = "captions",
    label: str = "label",
) -> TfdsSource:
    """A TFDS data set such as "cifar10", as ArrayRecord, the format with random access.

    Downloads and prepares it in data_dir (or ~/tensorflow_datasets/array_record) when it is not
    there; a set that is there in another format is an error. `split` is a TFDS split; "heldout" is
    the builder's "heldout" or "test". `image`, `text` and `label` name features.
    """
    check_choice("conditioning", conditioning, CONDITIONINGS)
    builder = prepare_tfds(path, data_dir)
    if split == "heldout" and split not in builder.info.splits:
        split = "test"
    text = text if conditioning == "text" else None
    label = label if conditioning == "label" else None
    if missing := {image, text, label} - {None, *builder.info.features}:
        raise ValueError(
            f"{path} has no feature {', '.join(sorted(missing))}; it has "
            f"{', '.join(builder.info.features)}"
        )
    names = _class_names(builder.info.features[label]) if label else ()
    return TfdsSource(builder.as_data_source(split), path, image, text, label, names)


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel; none where it makes them up of the numbers, or for other features
    of whole numbers.
    """
    names = tuple(getattr(feature, "names", None) or ())
    return () if names == tuple(map(str, range(len(names)))) else names


def prepare_tfds(path: str, data_dir: str | Path | None = None) -> Any:
    """The builder of a TFDS data set whose records can be read by random access."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError("TFDS data needs TensorFlow: pip install 'imagen_jax[tfds]'") from error
    if path == "icons":
        from imagen_jax.data import tfds_icons  # noqa: F401  (registers the builder)
    folder = user_path(data_dir or "~/tensorflow_datasets/array_record")
    builder = tfds.builder(path, data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder

"""The TFDS builder `icons`: `tfds.load("icons")` once this module is imported. Needs TensorFlow.

It takes the images from data/icons/icons64.npz, which imagen-jax prepare_icons makes, or from
another such file: `tfds.load("icons", builder_kwargs={"file": ...})`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from imagen_jax.data import icons
from imagen_jax.data.sources import read_arrays

FILE = Path("data/icons/icons64.npz")
TEXTS = ("key", "style", "name", "family", "name_en", "name_zh")


class Icons(tfds.core.GeneratorBasedBuilder):
    """Icons in seven styles, with names and keywords in English and Chinese."""

    name = "icons"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Seven sets of icons, named by Unicode and the CLDR."}  # noqa: RUF012

    def __init__(self, *, file: str | Path | None = None, **options: Any):
        self.file = Path(FILE if file is None else file)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        caption = {"text": tfds.features.Text(), "weight": tfds.features.Scalar(np.float32)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.Scalar(np.int64),
                    **{name: tfds.features.Text() for name in TEXTS},
                    "variant": tfds.features.Scalar(np.bool_),
                    "weight": tfds.features.Scalar(np.float32),
                    "captions": tfds.features.Sequence(caption),
                }
            ),
            description=self.__doc__,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        arrays = read_arrays(self.file)
        return {split: self._generate_examples(arrays, split) for split in icons.SPLITS}

    def _generate_examples(self, arrays: dict[str, np.ndarray], split: str):
        captions = json.loads(arrays["captions"].tobytes())
        for row in np.flatnonzero(arrays["split"] == split):
            yield (
                str(arrays["key"][row]),
                {
                    "image": arrays["image"][row],
                    "label": int(arrays["label"][row]),
                    "variant": bool(arrays["variant"][row]),
                    "weight": arrays["weight"][row],
                    "captions": [
                        {"text": text, "weight": weight} for text, weight in captions[row]
                    ],
                    **{name: str(arrays[name][row]) for name in TEXTS},
                },
            )

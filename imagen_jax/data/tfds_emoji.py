"""The TFDS builder `emoji`: `tfds.load("emoji")` once this module is imported. Needs TensorFlow."""

import json

import numpy as np
import tensorflow_datasets as tfds

from imagen_jax.data import emoji

TEXTS = ("key", "name_en", "name_zh", "group")


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Colour emoji of the installed font, with names and keywords in English and Chinese."""

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Unicode 15.0, Noto Color Emoji, CLDR 42."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        caption = {"text": tfds.features.Text(), "weight": tfds.features.Scalar(np.float32)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(emoji.IMAGE_SIZE, emoji.IMAGE_SIZE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.Scalar(np.int64),
                    **{name: tfds.features.Text() for name in TEXTS},
                    "variant": tfds.features.Scalar(np.bool_),
                    "captions": tfds.features.Sequence(caption),
                }
            ),
            description=self.__doc__,
            homepage="https://www.unicode.org/emoji/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        _, arrays = emoji.build()
        return {split: self._generate_examples(arrays, split) for split in ("train", "heldout")}

    def _generate_examples(self, arrays, split: str):
        captions = json.loads(arrays["captions"].tobytes())
        for row, pairs in enumerate(captions):
            if arrays["split"][row] == split:
                yield (
                    str(arrays["key"][row]),
                    {
                        "image": arrays["image"][row],
                        "label": int(arrays["label"][row]),
                        "variant": bool(arrays["variant"][row]),
                        "captions": [{"text": text, "weight": weight} for text, weight in pairs],
                        **{name: str(arrays[name][row]) for name in TEXTS},
                    },
                )

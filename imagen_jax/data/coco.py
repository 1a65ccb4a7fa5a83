"""The captions of COCO's val2014, out of its annotation file or TensorFlow Datasets."""

from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.data.sources import drawn
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse
from imagen_jax.storage.wrong_files import refusal

VAL2014_IMAGES = 40_504
# TFDS has Karpathy's splits: val2014 is these three together, not just "val".
TFDS_NAME, TFDS_SPLITS = "coco_captions", "restval+val+test"
ANNOTATIONS = (
    "captions_val2014.json is in annotations_trainval2014.zip, from https://cocodataset.org "
    "(2014 Train/Val annotations)"
)

FORM = '{"annotations": [{"id", "image_id", "caption"}, ...]}'


class Caption(NamedTuple):
    """One of the about five captions of an image; `id` is its own, `image_id` the image's."""

    id: int
    image_id: int
    text: str


def read_annotations(path: str | Path) -> list[Caption]:
    """All captions of captions_val2014.json, in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file; the message tells where it comes from.
        ValueError: it is another file, or two captions have one id.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; {ANNOTATIONS}.")
    try:
        rows = parse(path.read_bytes())["annotations"]
        captions = [
            Caption(int(row["id"]), int(row["image_id"]), str(row["caption"]).strip())
            for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it must hold {FORM} ({error!r})"
        raise ValueError(refusal(path, "COCO's caption file", reason, ("text",))) from None
    return _sorted(captions, str(path))


def read_tfds_captions(data_dir: str | Path | None = None) -> list[Caption]:
    """The same captions from TFDS's coco_captions, all three splits; downloads it if need be."""
    from imagen_jax.data.tfds_source import prepare_tfds

    return captions_of_records(prepare_tfds(TFDS_NAME, data_dir).as_data_source(TFDS_SPLITS))


def captions_of_records(records: Any) -> list[Caption]:
    """The captions of TFDS records {"image/id", "captions": {"id": [...], "text": [...]}}."""
    captions = []
    for record in records:
        ids, texts = record["captions"]["id"], record["captions"]["text"]
        for number, text in zip(ids, texts, strict=True):
            text = text.decode() if isinstance(text, bytes) else str(text)
            captions.append(Caption(int(number), int(record["image/id"]), text.strip()))
    return _sorted(captions, TFDS_NAME)


def sample(captions: list[Caption], count: int, seed: int) -> list[Caption]:
    """`count` captions without repeats, in the order of a hash of the seed and their id.

    The same on every machine and with every version of every library; more captions are the same
    ones and others.
    """
    if not 1 <= count <= len(captions):
        raise ValueError(f"Cannot sample {count} of {len(captions)} captions.")
    return drawn(captions, lambda caption: f"{seed} {caption.id}")[:count]


def _sorted(captions: list[Caption], name: str) -> list[Caption]:
    if len({caption.id for caption in captions}) != len(captions):
        raise ValueError(f"{name} has two captions with one id.")
    return sorted(captions)

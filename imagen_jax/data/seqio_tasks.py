"""seqio Tasks and Mixtures as a stream of batches. Needs TensorFlow and seqio.

A Task has the features `image` (the bytes of a PNG, JPEG, GIF or BMP file, a scalar string) and, by
what the model is conditioned on, `text` (token ids, ended by EOS) or `label` (a scalar int32).
seqio shuffles what a Task gives, so bytes make its buffer small; images are decoded, resized and
cropped after all shuffling and mixing. A Task may also give images as uint8 [H, W, 3].

The Tasks here are functions that register one; a module that calls them is what `data.module` of
a config names:

    vocabulary = seqio.SentencePieceVocabulary("spiece.model")
    seqio_tasks.add_coco_task("coco", vocabulary)
    seqio_tasks.add_icons_task("icons", vocabulary)
    seqio.MixtureRegistry.add("both", [("coco", 3.0), ("icons", 1.0)])  # their rates

What a stream cannot promise: batch N is not a function of N, so a resumed run must restore the
iterator. Its state goes into the checkpoint; where that is not possible (another number of hosts, a
shuffle buffer too large to keep) the stream is replayed from the start, which is exact on the same
number of hosts, but slow. On another number of hosts the batches are others.
"""

import base64
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from imagen_jax.data.counts import Damage
from imagen_jax.data.loader import CROPS, FOREVER
from imagen_jax.data.sources import CONDITIONINGS, BrokenExample, check_choice
from imagen_jax.storage.folders import expand_home

MAX_STATE_BYTES = 2**26
SHUFFLE_BUFFER = 1000


# ------------------------------------------------------------------------------ preprocessors


@seqio.utils.map_over_dataset(num_seeds=1)
def choose_caption(example: dict[str, Any], seed: Any) -> dict[str, Any]:
    """Picks `text` from `captions` {text, weight} by the weights, evenly where there are none."""
    captions = example["captions"]
    weights = captions.get("weight", tf.ones(tf.shape(captions["text"])))
    index = tf.random.stateless_categorical(tf.math.log(weights)[None], 1, seed)[0, 0]
    return {"image": example["image"], "text": captions["text"][index]}


@seqio.map_over_dataset
def keep_label(example: dict[str, Any]) -> dict[str, Any]:
    """Only the image and its class number."""
    return {"image": example["image"], "label": tf.cast(example["label"], tf.int32)}


# --------------------------------------------------------------------------------------- tasks

PIXELS = seqio.PassThroughVocabulary(size=256)
IMAGE = {"image": seqio.Feature(PIXELS, add_eos=False, rank=0, dtype=tf.string)}


def text_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The features of a text-conditioned Task."""
    return IMAGE | {"text": seqio.Feature(vocabulary, add_eos=True)}


def label_features() -> dict[str, seqio.Feature]:
    """The features of a label-conditioned Task."""
    return IMAGE | {"label": seqio.Feature(PIXELS, add_eos=False, rank=0, dtype=tf.int32)}


def _add_task(
    name: str,
    builder: str,
    splits: Mapping[str, str],
    data_dir: str | Path | None,
    vocabulary: seqio.Vocabulary | None,
) -> seqio.Task:
    """Registers a TFDS set as a Task, of labels where there is no vocabulary; downloads and
    prepares it where it is not there.
    """
    data_dir = None if data_dir is None else str(expand_home(data_dir))
    captioned = [
        choose_caption,
        functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
        seqio.preprocessors.append_eos_after_trim,
    ]
    tfds.builder(builder, data_dir=data_dir).download_and_prepare()
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(
            builder,
            tfds_data_dir=data_dir,
            splits=splits,
            decoders={"image": tfds.decode.SkipDecoding()},
        ),
        preprocessors=[keep_label] if vocabulary is None else captioned,
        output_features=label_features() if vocabulary is None else text_features(vocabulary),
        shuffle_buffer_size=SHUFFLE_BUFFER,
    )


def add_icons_task(
    name: str, vocabulary: seqio.Vocabulary, data_dir: str | Path | None = None
) -> seqio.Task:
    """Registers the icons as a seqio Task under a name, with splits train, pair and validation.

    Prepares them in data_dir (or ~/tensorflow_datasets) out of data/icons/icons64.npz when they are
    not there; seqio reads TFRecord.
    """
    from imagen_jax.data import tfds_icons  # noqa: F401  (registers the builder)

    splits = {"train": "train", "pair": "pair", "validation": "heldout"}
    return _add_task(name, "icons:1.0.0", splits, data_dir, vocabulary)


def add_coco_task(
    name: str,
    vocabulary: seqio.Vocabulary,
    data_dir: str | Path | None = None,
    builder: str = "coco_captions:1.1.0",
) -> seqio.Task:
    """Registers COCO with its captions; each time an image comes, one of its five is picked.

    Its splits are Karpathy's (arXiv 1412.2306): train is his train and restval together, 113,287
    images; validation and test have 5,000 each. Downloads 19 GB where it is not there.
    """
    splits = {"train": "train+restval", "validation": "val", "test": "test"}
    return _add_task(name, builder, splits, data_dir, vocabulary)


def add_cifar_task(
    name: str, data_dir: str | Path | None = None, builder: str = "cifar10:3.0.2"
) -> seqio.Task:
    """Registers CIFAR-10 with its ten labels; splits train and test."""
    return _add_task(name, builder, {"train": "train", "test": "test"}, data_dir, None)


class ImageFeatureConverter(seqio.FeatureConverter):
    """Task features to the batch's: image, and padded `ids` with their `mask`, or `label`."""

    def __init__(self, conditioning: str | None = "text"):
        spec = seqio.FeatureConverter.FeatureSpec
        image = {"image": spec(dtype=tf.uint8, rank=3)}
        label = {"label": spec(dtype=tf.int32, rank=0)}
        self.TASK_FEATURES, self.MODEL_FEATURES = {
            "text": (
                image | {"text": spec(dtype=tf.int32)},
                image | {"ids": spec(dtype=tf.int32), "mask": spec(dtype=tf.bool)},
            ),
            "label": (image | label, image | label),
            None: (image, image),
        }[conditioning]
        super().__init__(pack=False)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]):
        def convert(example: dict[str, Any]) -> dict[str, Any]:
            features = {name: example[name] for name in self.TASK_FEATURES}
            if "text" in features:
                length = task_feature_lengths["text"]
                ids = features.pop("text")[:length]
                mask = tf.sequence_mask(tf.size(ids), length)
                ids = tf.pad(ids, [[0, length - tf.size(ids)]])
                features |= {"ids": tf.ensure_shape(ids, [length]), "mask": mask}
            return features

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]):
        """seqio's hook: the length of each feature of the model."""
        text = task_feature_lengths.get("text")
        return {name: task_feature_lengths.get(name, text) for name in self.MODEL_FEATURES}


# -------------------------------------------------------------------------------------- stream


def _resized(image: Any, resolution: int, whole: bool) -> Any:
    """The shorter side at `resolution`, antialiased as in `images.pixels`: the largest centred
    square of it, or with `whole` all of it.
    """
    side = tf.reduce_min(tf.shape(image)[:2])
    size = tf.fill([2], resolution)
    if whole:
        size = tf.cast(tf.round(tf.shape(image)[:2] * resolution / side), tf.int32)
    else:
        image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.cond(
        side % resolution == 0,
        lambda: tf.image.resize(image, size, "area"),
        lambda: tf.image.resize(image, size, "lanczos3", antialias=True),
    )
    return tf.saturate_cast(tf.round(image), tf.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamLoader:
    """Batches of a seqio Task or Mixture: `batches(start, state)`; each host reads its own shard.

    Args:
      task: a registered name, or the Task or Mixture itself.
      batch_size: examples of the whole batch, on all processes together.
      crop, crop_size: as of `Loader`; where a random crop lies depends on the example's place in
        the stream.
      length: tokens of a text, end mark included (for text).
      vocab_size: ids that the text encoder knows; None is not compared.
    """

    task: Any
    batch_size: int
    resolution: int
    length: int = 128
    vocab_size: int | None = None
    seed: int = 0
    split: str = "train"
    conditioning: str | None = "text"
    shuffle: bool = True
    crop: str = "centre"
    crop_size: int | None = None
    process_index: int = 0
    process_count: int = 1
    max_broken_share: float = 0.01

    def __post_init__(self):
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        check_choice("crop", self.crop, CROPS)
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by {self.process_count} processes"
            )
        text = self.found.output_features.get("text")
        known = text.vocabulary.vocab_size if text and self.conditioning == "text" else 0
        if self.vocab_size is not None and known > self.vocab_size:
            raise ValueError(
                f"the text of {self.task} has {known} ids, but the text encoder's vocab_size is "
                f"{self.vocab_size}"
            )

    @functools.cached_property
    def found(self) -> Any:
        """The Task or Mixture; ValueError where no such name is registered."""
        if not isinstance(self.task, str):
            return self.task
        try:
            return seqio.get_mixture_or_task(self.task)
        except ValueError:
            known = sorted([*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
            raise ValueError(
                f"no seqio Task or Mixture is called {self.task!r}, only "
                f"{', '.join(known) or 'none at all'}; data.module names a module that registers it"
            ) from None

    @property
    def side(self) -> int:
        """Of the squares in a batch."""
        return self.resolution if self.crop_size is None else self.crop_size

    def image(self, number: Any, example: dict[str, Any]) -> dict[str, Any]:
        """The example that comes as this number on this process, its image decoded and cut."""
        image, random = example["image"], self.crop == "random"
        if image.dtype == tf.string:  # and not decoded yet: PNG, JPEG, GIF or BMP
            image = tf.io.decode_image(image, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, [None, None, 3])
        image = _resized(image, self.resolution, whole=random)
        if random:
            seed = tf.stack([self.seed, number * self.process_count + self.process_index])
            image = tf.image.stateless_random_crop(image, (self.side, self.side, 3), seed)
        else:
            image = tf.image.resize_with_crop_or_pad(image, self.side, self.side)
        return example | {"image": tf.ensure_shape(image, [self.side, self.side, 3])}

    def dataset(self) -> tf.data.Dataset:
        """This process's endless, deterministic stream of batches."""
        lengths = {"text": self.length} if self.conditioning == "text" else {}
        # Caches of small sets, TFDS's and seqio's, would become part of the iterator's state.
        seqio.set_tfds_read_config_override(tfds.ReadConfig(try_autocache=False))
        try:
            dataset = self.found.get_dataset(
                lengths or None,
                split=self.split,
                shuffle=self.shuffle,
                num_epochs=None,
                shard_info=seqio.ShardInfo(self.process_index, self.process_count),
                seed=self.seed,
                try_in_mem_cache=False,
            )
        finally:
            seqio.set_tfds_read_config_override(None)
        dataset = dataset.enumerate().map(self.image, num_parallel_calls=tf.data.AUTOTUNE)
        lengths["image"] = self.side
        if self.conditioning == "label":
            lengths["label"] = 1  # a scalar: the converter wants a length, the Task none
        dataset = ImageFeatureConverter(self.conditioning)(dataset, lengths)
        dataset = dataset.batch(self.batch_size // self.process_count, drop_remainder=True)
        options = tf.data.Options()
        options.deterministic = True
        return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)

    def batches(self, start: int = 0, state: Mapping[str, Any] | None = None) -> "Stream":
        """Batches start, start + 1, ...; `state` is what `Stream.get_state` gave at `start`."""
        stream = Stream(self)
        known = state and state["iterator"] and state["process"] == stream.place
        if start and known and state["step"] == start:
            stream.step = start
            stream.iterator.restore(base64.b64decode(state["iterator"]))
        elif start:
            logging.warning("no state of this data stream: replaying its first %d batches", start)
            for _ in range(start):
                next(stream)
        return stream


class Stream(Iterator):
    """An iterator of numpy batches whose place can be kept in a checkpoint.

    A record that cannot be decoded costs its batch: it is skipped, counted and logged.
    """

    def __init__(self, loader: StreamLoader):
        self.iterator = loader.dataset().as_numpy_iterator()
        self.rows = loader.batch_size // loader.process_count
        self.step, self.place = 0, [loader.process_index, loader.process_count]
        self.damage = Damage(FOREVER, loader.max_broken_share)

    def __next__(self) -> dict[str, np.ndarray]:
        while True:
            self.damage.count(self.rows)
            try:
                batch = next(self.iterator)
            except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
                key = f"a record after {self.damage.read - self.rows} examples"
                self.damage.report(BrokenExample(key, error.message.splitlines()[0]))
                continue
            self.step += 1
            return batch

    def get_state(self) -> dict[str, Any]:
        """JSON-able. Each of several processes can restore only its own state."""
        data = self.iterator.save().numpy()
        kept = base64.b64encode(data).decode() if len(data) <= MAX_STATE_BYTES else None
        return {"step": self.step, "process": self.place, "iterator": kept}

"""seqio Tasks and Mixtures as a stream of batches. Needs TensorFlow and seqio.

A Task has the features `image` (uint8 [size, size, 3], the size being the sequence length asked
for) and, by what the model is conditioned on, `text` (token ids, ended by EOS) or `label` (a
scalar int32).

What a stream cannot promise: batch N is not a function of N, so a resumed run must restore the
iterator. Its state goes into the checkpoint; where that is not possible (another number of hosts, a
shuffle buffer too large to keep) the stream is replayed from the start, which is exact but slow.
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

from imagen_jax.data.loader import FOREVER, Damage
from imagen_jax.data.sources import CONDITIONINGS, BrokenExample, check_choice

MAX_STATE_BYTES = 2**26
SHUFFLE_BUFFER = 1000


# ------------------------------------------------------------------------------ preprocessors


@seqio.map_over_dataset
def decode_image(example: dict[str, Any]) -> dict[str, Any]:
    """PNG, JPEG, GIF or BMP bytes to uint8 [H, W, 3], after the shuffle: its buffer stays small."""
    image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
    return example | {"image": tf.ensure_shape(image, [None, None, 3])}


@seqio.utils.map_over_dataset(num_seeds=1)
def draw_caption(example: dict[str, Any], seed: Any) -> dict[str, Any]:
    """Draws `text` out of `captions` {text, weight} by the weights."""
    logits = tf.math.log(example["captions"]["weight"])[None]
    index = tf.random.stateless_categorical(logits, 1, seed)[0, 0]
    return {"image": example["image"], "text": example["captions"]["text"][index]}


def resize_image(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None):
    """The largest centred square at the asked resolution, antialiased as in `preprocess.resize`."""
    if not sequence_length or sequence_length.get("image") is None:
        return dataset
    resolution = sequence_length["image"]

    def resize(example: dict[str, Any]) -> dict[str, Any]:
        height, width = tf.shape(example["image"])[0], tf.shape(example["image"])[1]
        side = tf.minimum(height, width)
        image = tf.image.resize_with_crop_or_pad(example["image"], side, side)
        image = tf.cond(
            side % resolution == 0,
            lambda: tf.image.resize(image, (resolution, resolution), "area"),
            lambda: tf.image.resize(image, (resolution, resolution), "lanczos3", antialias=True),
        )
        image = tf.saturate_cast(tf.round(image), tf.uint8)
        return example | {"image": tf.ensure_shape(image, [resolution, resolution, 3])}

    return dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE)


# --------------------------------------------------------------------------------------- tasks


def output_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The features of a text-conditioned Task."""
    pixels = seqio.PassThroughVocabulary(size=256)
    return {
        "image": seqio.Feature(pixels, add_eos=False, rank=3, dtype=tf.uint8),
        "text": seqio.Feature(vocabulary, add_eos=True),
    }


def add_emoji_task(
    name: str, vocabulary: seqio.Vocabulary, data_dir: str | Path | None = None
) -> seqio.Task:
    """Registers the emoji set as a seqio Task under a name, with splits train and validation.

    Prepares it in data_dir (or ~/tensorflow_datasets) when it is not there; seqio reads TFRecord.
    """
    from imagen_jax.data import tfds_emoji  # noqa: F401  (registers the builder)

    tfds.builder("emoji", data_dir=data_dir).download_and_prepare()
    source = seqio.TfdsDataSource(
        "emoji:1.0.0",
        tfds_data_dir=None if data_dir is None else str(data_dir),
        splits={"train": "train", "validation": "heldout"},
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            decode_image,
            draw_caption,
            resize_image,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=output_features(vocabulary),
        shuffle_buffer_size=SHUFFLE_BUFFER,
    )


class ImageFeatureConverter(seqio.FeatureConverter):
    """Task features to the batch's: image, and padded `ids` with their `mask`, or `label`."""

    TASK_FEATURES: Mapping[str, Any] = {}
    MODEL_FEATURES: Mapping[str, Any] = {}
    PACKING_FEATURE_DTYPES = None

    def __init__(self, conditioning: str | None = "text"):
        check_choice("conditioning", conditioning, CONDITIONINGS)
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
            features = {name: example[name] for name in self.TASK_FEATURES if name != "text"}
            if "text" in self.TASK_FEATURES:
                length = task_feature_lengths["text"]
                ids = example["text"][:length]
                mask = tf.sequence_mask(tf.size(ids), length)
                ids = tf.ensure_shape(tf.pad(ids, [[0, length - tf.size(ids)]]), [length])
                features |= {"ids": ids, "mask": tf.ensure_shape(mask, [length])}
            return features

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]):
        lengths = dict(task_feature_lengths)
        if "text" in lengths:
            lengths["ids"] = lengths["mask"] = lengths.pop("text")
        return lengths


# -------------------------------------------------------------------------------------- stream


@dataclasses.dataclass(frozen=True, eq=False)
class StreamLoader:
    """Batches of a seqio Task or Mixture: `batches(start, state)`; each host reads its own shard.

    Args:
      task: a registered name, or the Task or Mixture itself.
      batch_size: examples of the whole batch, on all processes together.
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
    process_index: int = 0
    process_count: int = 1
    max_broken_share: float = 0.01

    def __post_init__(self):
        check_choice("conditioning", self.conditioning, CONDITIONINGS)
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by {self.process_count} processes"
            )
        features = self.found.output_features
        if self.conditioning == "text" and self.vocab_size is not None and "text" in features:
            size = features["text"].vocabulary.vocab_size
            if size > self.vocab_size:
                raise ValueError(
                    f"the text of {self.task} has {size} ids, but the text encoder's vocab_size is "
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
    def rows(self) -> int:
        """Examples of a batch on this process."""
        return self.batch_size // self.process_count

    def dataset(self) -> tf.data.Dataset:
        """This process's endless, deterministic stream of batches."""
        lengths = {"image": self.resolution}
        if self.conditioning == "text":
            lengths["text"] = self.length
        # Caches of small sets, TFDS's and seqio's, would become part of the iterator's state.
        seqio.set_tfds_read_config_override(tfds.ReadConfig(try_autocache=False))
        try:
            dataset = self.found.get_dataset(
                lengths,
                split=self.split,
                shuffle=self.shuffle,
                num_epochs=None,
                shard_info=seqio.ShardInfo(self.process_index, self.process_count),
                seed=self.seed,
                try_in_mem_cache=False,
            )
        finally:
            seqio.set_tfds_read_config_override(None)
        if self.conditioning == "label":
            lengths["label"] = 1  # a scalar: the converter wants a length, the Task none
        dataset = ImageFeatureConverter(self.conditioning)(dataset, lengths)
        dataset = dataset.batch(self.rows, drop_remainder=True)
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
        self.rows = loader.rows
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
        """JSON-able. Of several processes each can restore its own state alone."""
        data = self.iterator.save().numpy()
        kept = base64.b64encode(data).decode() if len(data) <= MAX_STATE_BYTES else None
        return {"step": self.step, "process": self.place, "iterator": kept}

"""TFDS by random access, the emoji builder, and seqio Tasks as streams that can be resumed."""

import itertools
import json

import numpy as np
import pytest

from imagen_jax.data import Loader, emoji, preprocess, read_tfds

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="TensorFlow Datasets is not installed (extra tfds)"
)
needs_font = pytest.mark.skipif(
    bool(emoji.missing_files()), reason=f"the emoji set needs apt: {emoji.DEBIAN_PACKAGES}"
)


class Shades(tfds.core.GeneratorBasedBuilder):
    """Grey 10x10 pictures with labels and a caption: stands for any TFDS set."""

    name = "shades"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(10, 10, 1)),
            "label": tfds.features.ClassLabel(num_classes=3),
            "title": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            image = np.full((10, 10, 1), i, np.uint8)
            yield i, {"image": image, "label": i % 3, "title": f"灰 {i}"}


def test_any_tfds_name_has_random_access(tmp_path):
    source = read_tfds("shades", data_dir=tmp_path)
    assert len(source) == 20
    assert len(read_tfds("shades", split="heldout", data_dir=tmp_path)) == 4
    loader = Loader(source, 10, 5, conditioning="label")
    batch = loader.batch(1)
    assert batch["image"].shape == (10, 5, 5, 3)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 3, batch["label"])
    titled = read_tfds("shades", conditioning="text", data_dir=tmp_path, text="title")
    shade = titled[0]["image"][0, 0, 0]
    assert titled[0]["captions"] == [(f"灰 {shade}", 1.0)]
    with pytest.raises(ValueError, match="shades has no feature captions; it has"):
        read_tfds("shades", conditioning="text", data_dir=tmp_path)


@pytest.fixture(scope="module")
def few_emoji():
    """The builder's set cut to its first 40 emoji, so that preparing it takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        listed = emoji.list_emoji()[:40]
        patch.setattr(emoji, "list_emoji", lambda: listed)
        yield emoji.build(listed)[1]


@needs_font
def test_the_builder_holds_what_the_npz_holds(tmp_path, few_emoji):
    rows = {key: row for row, key in enumerate(few_emoji["key"].tolist())}
    for split in ("train", "heldout"):
        records = read_tfds("emoji", split, "text", data_dir=tmp_path).records
        assert len(records) == (few_emoji["split"] == split).sum() > 0
        for record in records:
            row = rows[record["key"].decode()]
            np.testing.assert_array_equal(record["image"], few_emoji["image"][row])
            assert record["name_zh"].decode() == few_emoji["name_zh"][row]
            assert record["label"] == few_emoji["label"][row]
    source = read_tfds("emoji", "train", "text", data_dir=tmp_path)
    expected = json.loads(few_emoji["captions"].tobytes())[rows[source.records[0]["key"].decode()]]
    assert [text for text, _ in source[0]["captions"]] == [text for text, _ in expected]


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio", reason="seqio is not installed (extra seqio)")


@pytest.fixture(scope="module")
def emoji_task(seqio, few_emoji, tmp_path_factory):
    from imagen_jax.data import seqio_tasks

    folder = tmp_path_factory.mktemp("tfrecord")
    return seqio_tasks.add_emoji_task("emoji_few", seqio.ByteVocabulary(), folder)


def same(left, right) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


@needs_font
def test_the_task_gives_the_same_pictures_and_tokens_as_the_loader(emoji_task, few_emoji):
    from imagen_jax.data import seqio_tasks

    stream = seqio_tasks.StreamLoader("emoji_few", 4, 32, length=24).batches()
    images = np.stack([preprocess.resize(image, 32) for image in few_emoji["image"]])
    captions = [dict(pairs) for pairs in json.loads(few_emoji["captions"].tobytes())]
    for batch in itertools.islice(stream, 8):
        assert batch["image"].dtype == np.uint8
        for image, ids, mask in zip(*map(batch.get, ("image", "ids", "mask")), strict=True):
            distance = np.abs(images.astype(int) - image).max((1, 2, 3))
            row = distance.argmin()
            assert distance[row] <= 1
            assert few_emoji["split"][row] == "train"
            tokens = ids[mask].tolist()
            assert tokens[-1] == 1
            assert not ids[~mask].any()
            cut = [[byte + 3 for byte in text.encode()][:23] for text in captions[row]]
            assert tokens[:-1] in cut


@needs_font
def test_a_task_that_does_not_fit_is_named(emoji_task):
    from imagen_jax.data import seqio_tasks

    with pytest.raises(ValueError, match=r"no seqio Task or Mixture is called 'emojy', only .*few"):
        seqio_tasks.StreamLoader("emojy", 4, 16)
    with pytest.raises(ValueError, match=r"the text of emoji_few has 259 ids, but .* is 100"):
        seqio_tasks.StreamLoader("emoji_few", 4, 16, vocab_size=100)


@needs_font
def test_a_stream_resumes_from_its_state_and_without_it(emoji_task):
    from imagen_jax.data import seqio_tasks

    loader = seqio_tasks.StreamLoader("emoji_few", 4, 16, seed=5)
    stream = loader.batches()
    before = list(itertools.islice(stream, 6))
    state = json.loads(json.dumps(stream.get_state()))
    after = list(itertools.islice(stream, 6))
    assert all(map(same, after, loader.batches(6, state)))
    assert all(map(same, after, loader.batches(6, None)))  # replayed
    other = seqio_tasks.StreamLoader("emoji_few", 4, 16, seed=6).batches()
    assert not all(map(same, before, other))


@needs_font
def test_hosts_read_disjoint_shards(emoji_task):
    from imagen_jax.data import seqio_tasks

    seen = []
    for index in range(2):
        loader = seqio_tasks.StreamLoader(
            "emoji_few", 4, 16, shuffle=False, process_index=index, process_count=2
        )
        batches = list(itertools.islice(loader.batches(), 8))
        assert batches[0]["image"].shape == (2, 16, 16, 3)
        seen.append({image.tobytes() for batch in batches for image in batch["image"]})
    assert not seen[0] & seen[1]


def test_a_labelled_task_and_broken_records(seqio, rng):
    import tensorflow as tf

    from imagen_jax.data import seqio_tasks
    from imagen_jax.data.loader import TooManyBroken

    def dataset(split, shuffle_files, seed=None):
        images = [tf.io.encode_png(np.full((8, 8, 3), i, np.uint8)).numpy() for i in range(12)]
        images[5] = images[5][:20]
        records = {"image": images, "label": np.arange(12, dtype=np.int32)}
        return tf.data.Dataset.from_tensor_slices(records)

    pixels = seqio.PassThroughVocabulary(256)
    features = {
        "image": seqio.Feature(pixels, add_eos=False, rank=3, dtype=tf.uint8),
        "label": seqio.Feature(pixels, add_eos=False, rank=0, dtype=tf.int32),
    }
    task = seqio.Task(
        "shades",
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[seqio_tasks.decode_image, seqio_tasks.resize_image],
        output_features=features,
    )
    settings = {"batch_size": 2, "resolution": 4, "conditioning": "label", "shuffle": False}
    stream = seqio_tasks.StreamLoader(task, **settings).batches()
    labels = []
    for batch in itertools.islice(stream, 5):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
        labels += batch["label"].tolist()
    assert 5 not in labels
    assert labels[:4] == [0, 1, 2, 3]
    assert len(stream.damage.broken) == 1
    strict = seqio_tasks.StreamLoader(task, **settings, max_broken_share=0.0).batches()
    with pytest.raises(TooManyBroken):
        list(itertools.islice(strict, 5))

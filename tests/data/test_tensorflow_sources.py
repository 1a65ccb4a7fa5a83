"""TFDS by random access, the icons' builder, and seqio Tasks as streams that can be resumed."""

import itertools
import json

import numpy as np
import pytest

from imagen_jax.data import Loader, read_tfds
from imagen_jax.data.sources import BrokenExample, read_arrays
from imagen_jax.data.tfds_source import TfdsSource
from imagen_jax.images import pixels

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="TensorFlow Datasets is not installed (extra tfds)"
)


class Shades(tfds.core.GeneratorBasedBuilder):
    """Grey 10x10 images with labels and a caption: stands for any TFDS set."""

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


def records(image=None, text=b"x", label=0):
    """A source of one record, as TFDS decodes it."""
    image = np.zeros((4, 6, 3), np.uint8) if image is None else image
    record = {"image": image, "text": text, "label": label}
    return TfdsSource([record], "set", "image", "text", None)


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 6, 1), 255, np.uint8),
        np.full((4, 6, 2), (0, 0), np.uint8),  # transparent black is shown as white
        np.full((4, 6, 4), (0, 0, 0, 0), np.uint8),
        np.full((4, 6, 1), 65535, np.uint16),
        np.full((4, 6, 3), 65535, np.uint16),
    ],
    ids=lambda image: f"{image.dtype}x{image.shape[-1]}",
)
def test_tfds_images_of_other_modes_become_rgb(image):
    image = records(image)[0]["image"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 255))


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"image": np.zeros((4, 6, 3), np.float32)}, r"float32 \[4, 6, 3\]; it must be uint8"),
        ({"text": b" "}, "its caption is empty"),
        ({"text": b"caf\xe9"}, "UTF-8"),
        ({"text": {"id": 3}}, "has no text 'text'"),
    ],
)
def test_a_tfds_record_that_cannot_be_used_is_broken(record, match):
    with pytest.raises(BrokenExample, match=rf"^set\[0\]: .*{match}"):
        records(**record)[0]


@pytest.fixture(scope="module")
def arrays(icons):
    """What the builder is made of."""
    from imagen_jax.data import tfds_icons

    file = icons / "icons64.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_icons, "FILE", file)
        yield read_arrays(file)


def test_the_builder_holds_what_the_npz_holds(tmp_path, arrays):
    rows = {key: row for row, key in enumerate(arrays["key"].tolist())}
    for split in ("train", "pair", "heldout"):
        records = read_tfds("icons", split, "text", data_dir=tmp_path).records
        assert len(records) == (arrays["split"] == split).sum() > 0
        for record in records:
            row = rows[record["key"].decode()]
            np.testing.assert_array_equal(record["image"], arrays["image"][row])
            assert record["name_zh"].decode() == arrays["name_zh"][row]
            assert record["label"] == arrays["label"][row]
            assert record["weight"] == arrays["weight"][row]
    source = read_tfds("icons", "train", "text", data_dir=tmp_path)
    expected = json.loads(arrays["captions"].tobytes())[rows[source.records[0]["key"].decode()]]
    assert [text for text, _ in source[0]["captions"]] == [text for text, _ in expected]


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio", reason="seqio is not installed (extra seqio)")


@pytest.fixture(scope="module")
def icons_task(seqio, arrays, tmp_path_factory):
    from imagen_jax.data import seqio_tasks

    folder = tmp_path_factory.mktemp("tfrecord")
    return seqio_tasks.add_icons_task("icons_few", seqio.ByteVocabulary(), folder)


def same(left, right) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_the_task_gives_the_same_images_and_tokens_as_the_loader(icons_task, arrays):
    from imagen_jax.data import seqio_tasks

    stream = seqio_tasks.StreamLoader("icons_few", 4, 32, length=24).batches()
    images = np.stack([pixels.resize(image, 32) for image in arrays["image"]])
    captions = [dict(pairs) for pairs in json.loads(arrays["captions"].tobytes())]
    for batch in itertools.islice(stream, 8):
        assert batch["image"].dtype == np.uint8
        for image, ids, mask in zip(*map(batch.get, ("image", "ids", "mask")), strict=True):
            distance = np.abs(images.astype(int) - image).max((1, 2, 3))
            row = distance.argmin()
            assert distance[row] <= 1
            assert arrays["split"][row] == "train"
            tokens = ids[mask].tolist()
            assert tokens[-1] == 1
            assert not ids[~mask].any()
            cut = [[byte + 3 for byte in text.encode()][:23] for text in captions[row]]
            assert tokens[:-1] in cut


def test_a_task_that_does_not_fit_is_named(icons_task):
    from imagen_jax.data import seqio_tasks

    with pytest.raises(ValueError, match=r"no seqio Task or Mixture is called 'iconz', only .*few"):
        seqio_tasks.StreamLoader("iconz", 4, 16)
    with pytest.raises(ValueError, match=r"the text of icons_few has 259 ids, but .* is 100"):
        seqio_tasks.StreamLoader("icons_few", 4, 16, vocab_size=100)


def test_a_stream_resumes_from_its_state_and_without_it(icons_task):
    from imagen_jax.data import seqio_tasks

    loader = seqio_tasks.StreamLoader("icons_few", 4, 16, seed=5)
    stream = loader.batches()
    before = list(itertools.islice(stream, 6))
    state = json.loads(json.dumps(stream.get_state()))
    after = list(itertools.islice(stream, 6))
    assert all(map(same, after, loader.batches(6, state)))
    assert all(map(same, after, loader.batches(6, None)))  # replayed
    other = seqio_tasks.StreamLoader("icons_few", 4, 16, seed=6).batches()
    assert not all(map(same, before, other))


def test_hosts_read_disjoint_shards(icons_task):
    from imagen_jax.data import seqio_tasks

    seen = []
    for index in range(2):
        loader = seqio_tasks.StreamLoader(
            "icons_few", 4, 16, shuffle=False, process_index=index, process_count=2
        )
        batches = list(itertools.islice(loader.batches(), 8))
        assert batches[0]["image"].shape == (2, 16, 16, 3)
        seen.append({image.tobytes() for batch in batches for image in batch["image"]})
    assert not seen[0] & seen[1]


def test_a_labelled_task_and_broken_records(seqio, rng):
    import tensorflow as tf

    from imagen_jax.data import seqio_tasks
    from imagen_jax.data.counts import TooManyBroken

    def dataset(split, shuffle_files, seed=None):
        images = [tf.io.encode_png(np.full((8, 8, 3), i, np.uint8)).numpy() for i in range(12)]
        images[5] = images[5][:20]
        records = {"image": images, "label": np.arange(12, dtype=np.int32)}
        return tf.data.Dataset.from_tensor_slices(records)

    task = seqio.Task(
        "shades",
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[],
        output_features=seqio_tasks.label_features(),
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


# ----------------------------------------------------------------------------------- TFDS' own sets

SPLITS = {"train": 12, "val": 3, "test": 2, "restval": 6}


class TinyCoco(tfds.core.GeneratorBasedBuilder):
    """The features and splits of coco_captions; image i is grey i, its five captions say so."""

    name = "tiny_coco"
    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        caption = {"id": np.int64, "text": tfds.features.Text()}
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence(caption),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        first = 0
        generators = {}
        for split, count in SPLITS.items():
            generators[split] = self._generate_examples(range(first, first + count))
            first += count
        return generators

    def _generate_examples(self, numbers):
        for i in numbers:
            captions = [{"id": 5 * i + j, "text": f"{i} {'abcde'[j]}"} for j in range(5)]
            image = np.full((16, 24, 3), i, np.uint8)
            yield i, {"image": image, "image/filename": f"{i}.jpg", "captions": captions}


class TinyCifar(tfds.core.GeneratorBasedBuilder):
    """The features and splits of cifar10."""

    name = "tiny_cifar"
    VERSION = tfds.core.Version("3.0.2")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            image = np.full((32, 32, 3), i, np.uint8)
            yield i, {"id": f"train_{i}", "image": image, "label": i % 10}


@pytest.fixture(scope="module")
def coco_task(seqio, tmp_path_factory):
    from imagen_jax.data import seqio_tasks

    folder = tmp_path_factory.mktemp("coco")
    vocabulary = seqio.ByteVocabulary()
    return seqio_tasks.add_coco_task("coco_few", vocabulary, folder, "tiny_coco:1.1.0")


@pytest.fixture(scope="module")
def cifar_task(seqio, tmp_path_factory):
    from imagen_jax.data import seqio_tasks

    return seqio_tasks.add_cifar_task("cifar_few", tmp_path_factory.mktemp("c"), "tiny_cifar:3.0.2")


def said(batch) -> list[str]:
    """The captions of a batch of bytes."""
    rows = zip(batch["ids"], batch["mask"], strict=True)
    return ["".join(chr(byte - 3) for byte in ids[mask][:-1]) for ids, mask in rows]


def test_coco_has_karpathys_splits_and_draws_one_of_five_captions(coco_task):
    from imagen_jax.data import seqio_tasks

    drawn = {}
    for split, numbers in {
        "train": [*range(12), *range(17, 23)],
        "validation": [12, 13, 14],
    }.items():
        loader = seqio_tasks.StreamLoader("coco_few", 3, 8, length=8, split=split)
        for batch in itertools.islice(loader.batches(), 4 * len(numbers)):
            for image, caption in zip(batch["image"], said(batch), strict=True):
                number, letter = caption.split()
                assert abs(int(number) - image.astype(int)).max() <= 1
                drawn.setdefault(split, {}).setdefault(int(number), set()).add(letter)
        assert sorted(drawn[split]) == numbers
    assert set.union(*drawn["train"].values()) == set("abcde")


def test_coco_by_random_access_has_all_its_captions(tmp_path):
    source = read_tfds("tiny_coco", "train+restval", "text", data_dir=tmp_path)
    assert len(source) == 18
    grey = source[3]["image"][0, 0, 0]
    assert source[3]["captions"] == [(f"{grey} {letter}", 1.0) for letter in "abcde"]


def test_cifar_is_labelled(cifar_task):
    from imagen_jax.data import seqio_tasks

    stream = seqio_tasks.StreamLoader("cifar_few", 5, 32, conditioning="label").batches()
    for batch in itertools.islice(stream, 8):
        assert batch["image"].shape == (5, 32, 32, 3)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 10, batch["label"])


def test_a_mixture_streams_each_task_at_its_rate(seqio, coco_task):
    from imagen_jax.data import seqio_tasks

    def three(split, shuffle_files, seed=None):
        import tensorflow as tf

        image = tf.io.encode_png(np.full((9, 9, 3), 200, np.uint8)).numpy()
        records = {"image": [image] * 3, "text": ["x"] * 3}
        return tf.data.Dataset.from_tensor_slices(records)

    seqio.TaskRegistry.add(
        "white_few",
        source=seqio.FunctionDataSource(three, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=seqio_tasks.text_features(seqio.ByteVocabulary()),
        shuffle_buffer_size=10,
    )
    seqio.MixtureRegistry.add("both_few", [("coco_few", 3.0), ("white_few", 1.0)])
    loader = seqio_tasks.StreamLoader("both_few", 20, 8, length=8, seed=1)
    batches = list(itertools.islice(loader.batches(), 20))
    white = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]) > 150
    assert np.mean(white) == pytest.approx(0.25, abs=0.06)
    state = loader.batches()
    list(itertools.islice(state, 10))
    resumed = loader.batches(10, json.loads(json.dumps(state.get_state())))
    assert all(map(same, batches[10:], resumed))


def test_only_bytes_are_shuffled(coco_task, cifar_task):
    """What a Task gives to seqio's shuffle is the file, not its pixels."""
    import tensorflow as tf

    for task, lengths in ((coco_task, {"text": 8}), (cifar_task, None)):
        spec = task.get_dataset(lengths, "train", shuffle=True, num_epochs=None).element_spec
        assert spec["image"].dtype == tf.string


def test_random_crops_of_a_stream_are_replayed(coco_task):
    from imagen_jax.data import seqio_tasks

    settings = {"resolution": 16, "crop": "random", "crop_size": 8, "length": 8}
    loader = seqio_tasks.StreamLoader("coco_few", 4, **settings)
    batches = list(itertools.islice(loader.batches(), 6))
    assert batches[0]["image"].shape == (4, 8, 8, 3)
    assert all(map(same, batches[4:], loader.batches(4, None)))

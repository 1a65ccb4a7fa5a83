"""Tars, TFRecord and ArrayRecord by random access: the same examples, filters and index."""

import bz2
import dataclasses
import functools
import gzip
import itertools
import json
import logging
import lzma
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import SOURCES, Loader, read_tar, records, shards
from imagen_jax.data.counts import TooManyBroken
from imagen_jax.data.shards import expand_braces, find_shards
from imagen_jax.data.sources import BrokenExample, is_heldout
from tests.data.shard_files import (
    add,
    example_record,
    frame,
    grey,
    image,
    serialized,
    write_array_record,
    write_tar,
)

COUNT = 24
SHARDS = [range(0, 9), range(9, 10), range(10, COUNT)]


def write_set(folder, kind: str) -> str:
    """Three shards with 24 examples of greys 0, 1, ...; gives the pattern that names them."""
    folder.mkdir(exist_ok=True)
    for shard, numbers in enumerate(SHARDS):
        path = folder / f"{shard:05d}.{kind}"
        if kind == "tar":
            write_tar(path, numbers, "PNG")
        elif kind == "tfrecord":
            path.write_bytes(b"".join(frame(example_record(n)) for n in numbers))
        else:
            write_array_record(path, [example_record(n) for n in numbers])
    return f"{folder}/{{00000..00002}}.{kind}"


@pytest.fixture(scope="module", params=["tar", "tfrecord", "array_record"])
def made(request, tmp_path_factory):
    """(kind, pattern) of a set in each format."""
    return request.param, write_set(tmp_path_factory.mktemp("set") / "shards", request.param)


def read(made, **options):
    kind, pattern = made
    return SOURCES[kind](pattern, **options)


def greys(source) -> list[int]:
    return [grey(source[row]["image"]) for row in range(len(source))]


def test_every_format_gives_the_same_examples_by_number(made):
    source = read(made)
    assert greys(source) == list(range(COUNT))
    for row in (23, 0, 9):
        example = source[row]
        assert example["captions"] == [(f"grey {row}", 1.0)]
        assert np.asarray(example["image"]).shape == (12, 20 + row, 3)
    label = {"label": "json.label"} if made[0] == "tar" else {}
    labelled = read(made, conditioning="label", **label)
    assert [labelled[row]["label"] for row in range(COUNT)] == [n % 3 for n in range(COUNT)]
    assert read(made, conditioning=None)[3].keys() == {"image", "key"}
    keys = [source[row]["key"] for row in range(COUNT)]
    assert len(set(keys)) == COUNT
    assert all(key.startswith(f"0000{int(n >= 9) + int(n >= 10)}.") for n, key in enumerate(keys))


def test_batches_are_the_same_on_any_number_of_hosts_and_from_any_step(made):
    tokens = np.zeros((12, 1), np.int32)

    def loader(index=0, count=1, **changes):
        rows = tokens[: 12 // count]
        options = {"tokenize": lambda texts: (rows, rows == 0), **changes}
        place = range(index * 12 // count, (index + 1) * 12 // count)
        return Loader(read(made), 12, 8, 3, **options, rows=place)

    whole = list(itertools.islice(loader().batches(), 6))
    resumed = list(itertools.islice(loader().batches(4), 2))
    for batch, again in zip(whole[4:], resumed, strict=True):
        np.testing.assert_array_equal(batch["image"], again["image"])
    parts = [loader(index, 3, num_threads=1).batch(5)["image"] for index in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[5]["image"])


def test_filters_choose_by_what_the_index_knows(made, tmp_path):
    small = {"min_size": 12, "aspect": [20 / 12, 27 / 12], "scores": {"rank": [0.2, 2.05]}}
    assert greys(read(made, filters=small)) == list(range(2, 8))
    for _ in range(2):  # read from the shards, then from the index that is kept
        source = read(made, filters=small, index_dir=tmp_path)
        assert greys(source) == list(range(2, 8))
        assert source.index.fields.keys() == {"rank"}
    longer = read(made, filters={"caption_length": [7, 99]})
    assert greys(longer) == list(range(10, COUNT))
    with pytest.raises(ValueError, match=r"scores\.beauty: no example has it; there are: .*rank"):
        read(made, filters={"scores": {"beauty": [0, 1]}})
    with pytest.raises(ValueError, match="none of 24 examples passes"):
        read(made, filters={"min_size": 99})


def test_a_fault_that_does_not_matter_is_no_way_past_the_filters(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, side, text in (("a", 20, b"good"), ("b", 20, b" "), ("c", 40, b" ")):
            add(tar, f"{name}.jpg", image(1, (side, side)))
            add(tar, f"{name}.json", json.dumps({"width": side, "height": side}).encode())
            add(tar, f"{name}.txt", text)
    read = functools.partial(SOURCES["tar"], tmp_path)
    assert read(conditioning=None, filters={"min_size": 30}).sizes.tolist() == [[40, 40]]
    match = r"none of 3 examples passes .* but 2 that are broken, the first: .*caption is empty"
    with pytest.raises(ValueError, match=match):
        read(filters={"min_size": 30})
    with pytest.raises(ValueError, match=r"none of 3 examples passes its filters and split$"):
        read(conditioning=None, filters={"min_size": 50})


def test_shards_without_examples_are_said_to_be_empty(tmp_path):
    write_tar(tmp_path / "a.tar", range(0))
    with pytest.raises(ValueError, match="no example in its 1 shards"):
        SOURCES["tar"](tmp_path, filters={"min_size": 30})


@pytest.mark.parametrize(
    ("filters", "match"),
    [
        ({"min_sise": 3}, r"filters\.min_sise'; did you mean 'min_size\'"),
        ({"aspect": 2.0}, r"filters\.aspect' is 2\.0; it must be a list"),
        ({"caption_length": [9, 3]}, "caption_length is"),
        ({"scores": {"rank": [None, 3]}}, r"scores\.rank\.0' is None"),
        ({"min_size": 0}, "min_size is 0"),
    ],
)
def test_a_bad_filter_is_named_before_anything_is_read(filters, match):
    with pytest.raises(ValueError, match=match):
        SOURCES["tar"]("nowhere.tar", filters=filters)


def test_splits_are_disjoint_and_complete(made):
    keys = {read(made)[row]["key"] for row in range(COUNT)}
    for split in ("train", "heldout"):
        wanted = {key for key in keys if is_heldout(key) == (split == "heldout")}
        if not wanted:
            with pytest.raises(ValueError, match="none of 24 examples"):
                read(made, split=split)
        else:
            part = read(made, split=split)
            assert {part[row]["key"] for row in range(len(part))} == wanted


@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
def test_shards_behind_a_url_are_read_in_parts(tmp_path, kind):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    pattern = write_set(tmp_path / "set", kind)
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "set").glob(f"*.{kind}"):
        memory.pipe(f"/bucket/{kind}/{path.name}", path.read_bytes())
    local = read((kind, pattern))
    url = f"memory://bucket/{kind}"
    for name in (f"{url}/{{00000..00002}}.{kind}", f"{url}/*.{kind}", url):
        remote = read((kind, name), index_dir=tmp_path / "index")
        assert greys(remote) == greys(local)
        assert [shard.name for shard in remote.shards] == [shard.name for shard in local.shards]
    with pytest.raises(ValueError, match="there is no file memory://bucket/none"):
        read((kind, "memory://bucket/none.tar"))


def test_a_shard_that_the_cache_forgets_is_read_to_its_end(tmp_path, monkeypatch):
    """Another thread may push a file out of the cache of open files before its bytes are read."""
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 4)
    first, second = find_shards(f"{tmp_path}/{{a,b}}", "")
    pread = os.pread
    held = []

    def slow(number, size, start):
        shards._kept_open.cache_clear()
        held.append(os.open(second.path, os.O_RDONLY))  # takes the number of a closed one
        return pread(number, size, start)

    monkeypatch.setattr(os, "pread", slow)
    assert first.read(0, 4) == b"aaaa"
    os.close(held[0])


def test_home_folders_and_file_urls_are_followed(tmp_path, monkeypatch):
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    write_set(tmp_path / "set", "tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/set", f"file://{tmp_path}/set", f"file://{tmp_path}/set/{{00000..00002}}.tar"):
        assert len(read(("tar", name), index_dir=tmp_path / "index")) == COUNT
    assert greys(read(("tar", f"file://{tmp_path}/set/0000?.tar"))) == list(range(COUNT))
    assert len(list((tmp_path / "index").iterdir())) == 6  # a path and a URL have one each
    read(("tar", "~/set"), index_dir="~/other")
    assert (tmp_path / "other").exists()
    Image.new("RGB", (4, 4)).save(tmp_path / "set" / "a.png")
    np.savez(tmp_path / "set.npz", image=np.zeros((2, 4, 4, 3), np.uint8))
    assert len(SOURCES["folder"]("~/set", conditioning=None)) == 1
    assert len(SOURCES["npz"]("~/set.npz", conditioning=None)) == 2
    read(("tar", "~/set"))
    assert (tmp_path / "set" / ".imagen_jax_index").exists()


def test_a_server_that_ignores_ranges_is_no_source_of_parts(monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    memory = fsspec.filesystem("memory")
    memory.pipe("/whole/a.tar", bytes(1000))
    (shard,) = find_shards("memory://whole/a.tar", ".tar")
    assert shard.read(10, 20) == bytes(10)
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start, stop: bytes(1000))
    with pytest.raises(ValueError, match="serves only whole files"):
        shard.read(10, 20)


def test_a_url_needs_fsspec_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        ImportError, match=r"s3:// needs fsspec: pip install 'imagen_jax\[remote\]'"
    ):
        find_shards("s3://bucket/a.tar", ".tar")


def test_patterns_stand_for_names_in_order(tmp_path):
    assert expand_braces("a{08..10}.tar") == ["a08.tar", "a09.tar", "a10.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain{}.tar") == ["plain{}.tar"]
    for name in ("b[1].tar", "a.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [shard.name for shard in find_shards(str(tmp_path), ".tar")] == ["a.tar", "b[1].tar"]
    assert [shard.name for shard in find_shards(f"{tmp_path}/?.tar", ".tar")] == ["a.tar"]
    for pattern, match in [
        (f"{tmp_path}/{{a,z}}.tar", r"there is no file .*/z\.tar"),
        (f"{tmp_path}/*.zip", "there is no file"),
        (f"{tmp_path}/{{0..9999999999}}.tar", "names at most"),
        (f"{tmp_path}/{{9..1}}.tar", "must count upward"),
        (f"{tmp_path}/{{0..999}}{{0..9999}}.tar", "more than 1,000,000 names"),
        (f"{tmp_path}/{{a,a}}.tar", "names a file twice"),
    ]:
        with pytest.raises(ValueError, match=match):
            find_shards(pattern, ".tar")


def test_statistics_beside_tfrecord_files_are_no_shards(tmp_path):
    """As img2dataset writes them; the shards of other sets have no tfrecord in their names."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    names = ["0.tfrecord", "0_stats.json", "0.parquet"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
        fsspec.filesystem("memory").pipe(f"/statistics/{name}", b"")
    for folder in (str(tmp_path), "memory://statistics"):
        assert [shard.name for shard in find_shards(folder, "")] == ["0.tfrecord"]
    assert len(find_shards(f"{tmp_path}/*", "")) == 3
    (tmp_path / "0.tfrecord").rename(tmp_path / "train-0-of-1")
    assert len(find_shards(str(tmp_path), "")) == 3


@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
@pytest.mark.parametrize("program", [gzip, bz2, lzma])
def test_a_compressed_shard_is_said_to_be_one(tmp_path, kind, program):
    write_set(tmp_path, kind)
    path = tmp_path / f"a.{kind}.packed"
    path.write_bytes(program.compress((tmp_path / f"00000.{kind}").read_bytes()))
    name = {gzip: "gzip", bz2: "bzip2", lzma: "xz"}[program]
    with pytest.raises(ValueError, match=rf"packed is compressed with {name}; unpack it"):
        SOURCES[kind](path)


def test_sizes_can_be_measured_where_the_json_has_none(tmp_path):
    path = tmp_path / "a.tar"
    turned = Image.Exif()
    turned[0x0112] = 6
    with tarfile.open(path, "w") as tar:
        Image.new("RGB", (40, 30)).save(tmp_path / "t.jpg", exif=turned)
        add(tar, "a.jpg", image(1, (50, 20)))
        add(tar, "b.jpg", (tmp_path / "t.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"data\.measure=True"):
        SOURCES["tar"](path, conditioning=None, filters={"min_size": 25})
    source = SOURCES["tar"](path, conditioning=None, filters={"min_size": 25}, measure=True)
    assert source.sizes.tolist() == [[30, 40]]
    assert source[0]["image"].size == (30, 40)


def test_captions_come_from_a_text_file_or_a_field(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", image(1))
        add(tar, "a.txt", "\ufeffzwei\n Zeilen \n".encode())
        add(tar, "a.json", json.dumps({"short": "s", "many": ["x", " ", "y"], "n": 3}).encode())
    read = SOURCES["tar"]
    assert read(path)[0]["captions"] == [("zwei Zeilen", 1.0)]
    assert read(path, text="json.short")[0]["captions"] == [("s", 1.0)]
    assert read(path, text="json.many")[0]["captions"] == [("x", 1.0), ("y", 1.0)]
    for name in ("json.n", "json.gone"):
        with pytest.raises(BrokenExample, match=f"no text '{name}'"):
            read(path, text=name)[0]
    with pytest.raises(BrokenExample, match=r"a: has no text: there is no \.caption"):
        read(path, text="caption")[0]
    with pytest.raises(BrokenExample, match=r"a: has no label: there is no \.cls"):
        read(path, conditioning="label")[0]


def test_damaged_records_are_broken_examples(tmp_path):
    good = [frame(example_record(n)) for n in range(4)]
    flipped = bytearray(good[1])
    flipped[40] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(good[0] + flipped + good[2] + good[3][:-9])
    source = SOURCES["tfrecord"](tmp_path / "a.tfrecord")
    assert [grey(source[row]["image"]) for row in (0, 2)] == [0, 2]
    for row, match in ((1, "checksum differs"), (3, "cut off .*all after it is lost")):
        with pytest.raises(BrokenExample, match=match):
            source[row]
    loader = Loader(source, 4, 8, conditioning=None, max_broken_share=0.3)
    with pytest.raises(TooManyBroken, match="2 broken examples"):
        [loader.batch(step) for step in range(9)]


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (b"\xff\xff no example", "not a tf.train.Example"),
        (serialized(text="x"), "'image' is missing; its features are: text"),
        (serialized(image=[b"a", b"b"], text="x"), "'image' has 2 values"),
        (serialized(image=3, text="x"), "no bytes of an image file"),
        (serialized(image=image(1), text=7), "no text 'text'"),
        (serialized(image=image(1), text=b"caf\xe9"), "not in UTF-8"),
        (serialized(image=b"GIF89a", text="x"), "a.array_record/0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "record",
)
def test_a_record_of_another_kind_says_what_it_lacks(tmp_path, record, match):
    write_array_record(tmp_path / "a.array_record", [record, example_record(5)])
    source = SOURCES["array_record"](tmp_path)
    with pytest.raises(BrokenExample, match=match):
        source[0]
    assert grey(source[1]["image"]) == 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")
def test_many_array_record_files_are_not_all_kept_open(tmp_path):
    for number in range(300):
        write_array_record(tmp_path / f"{number}.array_record", [example_record(1)])
    before = len(os.listdir("/proc/self/fd"))
    source = SOURCES["array_record"](tmp_path)
    assert [source[row]["captions"] for row in range(300)] == [[("grey 1", 1.0)]] * 300
    assert len(os.listdir("/proc/self/fd")) - before <= 260


def test_a_damaged_array_record_file_costs_its_examples_alone(tmp_path, rng):
    write_array_record(tmp_path / "a.array_record", [example_record(n) for n in range(4)])
    write_array_record(tmp_path / "b.array_record", [example_record(n) for n in range(4)])
    (tmp_path / "b.array_record").write_bytes(rng.bytes(70_000))
    source = SOURCES["array_record"](tmp_path)
    assert greys_or_none(source) == [0, 1, 2, 3, None]
    with pytest.raises(ValueError, match="only from disks and mounted buckets"):
        SOURCES["array_record"]("gs://bucket/a.array_record")


def greys_or_none(source) -> list[int | None]:
    found = []
    for row in range(len(source)):
        try:
            found.append(grey(source[row]["image"]))
        except BrokenExample:
            found.append(None)
    return found


def test_examples_are_those_of_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra tfds)")
    features = {
        "a": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x", b"\xff"])),
        "b": tf.train.Feature(int64_list=tf.train.Int64List(value=[-3, 2**40])),
        "c": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5])),
        "d": tf.train.Feature(),
    }
    data = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    parsed = {"a": [b"x", b"\xff"], "b": [-3, 2**40], "c": [0.5], "d": []}
    assert records.parse_example(data) == parsed
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(data)
    assert (tmp_path / "a.tfrecord").read_bytes() == frame(data)


def test_captions_can_be_read_without_their_images(made):
    source = dataclasses.replace(read(made), with_images=False)
    assert source[4].keys() == {"captions", "key"}


def test_the_log_says_what_was_filtered(made, caplog):
    with caplog.at_level(logging.INFO):
        read(made, filters={"min_size": 3, "scores": {"rank": [1.0, 9.0]}})
    assert "filter rank: 10 of 24 examples do not pass" in caplog.text
    assert "14 of 24 examples in 3 shards" in caplog.text


def test_shards_named_after_splits_say_them(tmp_path):
    numbers = {"train": range(8), "pair": range(8, 10), "heldout": range(10, 13)}
    for split, own in numbers.items():
        write_tar(tmp_path / f"{split}-00000.tar", own, split=split, weight=own.start + 0.5)
    for split, own in numbers.items():
        source = read_tar(tmp_path, split)
        assert [item["captions"][0][0] for item in source] == [f"grey {n}" for n in own]
        assert (len(source), source.total) == (len(own), 13)
        assert source.weights.tolist() == [own.start + 0.5] * len(own)
    assert len(read_tar(tmp_path)) == 13
    with pytest.raises(ValueError, match="none of 10 examples"):
        read_tar(tmp_path / "{pair,train}-00000.tar", "heldout")
    with pytest.raises(ValueError, match="split is 'pairs'"):
        read_tar(tmp_path, "pairs")


def test_other_names_of_shards_do_not_say_splits(tmp_path):
    for name in ("train-00000", "train-00001"):  # one is no choice
        write_tar(tmp_path / f"{name}.tar", range(40))
    assert 40 < len(read_tar(tmp_path, "train")) < 80
    write_tar(tmp_path / "heldout.more-00000.tar", range(40, 44))
    assert 40 < len(read_tar(tmp_path, "train")) < 84
    with pytest.raises(ValueError, match="split is 'pair'; it must be one of 'train', 'heldout'"):
        read_tar(tmp_path, "pair")


def test_weights_of_tars_are_known_where_one_has_them(tmp_path):
    write_tar(tmp_path / "0.tar", range(4))
    assert read_tar(tmp_path / "0.tar").weights is None
    write_tar(tmp_path / "1.tar", range(4, 6), weight=2)
    np.testing.assert_array_equal(read_tar(tmp_path).weights, [np.nan] * 4 + [2, 2])

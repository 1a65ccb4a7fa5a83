"""Truncated, tampered and missing files: each is refused in words that name the file and the fault.

Every case says what its message must contain. None may show a library's own error alone, nor read
a byte outside the model's directory.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import msgpack
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from imagen_jax.convert import t5 as convert
from imagen_jax.convert.safetensors import TensorFiles
from imagen_jax.convert.t5x import load_t5x
from imagen_jax.convert.writing import save_layout, write_layout
from imagen_jax.models import t5
from imagen_jax.text import SentencePieceTokenizer, vocab_size
from tests.convert.t5x_writer import t5x_arrays, write_checkpoint, write_tree

VALUES = {"model_type": "t5", "vocab_size": 12, "d_model": 8, "num_heads": 2, "d_kv": 4}
VALUES |= {"num_layers": 2, "d_ff": 6, "feed_forward_proj": "gated-gelu"}
CONFIG = convert.config_from_huggingface(VALUES)
# What a user must not be left with.
LIBRARY_WORDS = ("SafetensorError", "HeaderTooLarge", "InvalidHeader", "Traceback", "KeyError(")
LIBRARY_WORDS += ("InvalidOffset", "MetadataIncomplete", "DecodeError", "ExtraData", "StackError")


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(np.asarray, t5.init(CONFIG, jax.random.key(0)))


def write_model(path: Path, params: dict, max_shard_bytes: int = 10**9) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(VALUES))
    layout = convert.encoder_layout(CONFIG)
    save_layout(path, "model", layout, params, max_shard_bytes=max_shard_bytes)
    return path


def assert_refused(read, path: Path, kind: type[Exception], *said: str) -> None:
    with pytest.raises(kind) as caught:
        read(path)
    message = str(caught.value)
    for words in said:
        assert words in message
    assert not [word for word in LIBRARY_WORDS if word in message]


# --- one safetensors file ---


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_header(path: Path, header: bytes | dict, data: bytes, length: int | None = None) -> None:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(content) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + content + data)


NORM = "encoder.final_layer_norm.weight"


def with_entry(**values):
    """A case that changes a tensor's entry in the header."""

    def tamper(path: Path) -> None:
        header, data = header_of(path)
        header[NORM] |= values
        put_header(path, header, data)

    return tamper


def with_header(content: bytes, length: int | None = None):
    """A case with another header altogether."""

    def tamper(path: Path) -> None:
        put_header(path, content, header_of(path)[1], length)

    return tamper


def cut(size: int):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def overlapping(path: Path) -> None:
    header, data = header_of(path)
    other = "encoder.block.0.layer.0.layer_norm.weight"
    header[NORM]["data_offsets"] = header[other]["data_offsets"]
    put_header(path, header, data)


def out_of_range(path: Path) -> None:
    header, data = header_of(path)
    end = len(data)
    header[NORM]["data_offsets"] = [end, end + 32]
    put_header(path, header, data)


def with_gap(path: Path) -> None:
    header, data = header_of(path)
    start = header[NORM]["data_offsets"][0]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= start:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    put_header(path, header, data[:start] + bytes(4) + data[start:])


def doubled(path: Path) -> None:
    header, data = header_of(path)
    entry = json.dumps(header[NORM])
    content = json.dumps(header)[:-1] + f', "{NORM}": {entry}' + "}"
    put_header(path, content.encode(), data)


FILES = {
    "empty": (cut(0), "it has only 0 bytes"),
    "cut in the length": (cut(5), "it has only 5 bytes"),
    "cut in the header": (cut(60), "its header ends at byte"),
    "cut in the data": (cut(-4), "its tensors end at byte"),
    "bytes after the data": (
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        "its tensors end at byte",
    ),
    "length 0": (with_header(b"{}", 0), "its header is said to be 0 bytes long"),
    "length beyond the file": (with_header(b"{}", 10**7), "its header ends at byte 10000008"),
    "length of 2^63": (with_header(b"{}", 2**63), f"its header is said to be {2**63} bytes"),
    "length -1": (with_header(b"{}", 2**64 - 1), f"its header is said to be {2**64 - 1} bytes"),
    "garbage": (with_header(b"\xff\xfe garbage"), "in its header, it is not UTF-8"),
    "no JSON": (with_header(b"{'a': 1}"), "in its header, it is not JSON"),
    "a list": (with_header(b"[1, 2]"), "in its header, it holds a list"),
    "nested without end": (with_header(b"[" * 10**6), "in its header, it is nested too deeply"),
    "overlap": (overlapping, "overlaps"),
    "gap": (with_gap, "leaves a gap after"),
    "out of range": (out_of_range, "at byte"),
    "offsets in reverse": (with_entry(data_offsets=[32, 0]), f"{NORM!r} of shape (8,)"),
    "offsets below 0": (with_entry(data_offsets=[-32, 0]), "data_offsets [-32, 0]"),
    "offsets of floats": (with_entry(data_offsets=[0.0, 32.0]), "data_offsets [0.0, 32.0]"),
    "three offsets": (with_entry(data_offsets=[0, 1, 2]), "data_offsets [0, 1, 2]"),
    "a shape that lies": (with_entry(shape=[9]), "of shape (9,) and dtype F32 takes 36 bytes"),
    "a shape beyond all": (with_entry(shape=[2**62, 2**62]), "takes 8507"),
    "a shape below 0": (with_entry(shape=[-8]), "has the shape [-8]"),
    "a shape of text": (with_entry(shape="8"), "has the shape 8"),
    "another dtype": (with_entry(dtype="F64"), "dtype F64 takes 64 bytes"),
    "an unknown dtype": (with_entry(dtype="F128"), "has the dtype 'F128'; known are"),
    "a dtype that is none": (with_entry(dtype=["F32"]), "has the dtype ['F32']"),
    "an entry with more": (with_entry(code="print()"), f"the entry of {NORM!r}"),
    "a name twice": (doubled, f"it has {NORM!r} twice"),
    "NaN": (with_header(b'{"a": NaN}'), "it has NaN"),
}


@pytest.mark.parametrize("case", list(FILES))
def test_a_tampered_file(case, params, tmp_path):
    tamper, said = FILES[case]
    path = write_model(tmp_path / "m", params)
    tamper(path / "model.safetensors")
    name = str(path / "model.safetensors")
    assert_refused(convert.load_huggingface, path, ValueError, name, said)


def test_the_untampered_file_is_read(params, tmp_path):
    _, read = convert.load_huggingface(write_model(tmp_path / "m", params))
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def test_a_file_that_shrinks_while_it_is_read(params, tmp_path):
    path = write_model(tmp_path / "m", params)
    files = TensorFiles(path, "model")
    cut(100)(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors has been cut short"):
        files.read(NORM)


# --- shards and their index ---


INDEX = "model.safetensors.index.json"


def with_index(change):
    def tamper(path: Path) -> None:
        index = json.loads((path / INDEX).read_text())
        change(index)
        (path / INDEX).write_text(json.dumps(index))

    return tamper


def points_to(shard):
    return with_index(lambda index: index["weight_map"].update({NORM: shard}))


def without_a_shard(path: Path) -> None:
    sorted(path.glob("model-*.safetensors"))[1].unlink()


def shards_swapped(path: Path) -> None:
    first, second = sorted(path.glob("model-*.safetensors"))[:2]
    first.rename(path / "x")
    second.rename(first)
    (path / "x").rename(second)


def linked_outside(path: Path) -> None:
    shard = sorted(path.glob("model-*.safetensors"))[0]
    outside = path.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


INDICES = {
    "shard above": (points_to("../secret.safetensors"), ValueError, "'../secret.safetensors'"),
    "absolute shard": (points_to("/etc/passwd"), ValueError, "'/etc/passwd'"),
    "shard with backslashes": (points_to("..\\x"), ValueError, "plain file name"),
    "shard with a drive": (points_to("C:x"), ValueError, "plain file name"),
    "shard with a zero byte": (points_to("a\0b"), ValueError, "plain file name"),
    "shard of a number": (points_to(3), ValueError, "is 3; it must be a plain file name"),
    "shard of a list": (points_to(["a"]), ValueError, "plain file name"),
    "a missing shard": (without_a_shard, FileNotFoundError, "is missing"),
    "an unknown shard": (points_to("model-9.safetensors"), FileNotFoundError, "model-9"),
    "shards swapped": (shards_swapped, ValueError, "disagree about"),
    "a link to outside": (linked_outside, ValueError, "outside the model's directory"),
    "a map that is a list": (
        with_index(lambda index: index.update(weight_map=[NORM])),
        ValueError,
        "it has no object 'weight_map'",
    ),
    "no map": (with_index(dict.clear), ValueError, "it has no object 'weight_map'"),
    "a cut index": (lambda path: cut(50)(path / INDEX), ValueError, "it is not JSON"),
    "a list": (lambda path: (path / INDEX).write_text("[]"), ValueError, "it holds a list"),
}


@pytest.mark.parametrize("case", list(INDICES))
def test_a_tampered_index(case, params, tmp_path):
    tamper, kind, said = INDICES[case]
    path = write_model(tmp_path / "m", params, max_shard_bytes=2000)
    save_file({NORM: np.ones(8, np.float32)}, tmp_path / "secret.safetensors")
    convert.load_huggingface(path)
    tamper(path)
    assert_refused(convert.load_huggingface, path, kind, str(path), said)


def test_a_link_inside_the_hubs_cache_is_followed(params, tmp_path):
    model = tmp_path / "models--org--name"
    (model / "snapshots").mkdir(parents=True)
    (model / "blobs").mkdir()
    path = write_model(model / "snapshots" / "abc", params)
    (path / "model.safetensors").rename(model / "blobs" / "b1")
    (path / "model.safetensors").symlink_to("../../blobs/b1")
    convert.load_huggingface(path)
    # Nor there may a link leave the model.
    (model / "blobs" / "b1").rename(tmp_path / "b1")
    (model / "blobs" / "b1").symlink_to(tmp_path / "b1")
    assert_refused(convert.load_huggingface, path, ValueError, "outside the model's directory")


# --- config.json ---


CONFIGS = {
    "a list": (b"[]", "it holds a list, not an object"),
    "no JSON": (b"model_type: t5", "it is not JSON"),
    "empty": (b"", "it is not JSON"),
    "binary": (bytes(range(128, 200)), "it is not UTF-8 text"),
    "huge": (b" " * (64 * 2**20 + 1), "more than 67108864"),
    "NaN": (json.dumps({**VALUES, "layer_norm_epsilon": float("nan")}).encode(), "it has NaN"),
    "infinite": (json.dumps(VALUES).replace("12", "1e999").encode(), "1e999, which is too large"),
    "a name twice": (b'{"d_model": 8, "d_model": 16}', "it has 'd_model' twice"),
    "no model type": (b"{}", "The model type is None"),
    "another model": (json.dumps({**VALUES, "model_type": "clip"}).encode(), "'clip'"),
    "negative": (json.dumps({**VALUES, "d_model": -8}).encode(), "d_model is -8"),
    "zero": (json.dumps({**VALUES, "num_heads": 0}).encode(), "num_heads is 0"),
    "text": (json.dumps({**VALUES, "d_ff": "6"}).encode(), "d_ff is 6; it must be an integer"),
    "a fraction": (json.dumps({**VALUES, "d_kv": 4.5}).encode(), "d_kv is 4.5"),
    "layers beyond all": (json.dumps({**VALUES, "num_layers": 10**9}).encode(), "from 1 to 1024"),
    "size beyond all": (
        json.dumps({**VALUES, "vocab_size": 10**18}).encode(),
        "vocab_size is 1000",
    ),
    "a size missing": (
        json.dumps({name: value for name, value in VALUES.items() if name != "d_ff"}).encode(),
        "d_ff is missing",
    ),
    "an odd activation": (json.dumps({**VALUES, "feed_forward_proj": [1]}).encode(), "is [1]"),
    "other sizes": (json.dumps({**VALUES, "d_ff": 7}).encode(), "is (2, 8, 6), not (2, 8, 7)"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
def test_a_tampered_config(case, params, tmp_path):
    content, said = CONFIGS[case]
    path = write_model(tmp_path / "m", params)
    (path / "config.json").write_bytes(content)
    assert_refused(convert.load_huggingface, path, ValueError, str(path), said)


def test_missing_files(params, tmp_path):
    path = write_model(tmp_path / "m", params)
    (path / "config.json").rename(tmp_path / "c")
    assert_refused(convert.load_huggingface, path, FileNotFoundError, str(path / "config.json"))
    (tmp_path / "c").rename(path / "config.json")
    (path / "model.safetensors").unlink()
    assert_refused(convert.load_huggingface, path, FileNotFoundError, "model.safetensors")
    assert_refused(convert.load_huggingface, tmp_path / "no", FileNotFoundError, "config.json")


# --- the tokenizer ---


@pytest.mark.parametrize("size", [0, 10, 1000, -3])
def test_a_cut_tokenizer(size, repository, tmp_path):
    whole = (repository / "imagen_jax" / "pretrained" / "emoji" / "spiece.model").read_bytes()
    path = tmp_path / "spiece.model"
    path.write_bytes(whole[:size])

    def read(path):
        return vocab_size(SentencePieceTokenizer(str(path)))

    assert_refused(read, path, ValueError, str(path), "is not a SentencePiece model")


# --- T5X ---


@pytest.fixture
def step(params, tmp_path) -> Path:
    arrays = t5x_arrays(write_layout(convert.encoder_layout(CONFIG), params), scanned=False)
    write_checkpoint(tmp_path / "checkpoint_1", arrays, partitioned=True)
    load_t5x(tmp_path / "checkpoint_1")
    return tmp_path / "checkpoint_1"


WO = "encoder/layers_1/mlp/wo/kernel"
FOLDER = "target.encoder.layers_1.mlp.wo.kernel"


def with_spec(**values):
    """A case that changes the spec in place of an array."""

    def tamper(step: Path) -> None:
        tree = msgpack.unpackb((step / "checkpoint").read_bytes(), ext_hook=msgpack.ExtType)
        spec = tree["optimizer"]["target"]["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
        spec |= values
        (step / "checkpoint").write_bytes(msgpack.packb(tree))

    return tamper


def stored_at(path, driver: str = "file", **more):
    return with_spec(kvstore={"driver": driver, "path": path, **more})


def with_metadata(**values):
    def tamper(step: Path) -> None:
        path = step / FOLDER / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return tamper


def with_content(content: bytes):
    return lambda step: (step / "checkpoint").write_bytes(content)


def with_inline(value):
    def tamper(step: Path) -> None:
        tree = msgpack.unpackb((step / "checkpoint").read_bytes(), ext_hook=msgpack.ExtType)
        tree["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = value
        (step / "checkpoint").write_bytes(msgpack.packb(tree))

    return tamper


def array(shape, dtype: str, content: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


def linked_folder(step: Path) -> None:
    (step / FOLDER).rename(step.parent / "elsewhere")
    (step / FOLDER).symlink_to(step.parent / "elsewhere")


def cut_chunk(step: Path) -> None:
    chunk = step / FOLDER / "1.1"
    chunk.write_bytes(chunk.read_bytes()[:12])


REMOTE = "only a directory beside the checkpoint is read"
CHECKPOINTS = {
    "path above": (stored_at("../../secret"), ValueError, "its path is '../../secret'"),
    "absolute path": (stored_at("/etc"), ValueError, "its path is '/etc'"),
    "path with backslashes": (stored_at("..\\x"), ValueError, "a plain name"),
    "path of its own folder": (stored_at("."), ValueError, "a plain name"),
    "path of a number": (stored_at(3), ValueError, "its path is 3"),
    "no path": (with_spec(kvstore={"driver": "file"}), ValueError, "its path is None"),
    "a link to outside": (linked_folder, ValueError, "outside the model's directory"),
    "HTTP": (
        with_spec(kvstore={"driver": "http", "base_url": "http://localhost"}),
        ValueError,
        REMOTE,
    ),
    "a URL": (with_spec(kvstore="http://localhost/x"), ValueError, REMOTE),
    "a bucket": (stored_at("x", "gcs", bucket="somebodys"), ValueError, REMOTE),
    "memory": (stored_at("x", "memory"), ValueError, REMOTE),
    "another driver": (with_spec(driver="json"), ValueError, "driver 'json'; 'zarr' is read"),
    "a stack of drivers": (with_spec(driver="cast", base={}), ValueError, "driver 'cast'"),
    "another shape": (
        with_spec(metadata={"shape": [6, 9]}),
        ValueError,
        "its shape is [6, 9], but",
    ),
    "a lost array": (lambda step: shutil.rmtree(step / FOLDER), FileNotFoundError, FOLDER),
    "a lost chunk": (
        lambda step: os.remove(step / FOLDER / "0.1"),
        ValueError,
        "3 of the 4 chunks",
    ),
    "a cut chunk": (cut_chunk, ValueError, f"{FOLDER} cannot be read as a zarr array"),
    "no metadata": (
        lambda step: (step / FOLDER / ".zarray").unlink(),
        FileNotFoundError,
        ".zarray",
    ),
    "metadata of a huge shape": (
        with_metadata(shape=[10**12, 8]),
        ValueError,
        "its shape is [1000000000000, 8]",
    ),
    "metadata of a negative shape": (with_metadata(shape=[-6, 8]), ValueError, "[-6, 8]"),
    "metadata of chunks of 0": (with_metadata(chunks=[0, 4]), ValueError, "its chunks is [0, 4]"),
    "metadata of more chunks": (with_metadata(chunks=[1, 1]), ValueError, "4 of the 48 chunks"),
    "metadata of objects": (with_metadata(dtype="|O"), ValueError, "has the dtype '|O'"),
    "metadata of a record": (with_metadata(dtype=[["a", "<f4"]]), ValueError, "has the dtype"),
    "metadata of filters": (with_metadata(filters=[{"id": "pickle"}]), ValueError, "filters"),
    "another compression": (with_metadata(compressor={"id": "x"}), ValueError, "compressed by 'x'"),
    "metadata cut": (
        lambda step: cut(20)(step / FOLDER / ".zarray"),
        ValueError,
        "is not the metadata of a zarr array: it is not JSON",
    ),
    "empty": (with_content(b""), ValueError, "is not a T5X checkpoint's msgpack file"),
    "cut": (lambda step: cut(200)(step / "checkpoint"), ValueError, "is not a T5X checkpoint's"),
    "a pickle": (with_content(b"\x80\x04]\x94."), ValueError, "is not a T5X checkpoint's"),
    "a list": (with_content(msgpack.packb([1, 2])), ValueError, "it holds a list, not a tree"),
    "nested without end": (with_content(b"\x91" * 100_000), ValueError, "nested too deeply"),
    "a list of 4 billion": (with_content(b"\xdd\xff\xff\xff\xff"), ValueError, "is not a T5X"),
    "no parameters": (with_content(msgpack.packb({"version": 3})), ValueError, "no tree"),
    "a name twice": (with_content(b"\x82\xa1a\x01\xa1a\x02"), ValueError, "'a' twice"),
    "a name that is a number": (with_content(b"\x81\x01\x02"), ValueError, "is not a T5X"),
    "another extension": (
        with_inline(msgpack.ExtType(42, b"os.system")),
        ValueError,
        "msgpack's extension type 42",
    ),
    "an array that lies": (
        with_inline(array([9], "float32", bytes(32))),
        ValueError,
        "of shape (9,) and dtype float32 in 32 bytes",
    ),
    "an array of objects": (
        with_inline(array([8], "object", bytes(64))),
        ValueError,
        "an array of dtype 'object'",
    ),
    "an array of a negative shape": (
        with_inline(array([-1], "float32", bytes(32))),
        ValueError,
        "an array of shape [-1]",
    ),
    "an array of rubbish": (
        with_inline(msgpack.ExtType(1, b"\xc1\xc1")),
        ValueError,
        "is not a T5X checkpoint's",
    ),
    "text for an array": (with_inline("ones"), ValueError, "it is a str, not an array"),
    "another width": (
        with_inline(array([7], "float32", bytes(28))),
        ValueError,
        "final_norm/scale is (7,), not (8,)",
    ),
}


@pytest.mark.parametrize("case", list(CHECKPOINTS))
def test_a_tampered_t5x_checkpoint(case, step):
    tamper, kind, said = CHECKPOINTS[case]
    tamper(step)
    assert_refused(load_t5x, step, kind, str(step), said)


def test_shapes_that_make_no_encoder(step):
    tree = {"optimizer": {"target": {"token_embedder": {"embedding": np.zeros((4, 2))}}}}
    write_tree(step, tree)
    assert_refused(load_t5x, step, ValueError, str(step), "has no encoder/layers_0/attention/query")


def test_bytes_of_other_files_are_never_taken_for_tensors(params, tmp_path):
    """A whole safetensors file of another model has other names: none of it is used."""
    path = write_model(tmp_path / "m", params)
    (path / "model.safetensors").write_bytes(save({"other": np.zeros(3)}))
    assert_refused(convert.load_huggingface, path, ValueError, "missing", "1 unused: other")

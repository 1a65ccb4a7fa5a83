"""Truncated, tampered and missing files: each is refused in words that name the file and the fault.

Every case says what its message must contain. None may show a library's own error alone, nor read
a byte outside the model's directory.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from imagen_jax.convert import t5 as convert
from imagen_jax.models import t5
from imagen_jax.storage.layout_files import save_layout
from imagen_jax.storage.safetensors import open_tensors
from imagen_jax.text.tokenizers import SentencePieceTokenizer, vocab_size
from tests.convert.refusals import assert_refused

VALUES = {"model_type": "t5", "vocab_size": 12, "d_model": 8, "num_heads": 2, "d_kv": 4}
VALUES |= {"num_layers": 2, "d_ff": 6, "feed_forward_proj": "gated-gelu"}
CONFIG = convert.config_from_huggingface(VALUES)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(np.asarray, t5.init(CONFIG, jax.random.key(0)))


def write_model(path: Path, params: dict, max_shard_bytes: int = 10**9) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(VALUES))
    layout = convert.encoder_layout(CONFIG)
    save_layout(path, "model", layout, params, max_shard_bytes=max_shard_bytes)
    return path


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
    "empty": (cut(0), "it is empty (0 bytes)"),
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
    "a shape of text": (with_entry(shape="8"), "has the shape '8'"),
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
    files = open_tensors(path, "model")
    cut(100)(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors has been cut short"):
        files[NORM][()]


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
    "a missing shard": (without_a_shard, ValueError, "is missing"),
    "an unknown shard": (points_to("model-9.safetensors"), ValueError, "model-9"),
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
    "empty": (b"", "it is empty (0 bytes)"),
    "binary": (bytes(range(128, 200)), "it is not UTF-8 text"),
    "huge": (b" " * (64 * 2**20 + 1), "more than 67108864"),
    "NaN": (json.dumps({**VALUES, "layer_norm_epsilon": float("nan")}).encode(), "it has NaN"),
    "infinite": (json.dumps(VALUES).replace("12", "1e999").encode(), "1e999, which is too large"),
    "a name twice": (b'{"d_model": 8, "d_model": 16}', "it has 'd_model' twice"),
    "no model type": (b"{}", "model_type is missing"),
    "another model": (json.dumps({**VALUES, "model_type": "clip"}).encode(), "'clip'"),
    "negative": (json.dumps({**VALUES, "d_model": -8}).encode(), "d_model is -8"),
    "zero": (json.dumps({**VALUES, "num_heads": 0}).encode(), "num_heads is 0"),
    "text": (json.dumps({**VALUES, "d_ff": "6"}).encode(), "d_ff is '6'; supported is an integer"),
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
    "other sizes": (json.dumps({**VALUES, "d_ff": 7}).encode(), "is (6, 8), not (7, 8)"),
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
    whole = (repository / "imagen_jax" / "pretrained" / "icons" / "spiece.model").read_bytes()
    path = tmp_path / "spiece.model"
    path.write_bytes(whole[:size])

    def read(path):
        return vocab_size(SentencePieceTokenizer(str(path)))

    assert_refused(read, path, ValueError, str(path), "is not a SentencePiece model")


def test_bytes_of_other_files_are_never_taken_for_tensors(params, tmp_path):
    """A whole safetensors file of another model has other names: none of it is used."""
    path = write_model(tmp_path / "m", params)
    (path / "model.safetensors").write_bytes(save({"other": np.zeros(3)}))
    assert_refused(convert.load_huggingface, path, ValueError, "missing", "1 unused: other")

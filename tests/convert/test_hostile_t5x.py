"""Tampered T5X checkpoints: refused in words that name the file and the fault, and nothing opened
outside their folder, nothing executed.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import msgpack
import numpy as np
import pytest

from imagen_jax.convert import t5 as convert
from imagen_jax.convert.t5x import load_t5x
from imagen_jax.models import t5
from imagen_jax.storage.layout_files import write_layout
from tests.convert.refusals import assert_refused
from tests.convert.t5x_writer import t5x_arrays, write_checkpoint, write_tree

CONFIG = t5.T5Config(vocab_size=12, d_model=8, num_heads=2, head_dim=4, num_layers=2, d_ff=6)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.tree.map(np.asarray, t5.init(CONFIG, jax.random.key(0)))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


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
        lambda step: cut(step / FOLDER / ".zarray", 20),
        ValueError,
        "is not the metadata of a zarr array: it is not JSON",
    ),
    "empty": (with_content(b""), ValueError, "is not a T5X checkpoint's msgpack file"),
    "cut": (lambda step: cut(step / "checkpoint", 200), ValueError, "is not a T5X checkpoint's"),
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
        "encoder/encoder_norm/scale is (7,), not (8,)",
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

"""What stands in the place of a file is named by every reader; so is a path that is not there."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from imagen_jax.convert.frozen_graph import read_constants
from imagen_jax.convert.lora import LoraFile
from imagen_jax.convert.t5x_checkpoint import read_msgpack
from imagen_jax.data.captions import read_captions, read_text
from imagen_jax.data.coco import read_annotations
from imagen_jax.data.shard_sources import read_tar
from imagen_jax.data.sources import read_npz
from imagen_jax.evaluation.prompts import read_prompts
from imagen_jax.evaluation.reference import read_reference
from imagen_jax.images.decoding import decode
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import read_model
from imagen_jax.storage.safetensors import read_index
from imagen_jax.storage.tensor_file import open_file
from imagen_jax.storage.wrong_files import START, absent, what_it_is
from imagen_jax.text.tokenizers import SentencePieceTokenizer, vocab_size

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 17735\n"
HTML = b"\n<!DOCTYPE html>\n<html lang=en><head><title>Sign in</title></head></html>"
XML = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'
JSON = b'{"error": "Repository not found", "status": 404}'


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 99)
    return file.getvalue()


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


CONTENTS = {
    "pointer": (POINTER, "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    "html": (HTML, "an HTML page"),
    "html in capitals after a note": (b"<!-- x --><HTML><BODY>", "an HTML page"),
    "xml": (XML, "XML text, such as a storage service's error"),
    "answer of a server": (JSON, "a server's error message, 'Repository not found'"),
    "empty": (b"", "empty (0 bytes)"),
    "zeros": (bytes(5000), "nothing but zero bytes"),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
    "zip": (zipped("a.txt"), "a zip archive, whatever its name says"),
    "torch": (zipped("archive/data.pkl"), "a zip archive of PyTorch (a pickle)"),
    "gzip": (gzip.compress(b"x" * 99), "compressed with gzip; unpack it"),
    "bzip2": (bz2.compress(b"x"), "compressed with bzip2"),
    "xz": (lzma.compress(b"x"), "compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file"),
    "png": (image("PNG"), "an image"),
    "jpeg": (image("JPEG"), "an image"),
    "webp": (image("WEBP"), "an image"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(9), "HEIC; pillow-heif can convert it"),
    "svg": (b'<?xml version="1.0"?>\n<!-- a --><svg width="3">', "an SVG drawing"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
    "of macOS": (b"\0\x05\x16\x07\0\x02\0\0", "notes of macOS"),
    "utf-16": ("text".encode("utf-16"), "text in UTF-16"),
    "text": (b"# A model card\nof cats", "text that begins '# A model card'"),
    "safetensors": (save({"a": np.zeros(2)}), "a safetensors file"),
}


@pytest.mark.parametrize("case", list(CONTENTS))
def test_contents_are_told(case):
    content, said = CONTENTS[case]
    assert what_it_is(content[:START], len(content)).startswith(said)


def test_what_is_expected_is_not_told():
    expected = {"zip": "zip", "text": "text", "gzip": "gzip", "png": "image", "empty": "empty"}
    for case, kind in (expected | {"safetensors": "safetensors"}).items():
        content, _ = CONTENTS[case]
        assert what_it_is(content, len(content), (kind,)) is None
    for content in (b'{"error": 1, "weight_map": {}}', b"[1]", b"{", "é, ü".encode()):
        assert what_it_is(content, len(content), ("text",)) is None
    # Words that are other files' beginnings, in text.
    for line in (b"GGUF a llama", b"PAR1 golf", b"Rar!", b"%PDF-", b"a <html> tag", b"BZh9"):
        assert what_it_is(line, len(line), ("text",)) is None
    assert what_it_is("ü".encode() * START, 9999, ("text",)) is None
    cut = ("a" + "ü" * START).encode()[:START]
    assert what_it_is(cut, 9999).startswith("text that begins")
    assert what_it_is(bytes(range(128, 256)), 128) is None


def as_model(path: Path) -> None:
    path.rename(path.with_name("model.json"))
    read_model(path.parent)


def as_tokenizer(path: Path) -> None:
    vocab_size(SentencePieceTokenizer(str(path)))


def as_prompts(path: Path) -> None:
    read_prompts(str(path))


READERS = {
    "safetensors": (open_file, "model.safetensors"),
    "adapter": (LoraFile, "lora.safetensors"),
    "index": (read_index, "model.safetensors.index.json"),
    "model": (as_model, "x.json"),
    "tokenizer": (as_tokenizer, "spiece.model"),
    "npz": (read_npz, "images.npz"),
    "graph": (read_constants, "graph.pb"),
    "T5X": (read_msgpack, "checkpoint"),
    "tar": (read_tar, "00000.tar"),
    "captions.jsonl": (read_captions, "captions.jsonl"),
    "captions.csv": (read_captions, "captions.csv"),
    "caption": (read_text, "a.txt"),
    "prompts": (as_prompts, "prompts.txt"),
    "prompts.json": (as_prompts, "prompts.json"),
    "COCO": (read_annotations, "captions_val2014.json"),
    "reference": (read_reference, "reference.safetensors"),
    "image": (decode, "a.png"),
}


@pytest.mark.parametrize("reader", list(READERS))
def test_every_reader_names_them(reader, tmp_path, caplog):
    read, name = READERS[reader]
    for case in ("pointer", "html", "xml", "answer of a server", "gzip", "pickle"):
        content, said = CONTENTS[case]
        folder = tmp_path / case
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(folder / name)
        message = str(caught.value)
        assert said in message, (reader, case, message)
        assert str(folder) in message or reader == "image"  # its caller names it
        assert len(message) < 400 + len(str(folder))
        assert "\n" not in message


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_a_file_that_is_cut_short_is_said_to_be(name, tmp_path):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, image=np.zeros((4, 8, 8, 3), np.uint8))
    else:
        path.write_bytes(save({"a": np.zeros(99)}))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut short"):
        (read_npz if name.endswith("npz") else open_file)(path)


# --- paths ---


def test_an_absent_path_is_said_to_be_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    Path("models/mine/model.json").touch()
    assert absent("models/mne") == "There is no file models/mne; did you mean models/mine?"
    assert absent("qqq", "folder") == "There is no folder qqq."
    assert absent("icon", "folder", ["icons"]).endswith("; did you mean icons?")
    assert absent("model/mine/x.json") == (
        "There is no file model/mine/x.json: there is no folder model; did you mean models?"
    )
    assert absent("models/mine") == "models/mine is a folder, not a file."
    assert absent("models/mine/model.json", "folder").endswith("is a file, not a folder.")


@pytest.mark.parametrize("source", ["./models/mne", "models/mne", "runs/a/b/c", "mne", "icosn"])
def test_a_mistyped_model_is_said_to_be_absent_first(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises((ValueError, ModuleNotFoundError)) as caught:
        load_model(source)
    assert str(caught.value).startswith(f"There is no folder {Path(source)}")
    if source.endswith("s/mne"):
        assert "did you mean models/mine?" in str(caught.value)
    if source == "icosn":
        assert str(caught.value).endswith("did you mean icons?")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"model\.json is a file, not a folder"):
        load_model(tmp_path / "model.json")

"""Names to directories: local ones, the hub's cache without a network, and its refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from safetensors.numpy import save

from imagen_jax.convert import hub
from imagen_jax.convert import t5 as convert
from imagen_jax.models import t5
from imagen_jax.storage.layout_files import write_layout

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub is reached through it")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_local_directory_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert hub.resolve(tmp_path / "org" / "model") == tmp_path / "org" / "model"
    monkeypatch.chdir(tmp_path)  # "org/model" is here: no download
    assert hub.resolve("org/model") == Path("org/model")
    with pytest.raises(ValueError, match="no revision 'v1'"):
        hub.resolve("org/model", revision="v1")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        hub.resolve(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "../x", "/none/there", "org/..", "./org/model", "", "org/mo del"]
)
def test_what_is_neither_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'organization/model'"):
        hub.resolve(name)


def matches(name: str, patterns: list[str]) -> bool:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects([name], allow_patterns=patterns)) == [name]


WANTED = {
    "model_index.json": True,
    "unet/config.json": True,
    "unet/diffusion_pytorch_model.safetensors": True,
    "unet/diffusion_pytorch_model.fp16.safetensors": False,
    "text_encoder/model-00001-of-00002.safetensors": True,
    "text_encoder/model.fp16-00001-of-00002.safetensors": False,
    "text_encoder/model.safetensors.index.json": True,
    "tokenizer/spiece.model": True,
    "unet/diffusion_pytorch_model.bin": False,
    "text_encoder/pytorch_model-00001-of-00002.bin": False,
    "pytorch_model.ckpt": False,
    "weights.pt": False,
    "safety_checker/model.safetensors": False,
    "watermarker/diffusion_pytorch_model.safetensors": False,
    "README.md": False,
}


def fetched(call: dict, name: str) -> bool:
    return matches(name, call["allow_patterns"]) and not matches(name, call["ignore_patterns"])


def test_the_files_that_are_fetched(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(name, **options):
        calls.append({"name": name, **options})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.resolve("some-org/some-model", revision="v2") == tmp_path
    assert (calls[0]["name"], calls[0]["revision"]) == ("some-org/some-model", "v2")
    assert {name: fetched(calls[0], name) for name in WANTED} == WANTED
    hub.resolve("some-org/some-model", variant="fp16")
    half = {**WANTED, "unet/diffusion_pytorch_model.safetensors": False}
    half["text_encoder/model-00001-of-00002.safetensors"] = False
    half["unet/diffusion_pytorch_model.fp16.safetensors"] = True
    half["text_encoder/model.fp16-00001-of-00002.safetensors"] = True
    assert {name: fetched(calls[1], name) for name in half} == half
    # Pickles stay out even where everything is asked for.
    hub.resolve("some-org/some-model", allow_patterns=["*"])
    assert not fetched(calls[2], "unet/diffusion_pytorch_model.bin")
    assert fetched(calls[2], "notes.txt")


def hub_error(kind: str) -> Exception:
    import httpx2 as client  # the hub's own HTTP client
    from huggingface_hub import errors

    if kind == "LocalEntryNotFoundError":
        return errors.LocalEntryNotFoundError("Cannot find the snapshot\nmore lines")
    response = client.Response(403, request=client.Request("GET", "http://localhost/x"))
    return getattr(errors, kind)("403 Client Error\n\nmore lines", response=response)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("GatedRepoError", PermissionError, r"org/model asks for its terms .*hf auth login"),
        (
            "RepositoryNotFoundError",
            FileNotFoundError,
            r"no folder org/model.* Nor is there",
        ),
        ("RevisionNotFoundError", FileNotFoundError, r"org/model .* has no revision 'v3'"),
        (
            "LocalEntryNotFoundError",
            FileNotFoundError,
            r"org/model at revision 'v3'.* HF_HUB_OFFLINE",
        ),
        ("HfHubHTTPError", OSError, r"org/model at revision 'v3' could not be fetched .*403"),
    ],
)
def test_refusals_say_what_to_do(kind, error, said, tmp_path, monkeypatch):
    pytest.importorskip("httpx2", reason="huggingface_hub's errors hold a response of its client")

    def snapshot_download(*_, **__):
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said) as caught:
        hub.resolve("org/model", revision="v3")
    assert "\n" not in str(caught.value)


def test_without_huggingface_hub_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"imagen_jax\[hub\]"):
        hub.resolve("org/model")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The hub's cache, its network off, with one model: its snapshot is of links to blobs."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "hub" / "models--org--model"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    return model


def put_into(cache: Path, name: str, content: bytes) -> None:
    blob = cache / "blobs" / f"blob-{name}"
    blob.write_bytes(content)
    (cache / "snapshots" / COMMIT / name).symlink_to(blob)


def test_the_cache_serves_without_a_network(cache):
    values = {"model_type": "t5", "vocab_size": 9, "d_model": 4, "num_heads": 1, "d_kv": 2}
    values |= {"num_layers": 1, "d_ff": 6, "feed_forward_proj": "gated-gelu"}
    config = convert.config_from_huggingface(values)
    params = t5.init(config, jax.random.key(0))
    tensors = write_layout(convert.encoder_layout(config), params)
    put_into(cache, "config.json", json.dumps(values).encode())
    put_into(cache, "model.safetensors", save({n: t.copy() for n, t in tensors.items()}))
    directory = hub.resolve("org/model")
    assert directory == cache / "snapshots" / COMMIT
    read_config, read = convert.load_huggingface(directory)
    assert read_config == config
    assert (read["token_embedding"] == params["token_embedding"]).all()


def test_what_the_cache_lacks_is_said(cache):
    with pytest.raises(FileNotFoundError, match=r"org/other is not .* in the cache"):
        hub.resolve("org/other")


def test_a_fresh_process_without_a_network_says_so(tmp_path):
    """What huggingface_hub imports late is there, whatever was imported before."""
    program = "from imagen_jax.convert import hub; hub.resolve('org/model')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "org/model is not (whole) in the cache" in done.stderr

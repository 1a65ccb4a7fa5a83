"""Feature networks by scripts/convert.py, and `load_extractor` on what it wrote."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from feature_references import random_state, save_pth

from imagen_jax.commands import convert as convert_script
from imagen_jax.convert.inception import params_from_pytorch
from imagen_jax.evaluation.feature_files import (
    is_feature_network,
    load_extractor,
    read_network,
    write_network,
)
from imagen_jax.evaluation.features import FeatureNetwork
from imagen_jax.models import clip

CONFIG = clip.ClipConfig(
    clip.TowerConfig(16, 2, 1, 24, "gelu"), clip.TowerConfig(16, 2, 2, 24, "gelu"), 12, 32, 8, 50, 9
)


def convert(model: Path, out: Path, *options: str) -> None:
    convert_script.main(["--model", str(model), "--out", str(out), "--to", "imagen_jax", *options])


@pytest.fixture
def network(key):
    return FeatureNetwork("tiny", CONFIG, jax.jit(lambda key: clip.init(CONFIG, key))(key))


def test_inception_from_pytorch_fids_file(tmp_path):
    state = random_state()
    source = save_pth(tmp_path / "inception.pth", state)
    convert(source, tmp_path / "out")
    found = read_network(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, found.params, params_from_pytorch(state))
    extractor = load_extractor(tmp_path / "out", resize="clean")
    written = json.loads((tmp_path / "out" / "features.json").read_text())
    assert (extractor.kind, extractor.name, extractor.resize) == ("inception", "inception", "clean")
    assert extractor.fingerprint == written["fingerprint"]
    assert extractor.mesh.size == 8
    with pytest.raises(ValueError, match=r"only imagen-jax convert reads"):
        load_extractor(source)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (ran,))

    for name, content in (("code", {"a": Hostile()}), ("list", [1, 2]), ("text", None)):
        path = tmp_path / f"{name}.pth"
        if content is None:
            path.write_text("no pickle")
        else:
            torch.save(content, path)
        with pytest.raises(SystemExit) as stopped:
            convert(path, tmp_path / "out")
        assert stopped.value.code.startswith(f"error: {path} is not a state dict of PyTorch: ")
        assert "\n" not in stopped.value.code
        assert not (tmp_path / "out").exists()
    assert not ran.exists()


def test_what_is_no_pth_file_is_named_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pointer.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1"
    )
    (tmp_path / "zip.pth").write_bytes(b"\x80\x02not looked into")
    for name, said in (
        ("pointer", "it is a Git LFS pointer"),
        ("none", "There is no file .*none.pth"),
        ("zip", "It comes with: pip install torch$"),
    ):
        with pytest.raises(SystemExit, match=said):
            convert(tmp_path / f"{name}.pth", tmp_path / "out")


def test_there_and_back(network, tmp_path):
    write_network(tmp_path, network)
    found = read_network(tmp_path)
    assert found.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, found.params, network.params)
    first = load_extractor(tmp_path)
    changed = jax.tree.map(np.array, network.params)
    changed["text"]["projection"]["kernel"][0, 0] += 1
    write_network(tmp_path / "changed", FeatureNetwork("tiny", CONFIG, changed))
    assert load_extractor(tmp_path / "changed").fingerprint != first.fingerprint
    write_network(tmp_path / "half", network, dtype="float16")
    assert relative_size(tmp_path / "half", tmp_path) < 0.6


def relative_size(first: Path, second: Path) -> float:
    sizes = [(place / "features.safetensors").stat().st_size for place in (first, second)]
    return sizes[0] / sizes[1]


def test_clip_takes_its_tokenizer_along(network, tmp_path):
    pytest.importorskip("tokenizers")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    letters = [chr(ord("a") + number) for number in range(10)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (source / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    config = clip.ClipConfig(CONFIG.vision, CONFIG.text, 12, 32, 8, 22, 9, 21)
    params = jax.jit(lambda key: clip.init(config, key))(jax.random.key(0))
    write_network(out, FeatureNetwork("tiny", config, params, source))
    extractor = load_extractor(out, batch_size=1)
    texts = extractor.texts(["ab", "ab", "ba"])
    assert texts.shape == (3, 12)
    np.testing.assert_array_equal(texts[0], texts[1])
    assert np.abs(texts[0] - texts[2]).max() > 1e-3
    write_network(tmp_path / "without", FeatureNetwork("tiny", config, params))
    with pytest.raises(ValueError, match="no tokenizer"):
        load_extractor(tmp_path / "without").texts(["ab"])


def test_faults_are_named(network, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no feature network"):
        load_extractor(tmp_path)
    assert not is_feature_network(tmp_path)
    write_network(tmp_path, network)
    path = tmp_path / "features.json"
    sound = json.loads(path.read_text())
    for change, said in (
        ({"kind": "vgg"}, "'kind' is 'vgg'; it must be one of 'inception', 'clip'"),
        ({"name": 3}, "'name' is 3; it must be of type str"),
        ({"config": None}, "CLIP and DINOv2 need 'config'"),
        ({"config": {**sound["config"], "depth": 2}}, "depth"),
        ({"config": {**sound["config"], "text": 1}}, r"'config\.text' is 1"),
        ({"config": {**sound["config"], "patch_size": "8"}}, r"'config\.patch_size' is '8'"),
        ({"config": {**sound["config"], "vocab_size": 51}}, "misshapen: text/token_embedding"),
    ):
        path.write_text(json.dumps(sound | change))
        with pytest.raises(ValueError, match=said):
            load_extractor(tmp_path)

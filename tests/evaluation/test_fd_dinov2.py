"""FD-DINOv2 from a folder of Hugging Face to the figure, against transformers, Pillow and SciPy."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import convert, evaluate
from imagen_jax.evaluation import networks
from imagen_jax.evaluation.feature_files import load_extractor, write_network
from imagen_jax.evaluation.features import FeatureNetwork
from imagen_jax.evaluation.reference import read_reference
from imagen_jax.models import dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
linalg = pytest.importorskip("scipy.linalg")

COUNTS = {"made": 20, "true": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with registers, whose positions transformers places as Meta does."""
    torch.manual_seed(0)
    model = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=518,
            patch_size=14,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    place = tmp_path_factory.mktemp("hub") / "tiny-dinov2"
    model.save_pretrained(place)
    return model, place


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of 40x40, blocks of colour, each folder with its own tint."""
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for name, count in COUNTS.items():
        (place / name).mkdir()
        tint = rng.uniform(0.4, 1, 3)
        for i in range(count):
            blocks = rng.integers(0, 256, (5, 5, 3)).repeat(8, 0).repeat(8, 1)
            Image.fromarray((blocks * tint).astype(np.uint8)).save(place / name / f"{i:02d}.png")
    return place


def reference_features(model, folder) -> np.ndarray:
    """dgm-eval's preprocessing: 8 bits, bicubic, 224x224, ImageNet's mean and deviation."""
    pixels = [
        np.asarray(Image.open(folder / f"{i:02d}.png").resize((224, 224), Image.Resampling.BICUBIC))
        for i in range(COUNTS[folder.name])
    ]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (np.stack(pixels) / 255 - mean) / std
    with torch.no_grad():
        batch = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
        return model(pixel_values=batch).pooler_output.double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """arXiv 1706.08500, eq. 6, by SciPy's matrix square root."""
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = a.mean(axis=0) - b.mean(axis=0)
    return gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of as many a as b, kernel (x.y / dim + 1)^3."""
    k = [((x @ y.T) / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    n = len(a)
    return sum((m.sum() - np.trace(m)) / (n * (n - 1)) for m in k[:2]) - 2 * k[2].mean()


def test_fd_and_kd_of_two_folders(model, folders, tmp_path, capsys, monkeypatch):
    model, source = model
    own, out = tmp_path / "models" / "dinov2", tmp_path / "out"
    convert.main(["--model", str(source), "--to", "imagen_jax", "--out", str(own)])
    monkeypatch.chdir(tmp_path)  # where it is found without --features
    files = str(folders / "made"), str(folders / "true")
    metrics = ["--metrics", "fd_dinov2,kd_dinov2"]
    evaluate.main([*files, *metrics, "--resize", "dgm_eval,edm2", "--out", str(out)])
    report = json.loads((out / "report.json").read_text())
    made, true = (reference_features(model, folders / name) for name in COUNTS)
    name = "tiny-dinov2, dgm_eval"
    assert list(report["fd_dinov2"]) == [name, "tiny-dinov2, edm2"]
    found = report["fd_dinov2"][name]
    assert found["value"] == pytest.approx(frechet(made, true), rel=1e-4)
    # Eight bits against floating point: near, and not the same.
    edm2 = report["fd_dinov2"]["tiny-dinov2, edm2"]["value"]
    assert edm2 != found["value"]
    assert edm2 == pytest.approx(found["value"], rel=0.05)
    assert any("is not DINOv2 ViT-L/14" in reason for reason in found["off_protocol"])
    kd, draw = report["kd_dinov2"][name], np.random.RandomState(2020)
    each = [
        kernel(made[draw.choice(20, 20, replace=False)], true[draw.choice(24, 20, replace=False)])
        for _ in range(100)
    ]
    assert kd["value"] == pytest.approx(np.mean(each), rel=1e-4)
    assert kd["deviation"] == pytest.approx(np.std(each), rel=1e-3)
    assert "FD-DINOv2" in (out / "report.html").read_text()
    assert "FD-DINOv2  " in capsys.readouterr().out


def test_a_reference_is_of_one_network(model, folders, tmp_path):
    """Training reads it under the same name; other positions or weights are refused."""
    _, source = model
    file = tmp_path / "true.safetensors"
    making = ["--make_reference", str(folders / "true"), "--reference", str(file)]
    evaluate.main([*making, "--features", str(source)])
    reference = read_reference(file)
    (extractor,) = networks.read_extractors([str(source)])
    assert reference.of(extractor).shape == (24, 8)
    assert extractor.describe()["config"]["registers"] == 4
    changed = json.loads((source / "config.json").read_text()) | {"num_attention_heads": 4}
    other = tmp_path / "tiny-dinov2"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(changed))
    shutil.copyfile(source / "model.safetensors", other / "model.safetensors")
    (extractor,) = networks.read_extractors([str(other)])
    with pytest.raises(ValueError, match="make it again with --make_reference"):
        reference.of(extractor)


def test_a_network_is_read_as_it_was_written(tmp_path, key):
    config = dinov2.Dinov2Config(8, 2, 1, 12, swiglu=True, position_offset=0.0)
    params = jax.jit(lambda key: dinov2.init(config, key))(key)
    network = FeatureNetwork("tiny", config, params)
    write_network(tmp_path, network)
    found = load_extractor(tmp_path)
    assert (found.kind, found.config, found.dim, found.side) == ("dinov2", config, 8, 224)
    assert found.fingerprint == network.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    with pytest.raises(ValueError, match=r"tiny \(dinov2\) reads no text"):
        found.texts(["a"])
    with pytest.raises(ValueError, match="no resize 'clean'; it has dgm_eval, edm2"):
        load_extractor(tmp_path, resize="clean")

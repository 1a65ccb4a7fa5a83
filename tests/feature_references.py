"""PyTorch's feature networks on random weights, and real photographs, for tests that compare."""

import functools
import importlib.util
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from imagen_jax.convert.inception import pytorch_layout, unfolded_shapes
from imagen_jax.storage.layout_files import write_layout
from imagen_jax.storage.trees import flatten, unflatten


def torch_fidelity(module: str) -> types.ModuleType:
    """A module of torch-fidelity, without its package's __init__, which needs torchvision."""
    pytest.importorskip("torch")
    if "torch_fidelity" not in sys.modules:
        spec = importlib.util.find_spec("torch_fidelity")
        if spec is None:
            pytest.skip("torch-fidelity is not installed (pip install --no-deps torch-fidelity)")
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
        # Reads data sets by torchvision; the metrics' arithmetic uses nothing of it.
        sys.modules["torch_fidelity.utils"] = MagicMock()
    return importlib.import_module(f"torch_fidelity.{module}")


def random_state() -> dict[str, np.ndarray]:
    """A state dict of pytorch-fid that keeps the activations near 1."""
    rng = np.random.default_rng(0)
    values = {}
    for name, leaf in flatten(unfolded_shapes()).items():
        if name.endswith("/kernel"):
            values[name] = rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        elif name.endswith(("/gamma", "/variance")):
            values[name] = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values[name] = rng.normal(0, 0.1, leaf.shape)
    state = write_layout(pytorch_layout(), unflatten(values))
    return {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}


def save_pth(path: Path, state: dict[str, np.ndarray]) -> Path:
    """As pytorch-fid distributes its weights."""
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    return path


def reference_inception(path: Path, *features: str):
    """torch-fidelity's network with the weights of a .pth file."""
    module = torch_fidelity("feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3("reference", list(features), str(path))


def reference_features(network, images: list[np.ndarray]) -> list[np.ndarray]:
    """What torch-fidelity's network gives for images of any sizes, one array a feature."""
    import torch

    torch.set_num_threads(1)  # more threads wait for each other where the cores are shared
    with torch.no_grad():
        each = [
            network(torch.from_numpy(np.ascontiguousarray(one.transpose(2, 0, 1))[None]))
            for one in images
        ]
    return [np.concatenate([outputs[i].numpy() for outputs in each]) for i in range(len(each[0]))]


@functools.cache
def photographs() -> dict[str, np.ndarray]:
    """Real ones, of odd sizes, smaller and larger than what the networks see."""
    data = pytest.importorskip("skimage.data")
    more = pytest.importorskip("sklearn.datasets").load_sample_image
    return {
        "china": more("china.jpg")[5:, :631],
        "flower": more("flower.jpg")[:389, 7:],
        "astronaut": data.astronaut()[:511, 3:480],
        "chelsea": data.chelsea()[:, :449],
        "coffee": data.coffee()[11:242, 100:273],
        "rocket": data.rocket()[:427, :639],
    }


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))

"""Times Inception's features against torch-fidelity's: the same weights, images and cores.

    pip install -e '.[parity]'
    pip install --no-deps torch-fidelity
    python scripts/benchmark_features.py --batch_size 16 --rounds 7

Both sides go from uint8 images to features: TensorFlow's bilinear resize to 299x299, then the
network in float32. torch-fidelity's network is pytorch-fid's with the resize of the original FID;
it runs unchanged, without its package's __init__, which needs torchvision. The sides take turns in
one process, and the median of the rounds counts. The weights are random, since they do not affect
the time. The features are compared first.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

from imagen_jax.commands.command_line import count, make_parser, path, run_parsed
from imagen_jax.storage.folders import make_folder

TOLERANCE = 1e-4  # relative L2 between the features of both sides


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--batch_size", type=count, default=16, help="images at a time")
    add("--side", type=count, default=256, help="of the images, in pixels")
    add("--rounds", type=count, default=7, help="turns of each side")
    add("--threads", type=count, help="of PyTorch (default: its own choice)")
    add("--out", type=path, metavar="FILE", help="write the figures as JSON")
    return parse


def random_state() -> dict[str, np.ndarray]:
    """A state dict of pytorch-fid that keeps the activations near 1."""
    from imagen_jax.convert.inception import pytorch_layout, unfolded_shapes
    from imagen_jax.storage.layout_files import write_layout
    from imagen_jax.storage.trees import flatten, unflatten

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


def theirs(state: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """torch-fidelity's extractor of uint8 images."""
    import torch

    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        raise ModuleNotFoundError(
            "torch-fidelity is missing: pip install --no-deps torch-fidelity", name="torch_fidelity"
        )
    package = sys.modules["torch_fidelity"] = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "weights.pth"
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
        network = module.FeatureExtractorInceptionV3("theirs", ["2048"], str(path))

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            return network(channels_first)[0].numpy()

    return extract


def measure(options: argparse.Namespace) -> dict:
    import jax
    import torch

    from imagen_jax.convert.inception import params_from_pytorch
    from imagen_jax.evaluation.features import FeatureNetwork, make_extractor

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    state = random_state()
    network = FeatureNetwork("ours", None, params_from_pytorch(state))
    ours = make_extractor(network, batch_size=options.batch_size)
    sides = {"imagen_jax": ours.images, "torch_fidelity": theirs(state)}
    shape = (options.batch_size, options.side, options.side, 3)
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    mine, other = (extract(images) for extract in sides.values())
    error = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
    if error > TOLERANCE:
        raise ValueError(f"the two sides differ by {error:.1e}, more than {TOLERANCE}")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        for name, extract in sides.items():
            begin = time.perf_counter()
            extract(images)
            rates[name].append(len(images) / (time.perf_counter() - begin))
        print(", ".join(f"{name} {each[turn]:.2f}/s" for name, each in rates.items()), flush=True)
    return {
        "features_per_second": {name: statistics.median(each) for name, each in rates.items()},
        "rounds": rates,
        "relative_error": error,
        "batch_size": options.batch_size,
        "side": options.side,
        "torch_threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }


def run(options: argparse.Namespace) -> None:
    if options.out is not None:
        make_folder(options.out.parent, "--out")
    figures = measure(options)
    mine, other = figures["features_per_second"].values()
    print(
        f"features a second: imagen_jax {mine:.2f}, torch-fidelity {other:.2f} ({mine / other:.2f} "
        f"times as many); relative error {figures['relative_error']:.1e}"
    )
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), run, arguments)

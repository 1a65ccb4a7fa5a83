"""Times training and sampling against imagen-pytorch: equal parameters, resolution, batch, cores.

    python3 -m venv /tmp/ipt
    /tmp/ipt/bin/pip install torch==2.13.0
    /tmp/ipt/bin/pip install einops beartype tqdm numpy
    /tmp/ipt/bin/pip install --no-deps imagen-pytorch
    python scripts/benchmark_imagen_pytorch.py --torch_python /tmp/ipt/bin/python --out speed.json

Each side runs in its own process; the sides take turns, `--rounds` times, and the median counts.
Timed on both sides: one training step (noise, forward, backward, Adam, moving average of the
weights) on images and text embeddings in memory, and sampling by the ancestral DDPM sampler with
guidance 3 and dynamic thresholding. The first call, which compiles here, is timed separately.

imagen-pytorch's own `Unet` and `Imagen` run unchanged; its width, heads and feed-forward ratio are
chosen so that the numbers of parameters agree within 5 %. What it imports and this never calls
(torchvision, kornia, transformers, ...) is replaced by empty modules, so nothing is downloaded.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
TEXT_LENGTH, TEXT_WIDTH, GUIDANCE = 32, 256, 3.0
LEARNING_RATE, EMA_DECAY = 1e-4, 0.999
TOLERANCE = 0.05
# What imagen-pytorch imports besides what its network and sampler need.
UNUSED = (
    *("torchvision", "torchvision.transforms", "kornia", "kornia.augmentation"),
    *("transformers", "accelerate", "ema_pytorch", "pytorch_warmup", "datasets"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of ours (a config's stage.network, or the config's name), and imagen-pytorch's."""

    resolution: int
    batch: int
    ours: dict | str
    theirs: dict
    sample_batch: int = 4


PAPER_LEVELS = [
    {"channels": 96, "num_res_blocks": 2, "attention": None},
    {"channels": 192, "num_res_blocks": 2, "attention": "self"},
    {"channels": 288, "num_res_blocks": 2, "attention": "self"},
]
PAPER_UNET = {
    "dim_mults": (1, 2, 3),
    "num_resnet_blocks": 2,
    "layer_attns": (False, True, True),
    "layer_cross_attns": (False, True, True),
}
CASES = {
    "tiny": Case(
        16,
        4,
        {
            "kind": "unet",
            "levels": [{"channels": 64, "num_res_blocks": 1, "attention": "self"}] * 2,
        },
        {"dim_mults": (1, 1), "num_resnet_blocks": 1},
        sample_batch=2,
    ),
    # The paper's base U-Net (F.1) at a size that two cores can train.
    "unet_32": Case(32, 32, {"kind": "unet", "levels": PAPER_LEVELS}, PAPER_UNET),
    # The shipped base model, beside imagen-pytorch's usual U-Net and its memory-efficient one.
    "icons_base64_cpu": Case(64, 32, "icons_base64_cpu", PAPER_UNET),
    "icons_base64_cpu_efficient": Case(
        64,
        32,
        "icons_base64_cpu",
        PAPER_UNET | {"layer_attns": (False, False, True), "memory_efficient": True},
    ),
}


def seconds_of(step, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of `repeats` further ones."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[0], statistics.median(times[1:])


def report(case: Case, train_step, sample, steps: int, sample_steps: int) -> dict:
    """The measurements of one side."""
    first_step, step = seconds_of(train_step, steps)
    first_sample, sampling = seconds_of(sample, 1)
    return {
        "train_images_per_second": case.batch / step,
        "train_step_seconds": step,
        "first_step_seconds": first_step,
        "sample_seconds": sampling,
        "sample_images": case.sample_batch,
        "sample_steps": sample_steps,
        "first_sample_seconds": first_sample,
    }


def time_jax(case: Case, steps: int, sample_steps: int, _: None) -> dict:
    """This code's side: the train step that scripts/train.py runs, and the sampler of a cascade."""
    sys.path.insert(0, str(ROOT))
    import jax
    import numpy as np

    from imagen_jax.cascade.cascade import sample_keys
    from imagen_jax.cascade.sample import sample_stage
    from imagen_jax.cascade.stage import Conditions
    from imagen_jax.diffusion.sampling import Sampling
    from imagen_jax.models.t5 import T5Config
    from imagen_jax.text.encoder import null_text
    from imagen_jax.training import build, optimizer
    from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
    from imagen_jax.training.state import NETWORK, init_state
    from imagen_jax.training.step import make_train_step
    from imagen_jax.typing import TextEmbeddings

    stage = stage_of(case)
    config = RunConfig(
        stage,
        DataConfig("memory"),
        case.batch,
        num_steps=1,
        text=TextConfig(T5Config()),  # not run: the texts are embedded
        optimizer=optimizer.OptimizerConfig("adam", LEARNING_RATE, warmup_steps=0),
        ema_decay=EMA_DECAY,
    )
    key, rng = jax.random.key(0), np.random.default_rng(0)
    images = rng.integers(0, 256, (case.batch, case.resolution, case.resolution, 3), np.uint8)
    values = rng.normal(size=(case.batch, TEXT_LENGTH, TEXT_WIDTH)).astype(np.float32)
    batch = {"image": images, "text": values, "mask": np.ones(values.shape[:2], bool)}
    batch = jax.device_put(batch)
    params = build.init_parameters(config, None, key)
    state = init_state(params, optimizer.make_optimizer(config.optimizer))
    step = jax.jit(make_train_step(config, None), donate_argnums=0)

    def train_step():
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    n = case.sample_batch
    text = TextEmbeddings(batch["text"][:n], batch["mask"][:n])
    conditions = Conditions(text, null_text(1, TEXT_LENGTH, TEXT_WIDTH))
    settings = Sampling(
        sampler="ddpm", steps=sample_steps, guidance=GUIDANCE, threshold="dynamic", percentile=95.0
    )

    def sample():
        keys = sample_keys(0, np.arange(n))
        jax.block_until_ready(sample_stage(stage, state.ema[NETWORK], keys, conditions, settings))

    return {
        "library": f"imagen_jax, jax {jax.__version__}",
        "network": dataclasses.asdict(stage.network),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "threads": len(os.sched_getaffinity(0)),
        **report(case, train_step, sample, steps, sample_steps),
    }


def stage_of(case: Case):
    """The stage of a case, that of its config where it names one."""
    from imagen_jax.cascade.stage import KINDS, Stage
    from imagen_jax.storage.codec import from_dict, to_dict
    from imagen_jax.training.config import load_config

    section = {"name": "base", "resolution": case.resolution, "network": case.ours}
    if isinstance(case.ours, str):
        section = to_dict(load_config(ROOT / "configs" / f"{case.ours}.py").stage)
    return from_dict(Stage, section | {"text_width": TEXT_WIDTH}, "stage", KINDS)


def time_torch(case: Case, steps: int, sample_steps: int, parameters: int) -> dict:
    """imagen-pytorch's side; runs in the environment that has it."""
    sys.modules.update({name: mock.MagicMock(name=name) for name in UNUSED})
    sys.modules["transformers"].T5Config.from_pretrained.return_value.d_model = TEXT_WIDTH
    # The package without its __init__, which would import its trainer and command line too.
    spec = importlib.util.find_spec("imagen_pytorch")
    package = sys.modules["imagen_pytorch"] = types.ModuleType("imagen_pytorch")
    package.__path__ = list(spec.submodule_search_locations)
    import torch
    from imagen_pytorch.imagen_pytorch import Imagen

    torch.manual_seed(0)
    network = closest_unet(case, parameters)
    imagen = Imagen(
        make_unet(case, network),
        image_sizes=case.resolution,
        text_embed_dim=TEXT_WIDTH,
        timesteps=sample_steps,
    )
    weights = [p for p in imagen.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    images = torch.rand(case.batch, 3, case.resolution, case.resolution)
    text = torch.randn(case.batch, TEXT_LENGTH, TEXT_WIDTH)
    mask = torch.ones(case.batch, TEXT_LENGTH, dtype=torch.bool)

    def train_step():
        loss = imagen(images, text_embeds=text, text_masks=mask, unet_number=1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averages, [p.detach() for p in weights], 1 - EMA_DECAY)
        return loss.item()

    def sample():
        n = case.sample_batch
        imagen.eval().sample(
            text_embeds=text[:n], text_masks=mask[:n], cond_scale=GUIDANCE, use_tqdm=False
        )

    version = importlib.metadata.version("imagen-pytorch")
    return {
        "library": f"imagen-pytorch {version}, torch {torch.__version__}",
        "network": network | case.theirs,
        "parameters": sum(p.numel() for p in weights),
        "threads": torch.get_num_threads(),
        **report(case, train_step, sample, steps, sample_steps),
    }


def make_unet(case: Case, size: dict):
    from imagen_pytorch.imagen_pytorch import Unet

    return Unet(**case.theirs, **size, text_embed_dim=TEXT_WIDTH, max_text_len=TEXT_LENGTH)


def closest_unet(case: Case, parameters: int) -> dict:
    """Width, heads and feed-forward ratio that come closest to a number of parameters."""
    import torch

    def distance(size: dict) -> float:
        with torch.device("meta"):
            count = sum(p.numel() for p in make_unet(case, size).parameters())
        return abs(count / parameters - 1)

    # The width first (its group norms want multiples of 8), then what fits closer.
    widths = sorted([{"dim": dim} for dim in range(16, 384, 8)], key=distance)[:2]
    finer = [
        width | {"attn_heads": heads, "ff_mult": ratio}
        for width, heads, ratio in itertools.product(
            widths, (8, 6, 10, 4, 12), (2.0, 1.0, 3.0, 4.0)
        )
    ]
    close = (size for size in finer if distance(size) < TOLERANCE / 2)
    return next(close, None) or min(finer, key=distance)


def run_worker(python: str, arguments: list[str]) -> dict:
    """Runs this file as one side's process; its last line of output is the result."""
    command = [python, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def median_of(rounds: list[dict]) -> dict:
    """One result, with the median of every time and speed, and each round's speed beside it."""
    middle = {
        name: statistics.median(entry[name] for entry in rounds)
        for name, value in rounds[0].items()
        if isinstance(value, float)
    }
    speeds = [entry["train_images_per_second"] for entry in rounds]
    return rounds[0] | middle | {"train_images_per_second_of_each_round": speeds}


def compare(name: str, options: argparse.Namespace) -> dict:
    """Both sides of one case, taking turns."""
    common = ["--case", name, "--steps", str(options.steps)]
    common += ["--sample_steps", str(options.sample_steps)]
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(run_worker(sys.executable, [*common, "--worker", "jax"]))
        torch = ["--worker", "torch", "--parameters", str(ours[0]["parameters"])]
        theirs.append(run_worker(options.torch_python, [*common, *torch]))
    difference = theirs[0]["parameters"] / ours[0]["parameters"] - 1
    if abs(difference) > TOLERANCE:
        raise SystemExit(
            f"{name}: parameters differ by {difference:.1%}, more than {TOLERANCE:.0%}"
        )
    return {"case": name, "ours": median_of(ours), "theirs": median_of(theirs)}


def machine() -> dict:
    """The machine that the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}


def table(results: list[dict]) -> str:
    """The results in Markdown, as docs/measurements.md shows them."""
    lines = [
        "| case | library | parameters | training, images/s | sampling | first step, sample |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for side in ("ours", "theirs"):
            entry = result[side]
            sampling = (
                f"{entry['sample_images']} images, {entry['sample_steps']} steps: "
                f"{entry['sample_seconds']:.1f} s"
            )
            first = f"{entry['first_step_seconds']:.1f} s, {entry['first_sample_seconds']:.1f} s"
            lines.append(
                f"| {result['case']} | {entry['library']} | {entry['parameters'] / 1e6:.2f} M | "
                f"{entry['train_images_per_second']:.1f} | {sampling} | {first} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    # Not `make_parser`: this file also runs in imagen-pytorch's environment, which lacks ours.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch_python", help="a Python that has torch and imagen-pytorch")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all but tiny")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps (default: 10)")
    parser.add_argument("--sample_steps", type=int, default=32, help="(default: 32)")
    parser.add_argument("--out", help="write the results as JSON here")
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--parameters", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:  # one side's measurement, in a process of its own
        case, parameters = CASES[options.case[0]], options.parameters
        measure = time_jax if options.worker == "jax" else time_torch
        print(json.dumps(measure(case, options.steps, options.sample_steps, parameters)))
        return
    if not options.torch_python:
        parser.error("--torch_python is needed; the top of this file says how to make one")
    results = []
    for name in options.case or [name for name in CASES if name != "tiny"]:
        results.append(compare(name, options))
        print(table(results[-1:]), flush=True)
    report = {"machine": machine(), "rounds": options.rounds, "results": results}
    if options.out:
        Path(options.out).expanduser().write_text(
            json.dumps(report, indent=2) + "\n", encoding="utf-8"
        )
    print(f"\n{report['machine']}\n\n{table(results)}")


if __name__ == "__main__":
    main()

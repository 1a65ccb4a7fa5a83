"""Runs that differ by named choices and cost the same: equal training FLOPs (not steps), the same
images, seeds, text encoder, optimizer and evaluation.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.cascade.stage import init_params
from imagen_jax.devices import accelerators
from imagen_jax.evaluation.heldout import HeldoutImages, measure_retrieval, read_heldout
from imagen_jax.evaluation.report import SHEET_IMAGES, contact_sheet
from imagen_jax.evaluation.x0_error import x0_errors
from imagen_jax.images.image_file import save_image
from imagen_jax.images.pixels import resize, to_uint8
from imagen_jax.storage.codec import Section, require, to_dict
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.trees import first_difference
from imagen_jax.text import encoder as text
from imagen_jax.training import flops, loop, start, workdir
from imagen_jax.training.batches import abstract_batch
from imagen_jax.training.metrics import read_losses, read_scores
from imagen_jax.training.samples import make_generate
from imagen_jax.training.state import averaged, encoder_params, network_params
from imagen_jax.typing import Params

RESULT_FILE, SHEET_FILE = "result.json", "samples.png"
SCORE = "x0_error/"  # and the log-SNR
EVALUATION_SEED = 0  # of the noise of all that is measured
CURVE_IMAGES = 96  # whose x0 error is measured while training
BATCH = 50  # images sampled at once
CURVE_POINTS = 100

# axis -> choice -> what it sets in the config's section `stage`
Axes = Mapping[str, Mapping[str, Section]]


@dataclass(frozen=True)
class Cell:
    """One run of the grid: what was chosen on each axis, and the seed."""

    choices: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Its choices joined by dashes."""
        return "-".join(self.choices)

    @property
    def folder(self) -> str:
        """The folder of its run: name and seed."""
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class Protocol:
    """What all cells have in common. flops: of training, forward and backward, for each. points:
    how often the x0 error is measured on the way. splits, prompts: what is held out, and how many
    images of each split are asked for.
    """

    flops: float
    points: int = 8
    splits: tuple[str, ...] = ("heldout",)
    prompts: int = 250

    def __post_init__(self):
        require(
            (0 < self.flops < float("inf"), f"flops must be positive, not {self.flops}"),
            (self.points >= 1, f"points must be 1 or more, not {self.points}"),
        )


def grid(axes: Axes, seeds: Sequence[int], names: Sequence[str] | None = None) -> list[Cell]:
    """All cells, the seeds of one after the other; of `names` those alone, in their order.

    Raises:
        ValueError: a name is no cell; the message says which there are.
    """
    every = {Cell(choices, 0).name: choices for choices in itertools.product(*axes.values())}
    if unknown := [name for name in names or () if name not in every]:
        raise ValueError(f"there is no cell {', '.join(unknown)}; the cells are {', '.join(every)}")
    return [Cell(every[name], seed) for name in names or every for seed in seeds]


def step_flops(plan: start.Plan) -> float:
    """FLOPs of one train step, counted from shapes (`flops.total`)."""
    state, key = jax.eval_shape(plan.init, jax.random.key(0)), jax.random.key(0)
    return flops.total(plan.train_step, state, abstract_batch(plan.config), key, plan.frozen)


def cell_plan(
    raw: Section, axes: Axes, cell: Cell, protocol: Protocol, per_step: float | None = None
) -> tuple[start.Plan, float]:
    """(the plan of a cell's run, FLOPs of its step): as many steps as the FLOPs allow, and, where
    the config has one, a decay of the learning rate that ends with them.

    Args:
        per_step: FLOPs of its step where they are known, as from another seed.

    Raises:
        ValueError: the FLOPs do not do for the warm-up, or a choice does not fit the config.
    """
    raw = to_dict(raw)
    for axis, choice in zip(axes.values(), cell.choices, strict=True):
        raw["stage"] |= to_dict(axis[choice])
    raw["seed"] = cell.seed
    if per_step is None:
        per_step = step_flops(start.make_plan(raw))
    steps, optimizer = round(protocol.flops / per_step), raw["optimizer"]
    warmup = optimizer.get("warmup_steps", 0)
    if steps <= warmup:
        raise ValueError(
            f"{cell.name}: {protocol.flops:.3g} FLOPs are {steps} steps, of which {warmup} would "
            f"be warm-up (optimizer.warmup_steps); a step takes {per_step:.3g}"
        )
    raw["num_steps"] = steps
    if optimizer.get("decay_steps") is not None:
        optimizer["decay_steps"] = steps
    return start.make_plan(raw), per_step


def read_result(folder: Path, plan: start.Plan, protocol: Protocol) -> dict[str, Any] | None:
    """What a finished cell has found; None where it is not finished.

    Raises:
        ValueError: the folder holds the result of another config or protocol.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    result = read_object(path, "the result of a cell")
    if difference := first_difference(result["request"], request(plan, protocol)):
        name, was, wanted = difference
        raise ValueError(
            f"{folder} is of a run with {name} = {was!r}, not {wanted!r}; give another --out, or "
            "delete it"
        )
    return result


def request(plan: start.Plan, protocol: Protocol) -> dict[str, Any]:
    """What decides a cell's figures; where the tokenizer's file lies does not."""
    config = to_dict(plan.raw)
    if config.get("text"):
        config["text"]["tokenizer"] = Path(config["text"]["tokenizer"]).name
    return {"config": config, "protocol": vars(protocol)}


def run_cell(
    plan: start.Plan, per_step: float, protocol: Protocol, folder: Path, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Trains one cell in `folder`, from its newest checkpoint if there is one, measures it, and
    writes result.json and samples.png there. None where a signal ended the training before.

    Raises:
        ValueError: the data or the folder cannot be read, or do not fit the config.
        loop.RUN_ERRORS: as of `loop.train`.
    """
    config = plan.config
    heldout = read_heldout(config.data.path, protocol.splits, protocol.prompts)
    with workdir.held(folder, "--out") as held:
        run = start.open_run(plan, held)

        def score(params: Params) -> dict[str, float]:
            found = measure_x0_error(plan, run.frozen, params, heldout, CURVE_IMAGES)
            return {f"{SCORE}{logsnr:g}": error for logsnr, error in found.items()}

        every = max(1, config.num_steps // protocol.points)
        run = replace(run, sample=None, score=score, score_every=every)
        state = loop.train(config, run, say=say)
        run.checkpoints.close()
        if int(state.step) < config.num_steps:
            return None
        params = averaged(state)
        images = sample_prompts(plan, run.frozen, params, heldout.prompts, say)
        result = {
            "request": request(plan, protocol),
            "stage": config.stage.name,
            "parameters": count_parameters(config.stage),
            "flops_per_step": per_step,
            "steps": config.num_steps,
            "images": config.num_steps * config.batch_size,
            "device": accelerators.describe(plan.mesh.devices.flat),
            "retrieval": measure_retrieval(heldout, images),
            "x0_error": {
                f"{logsnr:g}": error
                for logsnr, error in measure_x0_error(plan, run.frozen, params, heldout).items()
            },
            "curves": read_curves(held, per_step),
        }
        save_image(make_sheet(heldout, images), held / SHEET_FILE)
        write_object(held / RESULT_FILE, result)
    return result


def make_sheet(heldout: HeldoutImages, images: np.ndarray) -> Image.Image:
    """True and sampled images of some prompts from all over the set."""
    count = min(SHEET_IMAGES, len(images))
    rows = np.arange(count) * len(images) // count
    pairs = list(zip(heldout.images[rows], images[rows], strict=True))
    return contact_sheet(pairs, [heldout.prompts[row] for row in rows])


def count_parameters(stage: Any) -> int:
    """Of the network."""
    shapes = jax.eval_shape(lambda key: init_params(stage, key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def measure_x0_error(
    plan: start.Plan,
    frozen: Any,
    params: Params,
    heldout: HeldoutImages,
    num: int | None = None,
) -> dict[float, float]:
    """`x0_errors` of the held-out images that are asked for, given their captions; of `num` of
    them, evenly chosen.
    """
    config, count = plan.config, len(heldout.asked)
    rows = np.arange(count) if num is None or num >= count else np.arange(num) * count // num
    prompts = heldout.prompts
    embedded = text.encode(
        plan.encoder, encoder_params(params, frozen), [prompts[row] for row in rows]
    )
    images = np.stack([resize(image, config.stage.resolution) for image in heldout.images[rows]])
    network = network_params(params, frozen, config.lora)
    return x0_errors(config.stage, network, embedded, images, sample_keys(EVALUATION_SEED, rows))


def sample_prompts(
    plan: start.Plan,
    frozen: Any,
    params: Params,
    prompts: Sequence[str],
    say: Callable[[str], None],
) -> np.ndarray:
    """uint8 [prompts, H, W, 3], as the config's section `sample` says."""
    generate = make_generate(plan.config, plan.encoder, frozen)
    keys, found = sample_keys(EVALUATION_SEED, range(len(prompts))), []
    for first in range(0, len(prompts), BATCH):
        rows = np.minimum(np.arange(first, first + BATCH), len(prompts) - 1)
        images = generate(params, keys[rows], [prompts[row] for row in rows])
        found.append(to_uint8(images)[: len(prompts) - first])
        say(f"sampled {min(first + BATCH, len(prompts))} of {len(prompts)} prompts")
    return np.concatenate(found)


def read_curves(folder: Path, per_step: float) -> dict[str, Any]:
    """Loss (means of about a hundredth of the run) and x0 errors of a run, each with the FLOPs."""
    losses = read_losses(folder)
    steps = np.array(sorted(losses))
    parts = np.array_split(steps, min(CURVE_POINTS, len(steps)))
    scores = {
        step: {name: value for name, value in values.items() if name.startswith(SCORE)}
        for step, values in sorted(read_scores(folder).items())
    }
    return {
        "loss": {
            "flops": [float(part.mean() * per_step) for part in parts],
            "value": [float(np.mean([losses[step] for step in part])) for part in parts],
        },
        "x0_error": {
            "flops": [step * per_step for step in scores],
            "value": [list(values.values()) for values in scores.values()],
        },
    }

"""Snapshots of a run's power-law averages: `ema/STEP/averages.safetensors` in its workdir, one for
every so many steps, and averages of other widths put together from them.

A tensor's name is the width and its path: "0.05/network/conv_in/kernel". None is ever deleted, but
for those of steps that a resumed run does again.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from imagen_jax.devices.hosts import gather_json, whole
from imagen_jax.diffusion.sampling import Whole
from imagen_jax.pipeline.power_ema import MAX_MISFIT, exponent, reachable_widths, solve_weights
from imagen_jax.storage.disk import describe
from imagen_jax.storage.folders import SNAPSHOTS, saved_steps, user_path
from imagen_jax.storage.layout_files import check_shapes
from imagen_jax.storage.safetensors import open_tensors, save_params, weight_files
from imagen_jax.storage.tensor_file import StoredTensor
from imagen_jax.storage.trees import flatten, unflatten
from imagen_jax.typing import Params

NAME = "averages"

# {(step, width as it is named): {path: tensor}}
Stored = Mapping[tuple[int, str], Mapping[str, StoredTensor]]


def width_name(width: float) -> str:
    """0.05 -> "0.05": what averages of this width are called in states and files."""
    return f"{width:g}"


def write_snapshot(
    workdir: Path, step: int, averages: Mapping[str, Params], dtype: str = "float32"
) -> None:
    """Writes the averages of a step, {width: parameters}, whole or not at all.

    All hosts of a run call it, and the first one writes.

    Raises:
        OSError: the disk refuses it; on every host.
    """
    kept, fault = {}, None
    for path, leaf in flatten(averages).items():  # one by one, for the sake of memory
        array = whole(leaf.astype(dtype))
        if jax.process_index() == 0:
            kept[path] = array
    if jax.process_index() == 0:
        try:
            save_params(workdir / SNAPSHOTS / str(step), NAME, unflatten(kept), dtype=None)
        except OSError as error:
            fault = describe(error)
    if fault := gather_json(fault)[0]:
        raise OSError(fault)


def snapshot_steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of the whole snapshots in a workdir, in order."""
    folder = user_path(workdir) / SNAPSHOTS
    single, indices = weight_files(NAME, None)
    return sorted(
        step
        for step in saved_steps(folder)
        if any((folder / str(step) / file).is_file() for file in (single, *indices))
    )


def remove_snapshots_after(workdir: Path, step: int) -> list[int]:
    """Removes the snapshots of later steps, which a run that goes on at `step` does again, and
    perhaps otherwise. Returns their steps; to be called by all hosts.
    """
    later = [found for found in snapshot_steps(workdir) if found > step]
    gather_json(None)  # all have looked
    if jax.process_index() == 0:
        for found in later:
            shutil.rmtree(workdir / SNAPSHOTS / str(found))
    return later


def synthesize(
    workdir: str | os.PathLike, width: float, step: Whole | None = None
) -> tuple[int, Params]:
    """(step, parameters): the average of a relative width, put together from a run's snapshots.

    Reads a tensor at a time: it needs the memory of one copy of the parameters (float32 numpy
    arrays) and of their largest array.

    Args:
        width: such as 0.07. One that was kept is read as it is.
        step: of a snapshot, after which the average is wanted. The newest when None.

    Raises:
        ValueError: the width is out of range or cannot be reached by these snapshots, there are
            none or none of this step, or one is damaged or of another network.
    """
    exponent(width)  # a wrong one is told before any file is read
    workdir, steps = user_path(workdir), snapshot_steps(workdir)
    if not steps:
        raise ValueError(
            f"{workdir / SNAPSHOTS} holds no snapshots, of which an average of width {width:g} is "
            "put together: the run's config needs a section ema."
        )
    step = steps[-1] if step is None else int(step)
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise ValueError(f"{workdir / SNAPSHOTS} has no snapshot of step {step}; it has {there}.")
    stored = _open(workdir / SNAPSHOTS, [each for each in steps if each <= step])
    weights = _weights(stored, step, width)
    paths = stored[next(iter(weights))]
    return step, unflatten({path: _sum(stored, weights, path) for path in paths})


def _open(folder: Path, steps: list[int]) -> Stored:
    """The averages of these steps, not read yet; all of the same network."""
    stored: dict[tuple[int, str], dict[str, StoredTensor]] = {}
    for step in steps:
        for name, tensor in open_tensors(folder / str(step), NAME).items():
            width, _, path = name.partition("/")
            stored.setdefault((step, width), {})[path] = tensor
    shapes = {
        key: {path: tensor.shape for path, tensor in tensors.items()}
        for key, tensors in stored.items()
    }
    newest = shapes[next(reversed(shapes))]
    for (step, _), found in shapes.items():
        check_shapes(f"The snapshot {folder / str(step)}", newest, found)
    return stored


def _weights(stored: Stored, step: int, width: float) -> dict[tuple[int, str], float]:
    if (step, width_name(width)) in stored:
        return {(step, width_name(width)): 1.0}
    steps, widths = [key[0] for key in stored], [float(key[1]) for key in stored]
    weights, misfit = solve_weights(steps, widths, step, width)
    if misfit > MAX_MISFIT:
        found = reachable_widths(steps, widths, step)
        reach = f"they give widths of {found[0]:g} to {found[1]:g}" if found else "they give none"
        raise ValueError(
            f"The {len(set(steps))} snapshots up to step {step} are too few for an average of "
            f"width {width:g} ({misfit:.0%} of its profile is missed): {reach}."
        )
    return dict(zip(stored, map(float, weights), strict=True))


def _sum(stored: Stored, weights: Mapping[tuple[int, str], float], path: str) -> np.ndarray:
    total = np.zeros(stored[next(iter(weights))][path].shape, np.float64)
    for key, weight in weights.items():
        total += weight * stored[key][path][()].astype(np.float64)
    return total.astype(np.float32)

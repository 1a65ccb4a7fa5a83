"""What is read of a training run's workdir: the parameters of a checkpoint or of a snapshot."""

import contextlib
from pathlib import Path
from typing import Any

from imagen_jax.convert import diffusers_directory
from imagen_jax.diffusion.sampling import Whole
from imagen_jax.pipeline.shipped import MODEL_FILE
from imagen_jax.pipeline.snapshots import synthesize
from imagen_jax.storage.folders import CHECKPOINTS, saved_steps
from imagen_jax.storage.wrong_files import absent
from imagen_jax.typing import Params

Average = bool | float  # whether a run's average is read, or one of which relative width


def read_run(
    directory: Path, step: Whole | None = None, ema: Average = True
) -> tuple[int, Params, dict[str, Any]]:
    """(step, parameters, description) of a run's newest checkpoint, or of that of `step`. Where the
    newest is damaged, a warning says so, and the one before is read. Of a width `ema`, the
    parameters are of a snapshot.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged and there is no other; or as of
            `synthesize`.
    """
    place = directory / CHECKPOINTS
    if not directory.is_dir():
        raise ValueError(absent(directory, "folder"))
    if not saved_steps(place):
        for folder in (directory, directory.parent):  # its folder of checkpoints, or one of them
            if folder.name == CHECKPOINTS and saved_steps(folder):
                of_step = f" and step={directory.name}" if directory.name.isdigit() else ""
                raise ValueError(
                    f"{directory} is a part of a training run: give its workdir, {folder.parent}"
                    f"{of_step}."
                )
        raise ValueError(
            f"{directory} is neither a model directory (no {MODEL_FILE}) nor one in "
            f"diffusers' layout (no {diffusers_directory.INDEX}) nor the workdir of a training run "
            f"(no checkpoint in {CHECKPOINTS}/)."
        )
    # Imported here: Orbax is slow to import, and only workdirs need it.
    from imagen_jax.storage.checkpoint import CheckpointError, Checkpoints

    with contextlib.closing(Checkpoints(place, read_only=True)) as checkpoints:
        try:
            if not isinstance(ema, bool):
                run = checkpoints.read_description()  # the same in all
                return (*synthesize(directory, ema, step), run)
            return checkpoints.read_parameters(None if ema else "params", step)
        except CheckpointError as error:
            raise ValueError(str(error)) from error

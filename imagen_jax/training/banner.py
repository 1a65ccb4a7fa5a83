"""What a run says of itself before it starts: device, images, parameters, and where things go."""

import os
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.data.classes import class_names
from imagen_jax.data.sources import Source
from imagen_jax.devices import accelerators
from imagen_jax.devices.memory import size_text
from imagen_jax.pipeline.snapshots import snapshot_steps, width_name
from imagen_jax.storage.folders import CHECKPOINTS, SNAPSHOTS, saved_steps
from imagen_jax.training import batches, build
from imagen_jax.training.metrics import METRICS_FILE, SAMPLES_FOLDER
from imagen_jax.training.progress import steps_per_epoch
from imagen_jax.training.run_config import MIXTURE, STREAM, RunConfig
from imagen_jax.training.samples import sampled
from imagen_jax.training.start import Plan
from imagen_jax.training.state import Frozen
from imagen_jax.training.table import num_parameters
from imagen_jax.typing import Params

READS = {"text": "with captions", "label": "with classes", None: "without captions"}
WITH = {"text": " from text", "label": " from classes", None: ""}
MANY_EPOCHS = 1000  # images that are seen so often are learned by heart
# Looking at them would download data, or import TensorFlow.
NOT_LOOKED_AT = (STREAM, "tfds")


def start_banner(
    plan: Plan, source: Source | str | None, workdir: str | os.PathLike | None = None
) -> str:
    """A line for each thing that a user wants to know before a run begins, and warnings.

    Args:
        source: the images; text: why they cannot be counted.
        workdir: None where nothing is written.
    """
    config, stage = plan.config, plan.config.stage
    params = jax.eval_shape(plan.init, jax.random.key(config.seed)).params
    what = f"{stage.name}, {stage.resolution}x{stage.resolution} images{WITH[stage.conditioning]}"
    steps = [] if workdir is None else saved_steps(Path(workdir) / CHECKPOINTS)
    begin = "a dry run" if workdir is None else "new"
    if steps:
        begin = f"resumes at step {max(steps):,}"
    shape = ", ".join(f"{name} {size}" for name, size in plan.mesh.shape.items())
    device = accelerators.describe(plan.mesh.devices.flat)
    device += f" (mesh {shape})" if plan.mesh.size > 1 else ""
    lines = [("run", f"{what}; {begin}"), ("device", device)]
    lines.append(("images", source if isinstance(source, str) else _images(config, source)))
    if (prior := config.data.prior) is not None:
        rows, where = prior.rows(config.batch_size), prior.path or prior.source
        lines.append(("prior", f"{rows} of each {config.batch_size} images are of {where}"))
    seen, odd = "", ()
    if source is not None and not isinstance(source, str):
        epochs = config.num_steps / steps_per_epoch(config, source)
        average = " on average" if config.data.weights else ""
        seen = f": each image is seen {epochs:,.2f} times{average}"
        odd = _odd(config, len(source), epochs), _one_class(source)
    lines.append(("steps", f"{config.num_steps:,} of {config.batch_size} images{seen}"))
    sizes = f"{num_parameters(params):,} trained"
    if below := num_parameters(plan.frozen):
        sizes += f", {below:,} frozen"
    lines.append(("parameters", sizes))
    if not steps:
        lines.append(("start", _start(config, plan.frozen)))
    if config.ema is not None:
        lines.append(("averages", _averages(config, params)))
    if workdir is not None:
        lines += _outputs(config, workdir)
        odd = *odd, _no_room(config, params, workdir)
    said = [f"{name:<12}{text}" for name, text in lines]
    notes = filter(None, (accelerators.unused_accelerator(), *odd))
    return "\n".join([*said, *(f"warning: {note}" for note in notes)])


def look_at_images(config: RunConfig) -> Source | str | None:
    """The run's images, or why they cannot be read, without a download."""
    kinds = {config.data.source, *(own.source for own in config.data.sets.values())}
    if kinds.intersection(NOT_LOOKED_AT):
        return None
    try:
        return batches.make_source(config)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def _images(config: RunConfig, source: Source | None) -> str:
    section, conditioning = config.data, config.stage.conditioning
    reads = READS[conditioning]
    if conditioning == "text" and section.prompt is not None:
        reads = f"all with the caption {section.prompt!r}"
    if section.source == MIXTURE:
        where = " and ".join(f"{own.path or name}" for name, own in sorted(section.sets.items()))
    else:
        where = section.path or section.source
    if source is None:
        return f"of {where} ({section.source}), not counted; {reads}"
    inner = getattr(source, "source", source)  # of one with embedded captions
    total, count = getattr(inner, "total", None), len(source)
    if total and total > count:
        reads = f"split {section.split}, {total - count:,} are held out; {reads}"
    return f"{count:,} of {where}; {reads}"


def _start(config: RunConfig, frozen: Frozen) -> str:
    parts = ["random weights" if config.init_from is None else f"the network of {config.init_from}"]
    if config.lora is not None:
        parts = [f"an adapter to {parts[0]}"]
    if config.text is not None and config.stage.conditioning == "text":
        source = build.encoder_source(config)
        if config.data.embeddings is not None:
            parts.append(f"captions embedded in {config.data.embeddings}")
        elif source is None:
            parts.append("a new text encoder, trained along")
        else:
            how = "frozen" if frozen.text_encoder is not None else "trained along"
            parts.append(f"the text encoder of {source}, {how}")
    return "; ".join(parts)


def _snapshots(config: RunConfig, params: Params) -> tuple[int, int]:
    """(how many snapshots of the averages the whole run makes, the bytes of one)."""
    count = -(-config.num_steps // config.ema.interval(config.num_steps))
    size = num_parameters(params) * np.dtype(jnp.dtype(config.ema.dtype)).itemsize
    return count, size * len(config.ema.widths)


def _averages(config: RunConfig, params: Params) -> str:
    count, size = _snapshots(config, params)
    widths = " and ".join(map(width_name, config.ema.widths))
    return (
        f"of relative widths {widths}; {count:,} snapshots of {size_text(size)} in {SNAPSHOTS}/, "
        f"{size_text(count * size)} in all"
    )


def _no_room(config: RunConfig, params: Params, workdir: str | os.PathLike) -> str | None:
    """What is odd about the disk: that it is too small for the snapshots that are still to come."""
    if config.ema is None or not Path(workdir).is_dir():
        return None
    count, size = _snapshots(config, params)
    needed = size * (count - len(snapshot_steps(workdir)))
    free = shutil.disk_usage(workdir).free
    if needed <= free:
        return None
    return (
        f"the snapshots in {SNAPSHOTS}/ need {size_text(needed)} and {size_text(free)} are free: "
        "a larger ema.every makes fewer of them, ema.dtype float16 smaller ones"
    )


def _outputs(config: RunConfig, workdir: str | os.PathLike) -> list[tuple[str, str]]:
    near = os.path.relpath(workdir)
    folder = os.path.abspath(workdir) if near.startswith("..") else near
    saved = f"{folder}/checkpoints every {config.checkpoint.every:,} steps"
    if sampled(config)[1]:
        every = config.sample.every
        when = f" every {every:,}" if every else " at the end"
        saved += f", {SAMPLES_FOLDER}/{when}"
    return [
        ("writes", f"{saved}, {METRICS_FILE}"),
        ("watch", f"tensorboard --logdir {shlex.quote(folder)}"),
    ]


def _one_class(source: Source) -> str | None:
    """What is odd about the labels, where the source knows them: that they are all the same."""
    labels = getattr(source, "labels", None)
    if labels is None or np.min(labels) < np.max(labels):
        return None
    names = class_names(source)
    name = f" ({names[labels[0]]})" if names else ""
    return f"all images have the label {labels[0]}{name}: the model learns no difference of classes"


def _odd(config: RunConfig, count: int, epochs: float) -> str | None:
    """What is odd about the number of images, in words."""
    if epochs < 1:
        return (
            f"{config.num_steps:,} steps see only {epochs:.0%} of the images: raise num_steps or "
            "batch_size to see them all"
        )
    if config.batch_size > count:
        return (
            f"batch_size {config.batch_size} is more than the {count} images: each batch has some "
            "of them several times"
        )
    if epochs > MANY_EPOCHS:
        return (
            f"each image is seen {epochs:,.0f} times: the model will learn {count:,} images by "
            "heart; fewer num_steps or more images"
        )
    return None

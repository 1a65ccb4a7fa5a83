"""The training loop: one compiled step, its reports, checkpoints, samples, and the ways a run may
end.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.devices.hosts import StopRequest, place, say_on_first_host
from imagen_jax.devices.sharding import batch_sharding, replicated, state_shardings
from imagen_jax.storage.checkpoint import Checkpoints, check_weights
from imagen_jax.training import flops
from imagen_jax.training import metrics as metrics_lib
from imagen_jax.training.feed import Batches, Feed, batches_taken
from imagen_jax.training.metrics import MetricLog, Progress, progress_line
from imagen_jax.training.state import Frozen
from imagen_jax.typing import Params

SampleFn = Callable[[Params, int], Image.Image]
ScoreFn = Callable[[Params], dict[str, float]]


class NonFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the message says where and what to try."""


@dataclass(frozen=True)
class LoopConfig:
    """How long to train and how often to report. `None` for an interval: never.

    profile: (first, last) step of a trace for TensorBoard or Perfetto, written into the workdir.
    skip_batches: (first, last) numbers of batches that are left out; the steps go on counting. Step
    s uses batch s - 1 where none before it is left out. num_classes: labels are below it.
    """

    num_steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000
    sample_every: int | None = None
    score_every: int | None = None
    profile: tuple[int, int] | None = None
    skip_batches: tuple[tuple[int, int], ...] = ()
    num_classes: int | None = None

    def __post_init__(self):
        intervals = ("log_every", "checkpoint_every", "sample_every", "score_every")
        for name in ("num_steps", "batch_size", *intervals):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(
                f"profile must be FIRST:LAST with 1 <= FIRST <= LAST, not {self.profile}"
            )
        for first, last in self.skip_batches:
            if not 0 <= first <= last:
                raise ValueError(
                    f"skip_batches must be FIRST:LAST with 0 <= FIRST <= LAST, not {first}:{last}"
                )


def init_sharded(init: Callable[[jax.Array], Any], key: jax.Array, mesh: Mesh) -> Any:
    """`init(key)` with every array made where it will live, so that no device holds the whole
    state.
    """
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    # A random generator for each parameter is much code that runs once: on a CPU, compiling it
    # without optimization takes a fifth of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def abstract(state: Any) -> Any:
    """The state's shapes, dtypes and shardings without its values."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def lower_step(
    train_step: Callable, state: Any, batch: Any, mesh: Mesh, frozen: Frozen | None = None
) -> jax.stages.Lowered:
    """`train_step(state, batch, key, frozen)` for this mesh, with the state donated.

    `key` is the run's; the step gets fold_in(key, state.step). `frozen`: parameters that the step
    reads and does not train; None where it has none. Shapes will do in place of arrays.
    """
    shardings, kept = state_shardings(state, mesh), state_shardings(frozen, mesh)

    def step(state, batch, key, frozen):
        key = jax.random.fold_in(key, state.step)
        return train_step(state, batch, key, frozen)

    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), kept),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return jitted.lower(state, batch, jax.random.key(0), frozen)


def start_state(
    init: Callable[[jax.Array], Any], key: jax.Array, mesh: Mesh, weights: Params | None
) -> Any:
    """`init(key)`, sharded; with `weights` as parameters and average of the parts that they have.

    On an accelerator, weights that lie where parameters shall are taken, not copied: the first step
    overwrites them.
    """
    state = init_sharded(init, key, mesh)
    if weights is None:
        return state
    check_weights({part: state.params.get(part, {}) for part in weights}, weights)
    shardings = state_shardings(state.params, mesh)

    def placed(new, old, where):
        on_devices = isinstance(new, jax.Array)
        return place(new.astype(old.dtype) if on_devices else np.array(new, old.dtype), where)

    params = dict(state.params)
    for part, tree in weights.items():
        params[part] = jax.tree.map(placed, tree, state.params[part], shardings[part])
    # A copy each: the step is given both to overwrite. What was read onto CPU devices may share
    # memory.
    copied = jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=shardings)
    ema = None if state.ema is None else copied(params)
    return state._replace(
        params=copied(params) if jax.default_backend() == "cpu" else params, ema=ema
    )


def _check_finite(
    step: int, scalars: Mapping[str, float], config: LoopConfig, checkpoints: Checkpoints
) -> None:
    bad = {name: value for name, value in scalars.items() if not np.isfinite(value)}
    if not bad:
        return
    checkpoints.wait()
    saved = checkpoints.steps()
    last = (
        f"The last good checkpoint is step {saved[-1]}." if saved else "There is no checkpoint yet."
    )
    first, number = (
        batches_taken(steps, config.skip_batches) for steps in (saved[-1] if saved else 0, step)
    )
    ranges = [*config.skip_batches, (first, number - 1)]
    raise NonFiniteError(
        f"step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. {last} "
        f"({checkpoints.directory})\n"
        "A restart repeats this step exactly, so change something first. To go on with other "
        f"images than those since then: --config.skip_batches="
        f"{','.join(f'{low}:{high}' for low, high in ranges)}. Otherwise a lower "
        "optimizer.learning_rate or a longer optimizer.warmup_steps; optimizer.clip_norm=1.0; "
        "float32 instead of bfloat16 (stage.network.dtype); a look at the images of batch "
        f"{number - 1}. JAX_DEBUG_NANS=1 stops at the operation that made it."
    )


class _Run:
    """What the loop holds besides the state: the records of steps whose numbers have come in."""

    def __init__(
        self,
        config: LoopConfig,
        log: MetricLog,
        checkpoints: Checkpoints,
        progress: Progress,
        description: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        self.config, self.log, self.checkpoints = config, log, checkpoints
        self.progress, self.description, self.say = progress, description, say
        self.losses: list[float] = []  # since the last checkpoint: their mean ranks the best
        self.pending: tuple[int, Any] | None = None
        self.tracing = False

    def record(self) -> None:
        """Waits for the pending step's numbers, checks and writes them."""
        if self.pending is None:
            return
        step, values = self.pending
        self.pending = None
        scalars, t_sums, t_counts = metrics_lib.split(jax.device_get(values))
        self.log.step(step, scalars, t_sums, t_counts)
        _check_finite(step, scalars, self.config, self.checkpoints)
        self.losses.append(scalars["loss"])
        if step % self.config.log_every == 0 or step == self.config.num_steps:
            speed = self.progress.report(step)
            means = self.log.report(step, {f"speed/{name}": value for name, value in speed.items()})
            self.say(progress_line(step, self.config.num_steps, means, speed))
            self.checkpoints.check()

    def save(self, step: int, state: Any, feed: Feed) -> None:
        """Starts to write a checkpoint of `step`, whose numbers are good."""
        self.record()  # never save what may be NaN
        began = time.monotonic()
        run = dict(self.description, step=step, window=self.log.window.to_dict())
        if (batches := feed.state()) is not None:
            run["batches"] = batches
        loss = float(np.mean(self.losses)) if self.losses else float("inf")
        self.checkpoints.save(step, state, run=run, loss=loss)
        self.losses = []
        self.progress.pause(time.monotonic() - began)

    def draw(self, step: int, state: Any, sample: SampleFn) -> None:
        """An image of the average, or of the parameters where none is kept, into the log."""
        self.record()
        began = time.monotonic()
        self.log.images(step, sample(state.params if state.ema is None else state.ema, step))
        self.progress.pause(time.monotonic() - began)

    def score(self, step: int, state: Any, score: ScoreFn) -> None:
        """Figures of the same parameters as `draw`'s, into the log."""
        self.record()
        began = time.monotonic()
        values = score(state.params if state.ema is None else state.ema)
        self.log.scores(step, values)
        self.say(f"step {step}: " + ", ".join(f"{k} {value:.4g}" for k, value in values.items()))
        self.progress.pause(time.monotonic() - began)

    def start_trace(self, step: int, start: int) -> None:
        profile = self.config.profile
        if profile and step == max(profile[0], start + 1) <= profile[1]:
            jax.profiler.start_trace(str(self.log.folder))
            self.tracing = True

    def stop_trace(self, step: int, values: Any, ends: bool) -> None:
        if self.tracing and (ends or step == self.config.profile[1]):
            jax.block_until_ready(values)
            jax.profiler.stop_trace()
            self.tracing = False
            self.say(f"wrote a trace of steps up to {step} into {self.log.folder}")


def _start(
    config: LoopConfig,
    init: Callable[[jax.Array], Any],
    mesh: Mesh,
    checkpoints: Checkpoints,
    weights: Params | None,
) -> tuple[Any, dict[str, Any]]:
    """(state, what was saved beside it): of the newest checkpoint, or a new state and nothing."""
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    checkpoints.check_space(shapes)
    restored = checkpoints.restore(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, mesh),
        )
    )
    return (start_state(init, key, mesh, weights), {}) if restored is None else restored


def say_other_batches(
    config: LoopConfig, saved: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Says what makes the batches from here on others than those that the run would have had."""
    for name in ("seed", "batch_size"):
        before, now = saved.get("config", {}).get(name), getattr(config, name)
        if before is not None and before != now:
            say(
                f"warning: {name} was {before} and is {now} now: the order of the images is "
                "another, and some come again before others have come"
            )


def train(
    config: LoopConfig,
    train_step: Callable,
    init: Callable[[jax.Array], Any],
    batches: Batches,
    *,
    mesh: Mesh,
    checkpoints: Checkpoints,
    workdir: str | Path,
    description: Mapping[str, Any],
    frozen: Frozen | None = None,
    weights: Params | None = None,
    sample: SampleFn | None = None,
    score: ScoreFn | None = None,
    reference: metrics_lib.Curve | None = None,
    say: Callable[[str], None] = say_on_first_host,
) -> Any:
    """Trains to `config.num_steps`, from the newest checkpoint if there is one, and returns the
    state.

    Args:
        train_step: (state, batch, key, frozen) -> (state, {"loss", "grad_norm", "loss_by_t",
            "count_by_t", ...}).
        init: key -> state, with fields step, params, ema (or None) and opt_state.
        description: JSON-able, goes into each checkpoint: the config and what a pipeline needs to
            read it.
        frozen: parameters that the step reads and does not train.
        weights: parameters to start from, of all parts or of some, where there is no checkpoint
            yet; arrays on devices are given away.
        sample: (parameters, step) -> an image; gets the EMA where there is one.
        score: parameters -> figures by name; likewise.
        reference: the curve of a run of the same stage, reported beside the loss.

    Raises:
        NonFiniteError: the loss or gradient is NaN or infinite.
        CheckpointError: a checkpoint could not be written, or none of those found can be read.
        LabelError: a batch has a label that is not below config.num_classes.
        ValueError: the checkpoint does not fit the config.
    """
    state, saved = _start(config, init, mesh, checkpoints, weights)
    if saved:
        say(f"resumed at step {saved['step']} from {checkpoints.directory}")
        say_other_batches(config, saved, say)
    start = int(state.step)
    if start >= config.num_steps:
        say(f"already trained to step {start}; num_steps is {config.num_steps}")
        return state

    saved_batches, skipped = saved.get("batches"), config.skip_batches
    feed = Feed(batches, start, saved_batches, skipped, mesh, config.num_classes)
    if frozen is not None:
        frozen = jax.tree.map(place, frozen, state_shardings(frozen, mesh))
    began = time.monotonic()
    lowered = lower_step(train_step, state, feed.batch, mesh, frozen)
    compiled = {feed.batch["image"].shape: lowered.compile()}

    def step_fn(state, batch, key, frozen):
        shape = batch["image"].shape  # of another bucket of aspect ratios
        if shape not in compiled:
            compiled[shape] = lower_step(train_step, state, batch, mesh, frozen).compile()
        return compiled[shape](state, batch, key, frozen)

    say(f"compiled the step in {time.monotonic() - began:.0f} s")

    peaks = [metrics_lib.peak_flops(device) for device in mesh.devices.flat]
    peak = None if None in peaks else sum(peaks)
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
    step_flops = flops.total(train_step, state, feed.batch, key, frozen)
    progress = Progress(config.num_steps, config.batch_size, step_flops, peak)
    log = MetricLog(
        workdir,
        start_step=start,
        window=saved.get("window"),
        reference=reference,
        write=jax.process_index() == 0,
    )
    run = _Run(config, log, checkpoints, progress, description, say)
    progress.start(start)
    with contextlib.closing(log), StopRequest() as stop:
        for step in range(start + 1, config.num_steps + 1):
            run.start_trace(step, start)
            state, values = step_fn(state, feed.batch, key, frozen)
            last, stopping = step == config.num_steps, stop.at(step)
            saving = last or stopping or step % config.checkpoint_every == 0
            # While the device works: the next batch, then the numbers of the step before. A step
            # that is saved takes its next batch after saving: the checkpoint holds the iterator as
            # of this step.
            if not saving:
                feed.next()
            run.record()
            run.pending = (step, values)
            run.stop_trace(step, values, stopping or last)
            if saving:
                run.save(step, state, feed)
            if stopping and not last:
                checkpoints.wait()
                say(f"stopped by a signal after step {step}; the same command goes on from here")
                return state
            if sample is not None and (last or step % (config.sample_every or step + 1) == 0):
                run.draw(step, state, sample)
            if score is not None and (last or step % (config.score_every or step + 1) == 0):
                run.score(step, state, score)
            if saving and not last:
                feed.next()
        checkpoints.wait()
        say(f"finished at step {config.num_steps}; checkpoints in {checkpoints.directory}")
    return state

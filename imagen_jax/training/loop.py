"""The training loop: one compiled step, its reports, checkpoints and samples, and the ways in which
a run may end.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.data.counts import TooManyBroken
from imagen_jax.data.sources import Source
from imagen_jax.devices import accelerators, chips, hosts
from imagen_jax.devices.compile_options import compiler_options, random_by_kernel
from imagen_jax.devices.sharding import batch_sharding, replicated, state_shardings
from imagen_jax.pipeline.snapshots import remove_snapshots_after, write_snapshot
from imagen_jax.storage.checkpoint import CheckpointError, Checkpoints, MismatchError, check_weights
from imagen_jax.training import flops, metrics
from imagen_jax.training.changes import say_changes
from imagen_jax.training.classes import check_saved
from imagen_jax.training.feed import Batches, Feed, LabelError, Ranges, batches_taken
from imagen_jax.training.optimizer import learning_rate_schedule
from imagen_jax.training.progress import Progress, position, steps_per_epoch
from imagen_jax.training.run_config import RunConfig, read_ranges
from imagen_jax.training.state import Frozen, averaged
from imagen_jax.training.writers import Writer
from imagen_jax.typing import Keys, Params


class NonFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the message says where and what to try."""


# What ends a run with a message for the user; anything else is a bug.
RUN_ERRORS = (NonFiniteError, CheckpointError, MismatchError, LabelError, TooManyBroken)


@dataclass(frozen=True)
class Run:
    """What `train` is given besides the config.

    train_step: (state, batch, key, frozen) -> (state, {"loss", "grad_norm", "loss_by_t",
        "count_by_t", ...}).
    init: key -> state, with fields step, params, ema (or None), opt_state and, where the config
        has a section ema, power_ema.
    batches: (batch to start at, iterator state) -> this host's rows of that batch, the next, ...
    workdir: for metrics and samples.
    description: JSON-able, goes into each checkpoint: the config and what a pipeline needs to read
        the parameters.
    keep_model: writes beside the checkpoints what else a pipeline needs; called when it is known
        that the config fits them.
    frozen: parameters that the step reads and does not train, where they belong on the mesh.
    weights: parameters to start from, of all parts or of some, where there is no checkpoint yet;
        arrays on devices are given away.
    sample: parameters -> an image; score: parameters -> scores by name. They get the average of the
        parameters where there is one. score_every: steps between scores; None: as
        section `evaluate` says, without one at the end alone.
    reference: the curve of a run of the same stage, reported beside the loss.
    writers: those beside TensorBoard's, of the first host.
    source: the images of the batches, to count epochs; None for a stream.
    """

    train_step: Callable
    init: Callable[[Keys], Any]
    mesh: jax.sharding.Mesh
    batches: Batches
    checkpoints: Checkpoints
    workdir: Path
    description: Mapping[str, Any]
    keep_model: Callable[[], None] = lambda: None
    frozen: Frozen = field(default_factory=Frozen)
    weights: Params | None = None
    sample: Callable[[Params], Image.Image] | None = None
    score: Callable[[Params], dict[str, float]] | None = None
    score_every: int | None = None
    reference: metrics.Curve | None = None
    writers: tuple[Writer, ...] = ()
    source: Source | None = None


def train(
    config: RunConfig,
    run: Run,
    *,
    profile: tuple[int, int] | None = None,
    say: Callable[[str], None] = hosts.say_on_first_host,
) -> Any:
    """Trains to `config.num_steps`, from the newest checkpoint if there is one, and returns the
    state.

    Args:
        profile: (first, last) step of a trace for TensorBoard or Perfetto, written into the
            workdir.
        say: gets each line that is reported.

    Raises:
        NonFiniteError: the loss or gradient is NaN or infinite.
        CheckpointError: a checkpoint could not be written, or none of those found can be read.
        LabelError: a batch has a label that is not below the network's num_classes.
        ValueError: the checkpoint does not fit the config.
    """
    mesh, checkpoints, num_steps = run.mesh, run.checkpoints, config.num_steps

    # ---------------------------------------------------------------- state: restored, or new
    get_state, saved, shapes = start_or_restore(config, run)
    run.keep_model()
    start = int(get_state().step) if saved else 0
    if saved:
        check_saved(saved, run.description)
        say(f"resumed at step {start} from {checkpoints.directory}")
        say_changes(config, run.source, saved, say)
    if start >= num_steps:
        say(f"already trained to step {start}; num_steps is {num_steps}")
        return get_state()
    if config.ema is not None and (later := remove_snapshots_after(run.workdir, start)):
        say(f"removed the snapshots of steps {later}, which are done again")

    # ---------------------------------------------------------------- data
    skipped, num_classes = read_ranges(config.skip_batches), config.stage.network.num_classes
    feed = Feed(run.batches, start, saved.get("batches"), skipped, mesh, num_classes)

    # ---------------------------------------------------------------- the step, compiled
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
    programs = {}  # by the shape of the images: one for each bucket of aspect ratios

    def compiled(batch: dict[str, jax.Array]) -> tuple[Callable, float]:
        """The step for a batch, and its FLOPs."""
        shape = batch["image"].shape
        if shape not in programs:
            say(f"compiling the step for images {list(shape)}; large networks take minutes")
            began = time.monotonic()
            traced = trace_step(run.train_step, shapes, batch, mesh, run.frozen)
            compiled_step = traced.lower().compile(compiler_options())
            programs[shape] = compiled_step, sum(flops.of_jaxpr(traced.jaxpr).values())
            say(f"compiled the step in {time.monotonic() - began:.0f} s")
        return programs[shape]

    held = contextlib.ExitStack()
    # From here on: what a signal raises while JAX compiles may be lost within JAX.
    stop_after = held.enter_context(hosts.stop_on_signal())
    _, step_flops = compiled(feed.batch)
    state = get_state()
    del get_state  # it would keep this state

    # ---------------------------------------------------------------- reports
    found = [chips.find_chip(device.device_kind) for device in mesh.devices.flat]
    peak = None if None in found else sum(chip.flops for chip in found)
    log = metrics.MetricLog(
        run.workdir,
        start_step=start,
        window=saved.get("window"),
        reference=run.reference,
        write=jax.process_index() == 0,
        writers=run.writers,
    )
    device = accelerators.describe(mesh.devices.flat)
    progress = Progress(num_steps, config.batch_size, start, step_flops, peak, device)
    rate, epoch = learning_rate_schedule(config.optimizer), steps_per_epoch(config, run.source)
    losses = []  # since the last checkpoint: their mean ranks the best one
    pending = []  # (step, metrics) of the newest step, still on the devices

    def record() -> None:
        """Waits for the pending metrics, checks and writes them."""
        while pending:
            step, values = pending.pop()
            values = metrics.split(jax.device_get(values))
            log.step(step, values)
            check_finite(step, values["sums"], skipped, checkpoints)
            losses.append(values["sums"]["loss"])
            reported = step % config.log_every == 0 or step == num_steps
            if reported or progress.due(step):
                speed = progress.report(step) if reported else progress.speed(step)
                figures = position(step, rate, skipped, epoch)
                means = log.means() | figures
                if reported:
                    extra = {f"speed/{name}": speed[name] for name in speed}
                    means = log.report(step, extra, figures)
                for line in progress.lines(step, means, speed):
                    say(line)
            if reported:
                checkpoints.check()

    def save(step: int) -> None:
        """Starts to write a checkpoint."""
        values = dict(run.description, step=step, window=log.window)
        if run.source is not None:
            values["images"] = len(run.source)
        if (position := feed.state()) is not None:
            values["batches"] = position
        loss = float(np.mean(losses)) if losses else float("inf")
        checkpoints.save(step, state, run=values, loss=loss)
        losses.clear()

    # ---------------------------------------------------------------- the loop
    sample_every = (config.sample and config.sample.every) or num_steps
    score_every = run.score_every or (config.evaluate and config.evaluate.every) or num_steps
    snapshot_every = num_steps if config.ema is None else config.ema.interval(num_steps)
    first, final = profile or (0, 0)
    traced = range(max(first, start + 1), final + 1)
    with held, contextlib.closing(log):
        for step in range(start + 1, num_steps + 1):
            if traced and step == traced[0]:
                jax.profiler.start_trace(str(run.workdir))
            step_program, _ = compiled(feed.batch)
            state, values = step_program(state, feed.batch, key, run.frozen)
            last, stopping = step == num_steps, stop_after(step)
            saving = last or stopping or step % config.checkpoint.every == 0
            # While the devices work: the next batch, and the metrics of the step before. A step
            # that is saved takes its next batch after saving, because the checkpoint holds the
            # iterator as of this step.
            if not saving:
                with progress.waiting():
                    feed.next()
            record()
            pending.append((step, values))
            if step in traced and (stopping or last or step == traced[-1]):
                jax.block_until_ready(values)
                jax.profiler.stop_trace()
                say(f"wrote a trace of steps up to {step} into {run.workdir}")
            sampling = run.sample is not None and (last or step % sample_every == 0)
            scoring = run.score is not None and (last or step % score_every == 0)
            snapshot = config.ema is not None and (last or step % snapshot_every == 0)
            # What may be NaN is never saved; a first line comes as soon as it can.
            if saving or sampling or scoring or snapshot or step == start + 1:
                record()
            with progress.pause():
                if snapshot:  # before the checkpoint: a run that goes on there has it
                    write_snapshot(run.workdir, step, state.power_ema, config.ema.dtype)
                if saving:
                    save(step)
                if stopping and not last:
                    checkpoints.wait()
                    say(
                        f"stopped by a signal after step {step}, which is saved in "
                        f"{checkpoints.directory}"
                    )
                    return state
                if sampling:
                    image = run.sample(averaged(state))
                    say(f"step {step}: samples in {log.images(step, image)}")
                if scoring:
                    scores = run.score(averaged(state))
                    log.scores(step, scores)
                    figures = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
                    say(f"step {step}: {figures}")
            if saving and not last:
                with progress.waiting():
                    feed.next()
        checkpoints.wait()
        say(f"finished at step {num_steps}; checkpoints in {checkpoints.directory}")
    return state


def trace_step(
    train_step: Callable, state: Any, batch: Any, mesh: jax.sharding.Mesh, frozen: Frozen = Frozen()
) -> jax.stages.Traced:
    """`train_step(state, batch, key, frozen)` for this mesh, with the state donated.

    `key` is the run's; the step gets fold_in(key, state.step). `frozen`: parameters that the step
    reads and does not train, where they lie. Shapes will do in place of arrays. To be lowered, and
    compiled with `compiler_options` for the mesh's platform.
    """
    shardings = state_shardings(state, mesh)

    def step(state, batch, key, frozen):
        key = jax.random.fold_in(key, state.step)
        return train_step(state, batch, key, frozen)

    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), None),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return jitted.trace(state, batch, jax.eval_shape(jax.random.key, 0), frozen)


def lower_init(init: Callable[[Keys], Any], key: Keys, mesh: jax.sharding.Mesh) -> Callable:
    """What compiles and runs `init(key)`, with every array made where it will live: no device holds
    the whole state.
    """
    shardings = state_shardings(jax.eval_shape(init, key), mesh)
    # A random generator for each parameter is much code that runs once: on a CPU, compiling it
    # without optimization takes a fifth of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    with random_by_kernel():
        lowered = jax.jit(init, out_shardings=shardings).lower(key)
    return lambda: lowered.compile(options)(key)


def init_sharded(init: Callable[[Keys], Any], key: Keys, mesh: jax.sharding.Mesh) -> Any:
    """`init(key)` with every array made where it will live."""
    return lower_init(init, key, mesh)()


def start_state(
    init: Callable[[Keys], Any], key: Keys, mesh: jax.sharding.Mesh, weights: Params | None
) -> Any:
    """`init(key)`, sharded; parts that `weights` has are taken from there, for the average too.

    On an accelerator, weights that already lie where the parameters belong are taken over, not
    copied: the first step overwrites them.
    """
    state = init_sharded(init, key, mesh)
    if weights is None:
        return state
    check_weights({part: state.params.get(part, {}) for part in weights}, weights)
    shardings = state_shardings(state.params, mesh)
    params = dict(state.params)
    for part, tree in weights.items():
        params[part] = jax.tree.map(
            lambda new, old, where: hosts.place(new.astype(old.dtype), where),
            tree,
            params[part],
            shardings[part],
        )
    # The step overwrites both, so each needs its own arrays. What was read onto CPU devices may
    # share memory.
    copied = jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=shardings)
    ema = None if state.ema is None else copied(params)
    return state._replace(
        params=copied(params) if jax.default_backend() == "cpu" else params, ema=ema
    )


def start_or_restore(config: RunConfig, run: Run) -> tuple[Callable[[], Any], dict[str, Any], Any]:
    """(what gives the state, what was saved beside it, the state's shapes): of the newest
    checkpoint, or else a new one, which is made meanwhile.
    """
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(run.init, key)
    run.checkpoints.check_space(shapes)
    restored = run.checkpoints.restore(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, run.mesh),
        )
    )
    if restored:
        state, saved = restored
        return lambda: state, saved, shapes
    # Weights that do not fit are told before the step is compiled; several hosts have to start
    # their programs in one order.
    if run.weights is None and jax.process_count() == 1:
        return in_background(lower_init(run.init, key, run.mesh)), {}, shapes
    state = start_state(run.init, key, run.mesh, run.weights)
    return lambda: state, {}, shapes


def in_background(make: Callable[[], Any]) -> Callable[[], Any]:
    """Begins `make()` in a thread; what is returned waits for it and gives its result."""
    thread = ThreadPoolExecutor(1)
    made = thread.submit(make)
    thread.shutdown(wait=False)
    return made.result


def check_finite(
    step: int, scalars: Mapping[str, float], skipped: Ranges, checkpoints: Checkpoints
) -> None:
    """NonFiniteError where a number of this step is not finite, with what to do about it."""
    bad = {name: value for name, value in scalars.items() if not np.isfinite(value)}
    if not bad:
        return
    checkpoints.wait()
    saved = max(checkpoints.steps(), default=0)
    last = f"The last good checkpoint is step {saved}." if saved else "There is no checkpoint yet."
    number = batches_taken(step, skipped) - 1
    ranges = [*skipped, (batches_taken(saved, skipped), number)]
    raise NonFiniteError(
        f"step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. {last} "
        f"({checkpoints.directory})\n"
        "A restart repeats this step exactly, so change something first. To continue without the "
        "images since then: --config.skip_batches="
        f"{','.join(f'{low}:{high}' for low, high in ranges)}. Otherwise a lower "
        "optimizer.learning_rate or a longer optimizer.warmup_steps; optimizer.clip_norm=1.0; "
        "float32 instead of bfloat16 (stage.network.dtype); a look at the images of batch "
        f"{number}. JAX_DEBUG_NANS=1 stops at the operation that produced it."
    )

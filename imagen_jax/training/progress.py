"""How far a run is and how fast: the lines on the screen, and the speed in the metrics."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from imagen_jax.data.sources import Source
from imagen_jax.training.feed import Ranges, batches_taken
from imagen_jax.training.optimizer import Schedule
from imagen_jax.training.run_config import RunConfig

LINE_SECONDS = 60.0  # a line comes at least this often, where a step takes less
DAY = 86_400.0
LONG_WAIT = 0.02  # of the time, for input: told from here on


@dataclass
class Progress:
    """Speed since the last report without pauses, and when the next line is due.

    step: where the run starts. flops_per_step: of the model, over all devices; None when unknown.
    peak: FLOP/s of all devices together; None when unknown. device: its name, for the warning.
    """

    num_steps: int
    batch_size: int
    step: int = 0
    flops_per_step: float | None = None
    peak: float | None = None
    device: str = ""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self):
        self.first, self.since, self.spoken = self.step, self.clock(), self.clock()
        self.paused = self.longest = self.waited = 0.0
        self.warned = False

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what runs inside, sampling and saving, out of the speed."""
        began = self.clock()
        yield
        took = self.clock() - began
        self.since += took
        self.paused, self.longest = self.paused + took, max(self.longest, took)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What runs inside is waiting for input, while the devices may still work."""
        began = self.clock()
        yield
        self.waited += self.clock() - began

    def due(self, step: int) -> bool:
        """Whether this step gets a line though no report: the first, or one after a minute."""
        return step == self.first + 1 or self.clock() - self.spoken >= LINE_SECONDS

    def speed(self, step: int) -> dict[str, float]:
        """images_per_second, gflops_per_second, mfu where the peak is known, and input_wait, the
        share of the time in which the loop waited for its next batch (at most that much is lost),
        since the last report; eta_seconds, with the pauses that are to be expected.
        """
        seconds = max(self.clock() - self.since, 1e-9)
        steps_per_second = (step - self.step) / seconds
        speed = {"images_per_second": steps_per_second * self.batch_size}
        speed["input_wait"] = min(self.waited / seconds, 1.0)
        if self.flops_per_step:
            speed["gflops_per_second"] = steps_per_second * self.flops_per_step / 1e9
            if self.peak:
                speed["mfu"] = steps_per_second * self.flops_per_step / self.peak
        # The longest pause was that of compiling; it does not come again.
        pause = (self.paused - self.longest) / max(step - self.first, 1)
        per_step = 1 / max(steps_per_second, 1e-9) + pause
        speed["eta_seconds"] = (self.num_steps - step) * per_step
        return speed

    def report(self, step: int) -> dict[str, float]:
        """`speed`, which is counted anew from here on."""
        speed = self.speed(step)
        self._begin(step)
        return speed

    def _begin(self, step: int) -> None:
        self.since, self.step, self.waited = self.clock(), step, 0.0

    def lines(self, step: int, means: Mapping[str, float], speed: Mapping[str, float]) -> list[str]:
        """What is printed of a step. Once, where days are left, with a warning."""
        self.spoken = self.clock()
        lines = [progress_line(step, self.num_steps, means, speed)]
        days = speed["eta_seconds"] / DAY
        if step == self.first + 1:  # it warms up: what comes after it is measured by itself
            self._begin(step)
        elif days >= 1 and not self.warned:
            self.warned = True
            cause = "fewer num_steps, a smaller network or more devices take less"
            if self.device.startswith("CPU"):
                cause = "a GPU or TPU is many times as fast, or train a smaller network"
            lines.append(f"warning: about {days:.1f} days are left on this {self.device}: {cause}")
        return lines


def steps_per_epoch(config: RunConfig, source: Source | None) -> float | None:
    """How many steps see each image of the set (not the prior's) once; None for a stream."""
    rows, prior = config.batch_size, config.data.prior
    if source is None:
        return None
    return len(source) / (rows - (prior.rows(rows) if prior else 0))


def position(
    step: int, rate: Schedule, skipped: Ranges = (), per_epoch: float | None = None
) -> dict[str, float]:
    """The learning rate of a step's update and, where `steps_per_epoch` is known, how many times
    the images were seen after it.
    """
    known = {"learning_rate": float(rate(step - 1))}
    if per_epoch:
        known["epoch"] = batches_taken(step, skipped) / per_epoch
    return known


def progress_line(
    step: int, num_steps: int, means: Mapping[str, float], speed: Mapping[str, float]
) -> str:
    """step 1,200/40,000 | epoch 5.3 | loss 0.2134 (reference 0.2080) | grad 0.81 | rate 1.0e-04
    | 41.2 images/s | 123 GFLOP/s | 0:52:10 left

    and, where the loop waits for its batches for LONG_WAIT of the time, how much that is.
    """
    loss = f"loss {means['loss']:.4f}"
    if "reference/loss" in means:
        loss += f" (reference {means['reference/loss']:.4f})"
    parts = [f"step {step:,}/{num_steps:,}", loss]
    if "epoch" in means:
        parts.insert(1, f"epoch {means['epoch']:.2f}")
    if "grad_norm" in means:
        parts.append(f"grad {means['grad_norm']:.3g}")
    if "learning_rate" in means:
        parts.append(f"rate {means['learning_rate']:.1e}")
    parts.append(f"{speed['images_per_second']:.1f} images/s")
    if "mfu" in speed:
        parts.append(f"MFU {speed['mfu']:.1%}")
    elif "gflops_per_second" in speed:
        parts.append(f"{speed['gflops_per_second']:.0f} GFLOP/s")
    if speed.get("input_wait", 0.0) >= LONG_WAIT:
        parts.append(f"waiting for input {speed['input_wait']:.0%}")
    parts.append(f"{timedelta(seconds=round(speed['eta_seconds']))} left")
    return " | ".join(parts)

"""Where a run's scalars and images go beside metrics.jsonl: TensorBoard, and Weights & Biases.

A writer is whatever has the three methods of `Writer`.
"""

import contextlib
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.disk import disk_errors

WANDB_FILE = "wandb_id"  # in the workdir: what W&B calls the run, for when it is resumed
START_SECONDS, END_SECONDS = 30, 60  # for W&B's server: to answer, and to take what is left
GRACE_SECONDS = 5  # for W&B itself to end
MOST_WAITING = 1000  # reports and images that W&B may be behind
# Settings of W&B, each unless its own variable in the environment says otherwise: no code, no
# packages, nothing of the machine or of git, and nothing printed but errors.
WANDB_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "finish_timeout": float(END_SECONDS),
    "host": "",
    "init_timeout": float(START_SECONDS),
    "quiet": True,
    "save_code": False,
    "show_info": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@runtime_checkable
class Writer(Protocol):
    """Takes what a run reports, as it comes; a resumed run repeats steps."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name; a / in a name puts it under a heading."""

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """An image of a step."""

    def close(self) -> None:
        """Writes what is left."""


class EventFile:
    """TensorBoard's event file of a run, written by the calling thread: a full disk is an OSError
    here.

    tensorboardX's SummaryWriter writes in a thread. Once that has died of such an error, the next
    calls wait for it forever.
    """

    def __init__(self, folder: str | Path, first_step: int | None = None):
        """`first_step`: of a resumed run; TensorBoard hides what was written from there on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder, self.event = Path(folder), Event
        with disk_errors(self.folder):
            self.writer = EventsWriter(str(self.folder / "events"))
        if first_step is not None:
            again = SessionLog(status=SessionLog.START)
            version = Event(step=first_step, file_version="brain.Event:2")
            self._write(version, Event(step=first_step, session_log=again))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The scalars of a step, by name."""
        from tensorboardX import summary

        scalars = [summary.scalar(name, value) for name, value in values.items()]
        self._write(*(self.event(step=step, summary=scalar) for scalar in scalars))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """An image of a step."""
        from tensorboardX import summary

        pixels = summary.image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
        self._write(self.event(step=step, summary=pixels))

    def hparams(
        self, step: int, values: Mapping[str, Any], metric: str, value: float | None
    ) -> None:
        """A run's hyper-parameters, numbers or texts, and its metric, for the tab HParams. Also a
        run without a value names the metric: TensorBoard goes by the first run.
        """
        from tensorboardX import summary

        parts = summary.hparams(dict(values), {metric: value})
        self._write(*(self.event(step=step, summary=part) for part in parts))
        self.scalars(step, {} if value is None else {metric: value})

    def close(self) -> None:
        """Closes the file."""
        with disk_errors(self.folder):
            self.writer.close()

    def _write(self, *events: Any) -> None:
        with disk_errors(self.folder):
            for event in events:
                event.wall_time = time.time()
                self.writer.write_event(event)
            self.writer.flush()


class WandbRun:
    """A run of Weights & Biases, in a project of the account that is logged in.

    A resumed run goes on in the same one. W&B counts log calls and takes no step twice, so its
    charts are drawn by our own scalar `step`: what a resumed run repeats is there twice, and equal.
    A thread of its own talks to W&B. What fails there is a warning, never an error: the run goes
    on, and writes the rest elsewhere.
    """

    def __init__(self, workdir: str | Path, project: str, config: Mapping[str, Any]):
        """`config`: of the run, as JSON. Needs `check_wandb` before.

        Raises:
            ConnectionError: W&B's server cannot be reached, or refuses the key or the project.
        """
        import wandb

        kept = Path(workdir) / WANDB_FILE
        resumed = kept.is_file()
        ours = kept.read_text(encoding="utf-8").strip() if resumed else secrets.token_hex(4)
        name = None if resumed else Path(workdir).name
        with _one_line():
            self.run = wandb.init(
                project=project,
                dir=str(workdir),
                id=os.environ.get("WANDB_RUN_ID") or ours,
                name=os.environ.get("WANDB_NAME") or name,
                config=dict(config),
                resume=os.environ.get("WANDB_RESUME") or "allow",
                allow_val_change=True,
            )
            self.run.define_metric("step", hidden=True)
            self.run.define_metric("*", step_metric="step")
        with written_whole(kept) as file:
            file.write_text(f"{self.run.id}\n", encoding="utf-8")
        place = self.run.settings.sync_dir if self.run.offline else self.run.url
        self.where = place or "disabled"
        self.waiting: queue.Queue[dict[str, Any] | int] = queue.Queue(MOST_WAITING)
        self.warned = False
        self.thread = threading.Thread(target=self._send, name="wandb", daemon=True)
        self.thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The scalars of a step, by name."""
        self._put({"step": step, **values})

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """An image of a step."""
        self._put({"step": step, name: image.copy()})

    def close(self) -> None:
        """Sends what is left, for at most `finish_timeout`; in an exception, as a run that failed.

        However W&B fares, the process can end after it.
        """
        import wandb

        status, limit = int(sys.exc_info()[0] is not None), self.run.settings.finish_timeout
        self._put(status)
        self.thread.join(limit + GRACE_SECONDS if limit else None)
        # Which would otherwise run as Python ends, and wait there for as long as it takes.
        ending = threading.Thread(target=self._try, args=(wandb.teardown, status), daemon=True)
        ending.start()
        ending.join(GRACE_SECONDS)
        if self.thread.is_alive() or ending.is_alive():
            self._warn("it does not answer")

    def _put(self, values: dict[str, Any] | int) -> None:
        try:
            self.waiting.put_nowait(values)
        except queue.Full:
            self._warn("it does not answer")

    def _send(self) -> None:
        """Logs what `_put` gives, until that is the status to end with."""
        import wandb

        while not isinstance(values := self.waiting.get(), int):
            images = {k: wandb.Image(v) for k, v in values.items() if isinstance(v, Image.Image)}
            self._try(self.run.log, {**values, **images})
        self._try(self.run.finish, values)

    def _try(self, call: Callable[[Any], Any], argument: Any) -> None:
        try:
            call(argument)
        except Exception as error:
            self._warn(str(error) or type(error).__name__)

    def _warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            print(f"Warning: W&B: {reason}; the run goes on without it", file=sys.stderr)


def check_wandb() -> None:
    """Whether runs can be logged to W&B as far as is known here, without a network.

    Raises:
        ImportError: wandb is not installed.
        ConnectionError: nobody is logged in, or W&B's settings are wrong.
    """
    # Its reports of its own use, errors and times go to W&B, unless the user wants that.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    chosen = {name: value for name, value in WANDB_SETTINGS.items() if not _in_environment(name)}
    with _one_line():
        mode = wandb.setup(wandb.Settings(**chosen)).settings.mode
        online = mode not in ("offline", "dryrun", "disabled")
        if online and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("nobody is logged in")


def _in_environment(setting: str) -> bool:
    # W&B takes x_... as WANDB__..., too.
    names = (setting.upper(), setting.upper().removeprefix("X"))
    return any(f"WANDB_{name}" in os.environ for name in names)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What W&B refuses as a ConnectionError, in a line that says what to do."""
    import wandb

    try:
        yield
    except (wandb.Error, ValueError, TimeoutError) as error:
        reason = re.sub(r"\s*\[type=.*", "", " ".join(str(error).split()))
        raise ConnectionError(
            f"W&B: {reason.rstrip('.')}. Log in with `wandb login` (or set WANDB_API_KEY), or log "
            "without a network with WANDB_MODE=offline."
        ) from error

"""TensorBoard's event file."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """Events in the folder of a run, written by the calling thread: a full disk is an OSError here.

    tensorboardX's SummaryWriter has a thread for it. Once that has died of such an error, the next
    calls wait for it for ever.
    """

    def __init__(self, folder: str | Path, first_step: int | None = None):
        """`first_step`: of a resumed run; TensorBoard hides what was written from there on."""
        self.writer = EventsWriter(str(Path(folder) / "events"))
        if first_step is not None:
            self._write(Event(step=first_step, file_version="brain.Event:2"))
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(Event(step=step, summary=summary.scalar(name, value)))
        self.writer.flush()

    def image(self, step: int, name: str, image: Image.Image) -> None:
        pixels = np.asarray(image.convert("RGB"))
        self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.writer.write_event(event)

"""Requests of the page: what is shown of each while its images are made."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.app import fields as read
from imagen_jax.app.jobs import Jobs, Report, Stopped
from imagen_jax.app.limits import Limits
from imagen_jax.app.models import Models, Traits
from imagen_jax.app.room import make_room
from imagen_jax.images.image_file import SETTINGS_KEY, read_settings
from imagen_jax.images.image_list import ImageList
from imagen_jax.images.pixels import to_pil, to_uint8
from imagen_jax.pipeline.progress import Progress

Make = Callable[..., ImageList]  # the method of a pipeline with all but how it is watched
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """files: PNGs, those that are finished first. note: one line about them."""

    files: list[Path]
    note: str


@dataclass(frozen=True)
class Studio:
    """What all requests share. folder: of the visitors' files, and the only one that is read."""

    models: Models
    limits: Limits
    folder: Path
    jobs: Jobs = field(default_factory=Jobs)

    def make(self, kind: str, fields: Fields, session: str | None = None) -> Iterator[Shown]:
        """What to show of a request of this kind (a key of KINDS) until it is done or stopped.

        Raises:
            ValueError: fields that cannot be, in a visitor's words.
        """
        name, call = KINDS[kind](self, fields)
        began = time.monotonic()
        make_room(self.folder, self.limits.kept_bytes)
        folder = Path(tempfile.mkdtemp(dir=self.folder))

        def work(report: Report) -> None:
            with self.models.use(name) as pipeline:
                call(
                    pipeline,
                    progress=False,
                    callback=lambda progress: report(_preview(progress)),
                    finished=report,
                )

        yield Shown([], f"{name} begins; a model's first images take longer.")
        done: list[Path] = []
        made: dict[str, Any] = {}
        try:
            for number, part in enumerate(self.jobs.run(session, work)):
                if isinstance(part, ImageList):
                    done += part.save(folder, grid=False)
                    made = part[0].info[SETTINGS_KEY]
                    yield Shown(list(done), f"{_images(len(done))} finished")
                else:
                    yield part.saved(folder / f"unfinished_{number}", done)
        except Stopped:
            yield Shown(done, f"Stopped; {_images(len(done))} finished.")
            return
        seconds = time.monotonic() - began
        yield Shown(
            done,
            f"{_images(len(done))} of {made['size']} pixels in {seconds:.1f} s, "
            f"seed {made['seed']}, by {name}.",
        )

    def settings(self, file: Any) -> str:
        """The settings in an image's file, as JSON to read, copy and make it again."""
        path = read.uploaded(file, self.folder)
        try:
            return json.dumps(read_settings(path), indent=1, ensure_ascii=False)
        except (ValueError, OSError):  # that names the file, by where it is here
            raise ValueError(
                "This image holds no settings of imagen_jax: give a PNG that it made "
                "(copies that were edited or converted lose them)."
            ) from None


@dataclass(frozen=True)
class Preview:
    """The estimates of a batch, uint8 [count, height, width, 3], and how far it is."""

    stage: str
    step: int
    steps: int
    images: np.ndarray

    def saved(self, folder: Path, done: list[Path]) -> Shown:
        folder.mkdir()
        files = [folder / f"{place}.png" for place in range(len(self.images))]
        for file, image in zip(files, self.images, strict=True):
            to_pil(image).save(file)
        return Shown([*done, *files], f"{self.stage}: step {self.step} of {self.steps}")


def _preview(progress: Progress) -> Preview:
    pixels = to_uint8(np.clip(np.nan_to_num(progress.x0), -1, 1))
    return Preview(progress.stage.name, progress.step, progress.steps, pixels)


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


# ---------------------------------------------------------------------------- kinds of requests


def _traits(studio: Studio, fields: Fields) -> Traits:
    return studio.models.traits(fields.get("model"))


def _generate(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.common_options(fields, traits, studio.limits)
    return traits.name, lambda pipeline, **watch: pipeline.generate_images(**options, **watch)


def _edit(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.common_options(fields, traits, studio.limits) | _strength(fields)
    image = read.read_image(fields.get("image"), studio.folder, studio.limits)
    return traits.name, lambda pipeline, **watch: _of_text(pipeline.edit, image)(**options, **watch)


def _inpaint(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.common_options(fields, traits, studio.limits) | _strength(fields)
    drawing = read.read_drawing(fields.get("image"), studio.folder, studio.limits)
    return traits.name, lambda pipeline, **watch: _of_text(pipeline.inpaint, *drawing)(
        **options, **watch
    )


def _upscale(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.upscale_options(fields, traits, studio.limits)
    image = read.read_image(fields.get("image"), studio.folder, studio.limits)
    return traits.name, lambda pipeline, **watch: pipeline.upscale(image, **options, **watch)


def _again(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.settings_options(fields.get("settings"), traits, studio.limits)
    return traits.name, lambda pipeline, **watch: pipeline.generate_images(**options, **watch)


def _strength(fields: Fields) -> dict[str, Any]:
    strength = read.check_most("strength", fields.get("strength"), 1)
    return {} if strength is None else {"strength": strength}


def _of_text(method: Callable[..., ImageList], *images: Any) -> Callable[..., ImageList]:
    """A method that wants a prompt, even of a model that reads none."""

    def called(prompt: str | None = None, **options: Any) -> ImageList:
        return method(*images, prompt, **options)

    return called


KINDS: dict[str, Callable[[Studio, Fields], tuple[str, Make]]] = {
    "generate": _generate,
    "edit": _edit,
    "inpaint": _inpaint,
    "upscale": _upscale,
    "again": _again,
}

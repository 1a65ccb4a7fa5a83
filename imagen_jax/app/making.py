"""Requests of the page: what is shown of each while its images are made."""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.app import fields as read
from imagen_jax.app.jobs import STOPPING, WAITING, Jobs, Report, Stopped
from imagen_jax.app.limits import Limits
from imagen_jax.app.models import Models, Traits
from imagen_jax.app.visitor_files import PREVIEWS, delete_previews, make_room
from imagen_jax.images.image_file import SETTINGS_KEY, read_settings, save_image
from imagen_jax.images.image_list import ImageList
from imagen_jax.images.pixels import to_pil, to_uint8
from imagen_jax.images.provenance import marked
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.progress import Progress
from imagen_jax.pipeline.settings import options_of

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
        delete_previews(self.folder)
        make_room(self.folder, self.limits.kept_bytes)
        folder = Path(tempfile.mkdtemp(dir=self.folder))

        def work(report: Report) -> None:
            with self.models.use(name) as pipeline:
                report(name)
                names = [stage.name for stage in pipeline.cascade.stages]
                # What may be held back is not shown half-made.
                hidden = pipeline.moderation is not None and pipeline.moderation.hides_images
                call(
                    pipeline,
                    progress=False,
                    callback=lambda progress: report(_preview(progress, names, hidden)),
                    finished=report,
                )

        yield from self._watched(name, session, work, folder)

    def _watched(
        self, name: str, session: str | None, work: Callable[[Report], None], folder: Path
    ) -> Iterator[Shown]:
        began, waits = time.monotonic(), f"{name} is being loaded"
        done: list[Path] = []
        count = 0  # of images: an explained one is followed by a page
        made: dict[str, Any] = {}
        moderated: list[str] = []
        shown = Shown([], "")
        try:
            for number, part in enumerate(self.jobs.run(session, work)):
                if isinstance(part, ImageList):
                    done += part.save(folder, grid=False)
                    count += sum(SETTINGS_KEY in image.info for image in part)
                    made = part[0].info[SETTINGS_KEY]
                    moderated += [found for image in part if (found := _moderated(image))]
                    waits = f"{_images(count)} finished"
                    yield (shown := Shown(list(done), waits))
                elif isinstance(part, Preview):
                    waits = part.waits
                    yield (shown := part.saved(folder / f"{PREVIEWS}{number}", done))
                elif part == STOPPING:
                    yield replace(shown, note="Stopping after this step ...")
                elif part == WAITING:
                    yield replace(shown, note=f"{waits}: {time.monotonic() - began:.0f} s")
                else:
                    waits = f"{name} begins; it is compiled for its first images"
        except Stopped:
            yield Shown(done, f"Stopped; {_images(count)} finished.")
            return
        seconds = time.monotonic() - began
        yield Shown(
            done,
            f"{_images(count)} of {made['size']} pixels in {seconds:.1f} s, "
            f"seed {made['seed']}, by {name}."
            + "".join(
                f" By moderation {_images(moderated.count(done))} {done}."
                for done in dict.fromkeys(moderated)
            ),
        )

    def settings(self, file: Any) -> str:
        """The settings in an image's file, as JSON to read, copy and make it again."""
        path = read.uploaded(file, self.folder)
        try:
            return json.dumps(read_settings(path, self.limits.pixels), indent=1, ensure_ascii=False)
        except (ValueError, OSError):  # that names the file, by where it is here
            raise ValueError(
                "This image holds no settings of imagen_jax: give a PNG that it made "
                "(copies that other programs made lose them)."
            ) from None


@dataclass(frozen=True)
class Preview:
    """The estimates of a batch, uint8 [count, height, width, 3], and how far it is.

    following: the stage after this one, "" after the last.
    """

    stage: str
    following: str
    step: int
    steps: int
    images: np.ndarray

    @property
    def note(self) -> str:
        return f"{self.stage}: step {self.step} of {self.steps}"

    @property
    def waits(self) -> str:
        """What is going on where nothing is heard for long."""
        if self.step < self.steps or not self.following:
            return self.note
        return f"{self.stage} is done; {self.following} comes next"

    def saved(self, folder: Path, done: list[Path]) -> Shown:
        folder.mkdir()
        files = [folder / f"{place}.png" for place in range(len(self.images))]
        for file, image in zip(files, self.images, strict=True):
            save_image(marked(to_pil(image)), file)
        return Shown([*done, *files], self.note)


def _preview(progress: Progress, stages: Sequence[str], hidden: bool = False) -> Preview:
    x0, name = progress.x0[:0] if hidden else progress.x0, progress.stage.name
    pixels = to_uint8(np.clip(np.nan_to_num(x0), -1, 1))
    following = dict(itertools.pairwise(stages)).get(name, "")
    return Preview(name, following, progress.step, progress.steps, pixels)


def _moderated(image: Image.Image) -> str | None:
    """What moderation did with an image, in a word."""
    done = image.info.get(SETTINGS_KEY, {}).get("moderation", {}).get("done")
    return {"flag": "flagged", "blank": "blanked"}.get(done)


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


def _explain(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    options = read.explain_options(fields, traits, studio.limits)

    def call(pipeline: Pipeline, finished: Callable[[ImageList], None], **watch: Any) -> ImageList:
        found = pipeline.explain(**options, **watch)
        images = ImageList(image for each in found for image in (each.image, each.page()))
        finished(images)
        return images

    return traits.name, call


def _again(studio: Studio, fields: Fields) -> tuple[str, Make]:
    traits = _traits(studio, fields)
    settings = read.read_settings(fields.get("settings"), traits, studio.limits)
    options = options_of(settings)

    def call(pipeline: Pipeline, **watch: Any) -> ImageList:
        if settings.get("fingerprint") != pipeline.fingerprint:
            of = settings.get("model")
            raise ValueError(
                f"These settings are of other weights of {of}."
                if of == pipeline.name
                else f"These settings are of the model {of}: choose it above."
            )
        return pipeline.generate_images(**options, **watch)

    return traits.name, call


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
    "explain": _explain,
    "again": _again,
}

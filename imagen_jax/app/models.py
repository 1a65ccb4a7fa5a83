"""The models that the page offers: one is in memory, for one request at a time."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.storage.folders import user_path

DEFAULTS = ("icons-fast", "icons")  # shipped; they know the styles of data.icon_captions
Source = str | Sequence[str]


@dataclass(frozen=True)
class Traits:
    """What the page must know of a model.

    reads: "text", "label" or None. sizes: of images, the last is the default. steps, guidance: of
    the base stage, as it was saved. most_steps: of any stage. distilled: it takes no guidance and
    no negative prompt. promptless: an empty prompt is one, too. upsamples: it has a
    super-resolution stage. only_upscales: it has no other. styles: of data.icon_captions.
    """

    name: str
    reads: str | None
    class_names: tuple[str, ...]
    sizes: tuple[int, ...]
    steps: int
    most_steps: int
    guidance: float
    distilled: bool
    promptless: bool
    upsamples: bool
    only_upscales: bool
    styles: bool


def traits_of(name: str, pipeline: Pipeline, styles: bool) -> Traits:
    stages, sampling = pipeline.cascade.stages, pipeline.cascade.sampling[0]
    kinds, encoder = {stage.conditioning for stage in stages}, pipeline.cascade.encoder
    return Traits(
        name,
        next((kind for kind in ("text", "label") if kind in kinds), None),
        pipeline.class_names,
        tuple(pipeline.sizes),
        int(sampling.steps),
        max(int(entry.steps) for entry in pipeline.cascade.sampling),
        float(sampling.guidance),
        distilled=stages[0].is_flow_map,
        promptless=encoder is not None and encoder.null == "empty",
        upsamples=any(stage.low_resolution is not None for stage in stages),
        only_upscales=stages[0].low_resolution is not None,
        styles=styles,
    )


class Models:
    """Loaded pipelines by the names that the page shows.

    Args:
        sources: as of `load_model`: the first is shown first.
        load: what makes a pipeline of a source.
        free: whether others may be named, too: any directory of this machine and any name on the
            hub, which only its own user may say.
    """

    def __init__(
        self, sources: Sequence[Source], load: Callable[[Source], Pipeline], free: bool = False
    ):
        self.sources: dict[str, Source] = {}
        for source in sources:
            self.sources[_unused(_shown(source), self.sources)] = source
        self.load, self.free = load, free
        self.lock = threading.RLock()
        self.held: tuple[str, Pipeline] | None = None
        self.known: dict[str, Traits] = {}

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    @contextlib.contextmanager
    def use(self, name: object) -> Iterator[Pipeline]:
        """The pipeline of this name, for one caller at a time.

        Raises:
            ValueError: there is none of that name, or it cannot be loaded.
        """
        if not isinstance(name, str) or not name or not (self.free or name in self.sources):
            raise ValueError(f"There is no such model here. There are: {', '.join(self.names)}.")
        with self.lock:
            yield self._loaded(name)

    def traits(self, name: object) -> Traits:
        """As `use` raises."""
        if not isinstance(name, str) or name not in self.known:
            with self.use(name):
                pass
        return self.known[name]

    def _loaded(self, name: str) -> Pipeline:
        if self.held is not None and self.held[0] == name:
            return self.held[1]
        before, self.held = self.held, None
        try:
            pipeline = self.load(self._source(name))
        except (ValueError, OSError, ImportError) as error:
            self.held = before
            # Others than this machine's user need not know where its files are.
            reason = f": {error}" if self.free else "."
            raise ValueError(f"The model {name} cannot be loaded{reason}") from error
        self.hold(name, pipeline)
        return pipeline

    def hold(self, name: str, pipeline: Pipeline) -> None:
        """Has this pipeline in memory, in place of another."""
        traits = traits_of(name, pipeline, styles=self._source(name) in DEFAULTS)
        self.held, self.known[name] = (name, pipeline), traits

    def _source(self, name: str) -> Source:
        return self.sources.get(name) or split_names(name)


def split_names(text: str) -> Source:
    """A,B -> [A, B], but for a directory of that very name."""
    if "," not in text or user_path(text).exists():
        return text
    return [part.strip() for part in text.split(",")]


def _shown(source: Source) -> str:
    """The name of a model for others to see: of a directory only the last part."""
    parts = [source] if isinstance(source, str) else source
    return ",".join(user_path(x).resolve().name if Path(x).exists() else x for x in parts)


def _unused(name: str, names: dict[str, Source]) -> str:
    numbered = (f"{name} ({number})" for number in range(2, len(names) + 2))
    return name if name not in names else next(new for new in numbered if new not in names)

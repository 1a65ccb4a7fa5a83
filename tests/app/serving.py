"""The page on a free port of this machine, of a tiny cascade with random parameters."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.app.address import bind, url_of
from imagen_jax.app.environment import visitors_folder
from imagen_jax.app.limits import Limits
from imagen_jax.app.making import Studio
from imagen_jax.app.models import Models
from imagen_jax.cascade.cascade import Cascade
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline.pipeline import Pipeline
from tests.tiny_cascade import BASE, BASE_SETTINGS, CASCADE, ENCODER, random_params

BASE_ALONE = Cascade((BASE,), (BASE_SETTINGS,), ENCODER)


@dataclass
class Site:
    url: str
    studio: Studio


class Held(Pipeline):
    """A pipeline that makes images when it is let."""

    let, began = threading.Event(), threading.Event()

    def _generate(self, *given: Any) -> ImageList:
        self.began.set()
        self.let.wait(30)
        return super()._generate(*given)


def load_tiny(source: Any) -> Pipeline:
    return Pipeline(CASCADE, random_params(CASCADE), name=str(source))


def load_held(source: Any) -> Pipeline:
    """Of the base stage alone, which is soon compiled."""
    return Held(BASE_ALONE, random_params(BASE_ALONE), name=str(source))


@contextlib.contextmanager
def serving(
    names: Sequence[str] = ("icons-fast", "other"),
    load: Callable[[Any], Pipeline] = load_tiny,
    limits: Limits = Limits(),
    local: bool = True,
) -> Iterator[Site]:
    """Serves until the block ends."""
    with bind("127.0.0.1", 0) as bound, visitors_folder() as folder:
        from imagen_jax.app.server import application, make_server

        studio = Studio(Models(names, load), limits, folder)
        server = make_server(application(studio, local))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield Site(url_of(bound), studio)
        finally:
            studio.jobs.stop_all()
            server.should_exit = True
            thread.join(20)

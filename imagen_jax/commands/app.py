"""A web page to play with: images from text, edits, inpainting with a brush, upscaling.

    imagen-jax app
    imagen-jax app --model workdirs/base,workdirs/sr --model icons --port 7861

The page is for this machine alone, unless --host says otherwise (docs/app.md). Ctrl-C ends it.
"""

import argparse
import contextlib
import signal
import warnings
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_jax.commands.command_line import MODERATION, count, make_parser, run_parsed, sources


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--model", type=sources, action="append", metavar="MODEL",
        help="to offer, repeat it to offer several: a shipped model, model directory, training "
        "workdir, A,B or a name on the Hugging Face hub (default: icons-fast, "
        "icons)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to bind to; 0.0.0.0 lets others in")
    add("--port", type=int, default=7860, help="of the page; 0 takes a free one")
    add(
        "--root_path", default="", metavar="PATH", help="where a proxy has the page, such as /icons"
    )
    add("--open", action="store_true", help="open the page in a browser")
    add("--fixed_models", action="store_true",
        help="only the models given can be used (always so where others are let in)")  # fmt: skip
    add("--max_images", type=count, default=8, metavar="N", help="images of one request")
    add("--max_steps", type=count, default=250, metavar="N",
        help="of a stage's sampler, but a model may have its own")  # fmt: skip
    add("--max_upload", type=count, default=20, metavar="MB", help="size of one upload")
    add("--queue", type=count, default=20, metavar="N", help="requests that may wait")
    add("--moderation", **MODERATION)
    add("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    add("--quantize", help="keep kernels in int8, int4 (text encoder) or int8_dynamic")
    return parse


def app(options: argparse.Namespace) -> None:
    # After the command line is read, and the quickest to fail first.
    from imagen_jax.app.address import bind, is_loopback, url_of
    from imagen_jax.app.environment import visitors_folder

    with bind(options.host, options.port) as bound, ended_alike(), visitors_folder() as folder:
        print("Loading Gradio and the models ...", flush=True)
        local = is_loopback(bound.getsockname()[0])
        from imagen_jax.app.server import serve

        studio = make_studio(options, folder, free=local and not options.fixed_models)
        print(f"{url_of(bound)}  (models: {', '.join(studio.models.names)}; Ctrl-C ends it)",
              flush=True)  # fmt: skip
        if not local:
            print(f"Others can reach it: it is bound to {options.host}.", flush=True)
        if options.open:
            open_browser(url_of(bound))
        serve(studio, bound, local, options.root_path)


@contextlib.contextmanager
def ended_alike() -> Iterator[None]:
    """SIGTERM ends what is done meanwhile as Ctrl-C does: no visitor's file is left."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_studio(options: argparse.Namespace, folder: Path, free: bool) -> Any:
    """The models, each loaded once to see that it can be, and the limits."""
    from imagen_jax.app.limits import Limits
    from imagen_jax.app.making import Studio
    from imagen_jax.app.models import DEFAULTS, Models
    from imagen_jax.devices.accelerators import unused_accelerator
    from imagen_jax.images import signing
    from imagen_jax.pipeline.loading import load_model
    from imagen_jax.pipeline.moderation import read_moderation

    signing.credentials()  # wrong ones are for who starts the app, not for its visitors
    moderation = None if options.moderation is None else read_moderation(options.moderation)
    if note := unused_accelerator():
        warnings.warn(note, stacklevel=1)

    def load(source: Any) -> Any:
        pipeline = load_model(source, dtype=options.dtype, quantize=options.quantize)
        pipeline.moderation = moderation
        return pipeline

    offered = options.model or DEFAULTS
    models = Models(offered, load, free)
    for name, source in reversed(models.sources.items()):  # the first stays in memory
        models.hold(name, load(source))
    limits = Limits(
        images=options.max_images,
        steps=options.max_steps,
        upload_bytes=options.max_upload * 2**20,
        waiting=options.queue,
    )
    return Studio(models, limits, folder)


def open_browser(url: str) -> None:
    """A warning where this machine has no browser to open."""
    try:
        opened = webbrowser.open(url)
    except webbrowser.Error:
        opened = False
    if not opened:
        warnings.warn(f"there is no browser here to open: the page is at {url}", stacklevel=1)


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), app, arguments)

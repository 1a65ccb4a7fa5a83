"""From a checked request to images: text embeddings, the cascade, images with their settings."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade, stage_keys
from imagen_jax.cascade.sample import plan_steps, prepare_steps, sample_steps, watched_steps
from imagen_jax.cascade.stage import Conditions
from imagen_jax.devices import program_cache
from imagen_jax.devices.sharding import batch_parts, batch_sharding
from imagen_jax.diffusion.editing import Edit
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline.lazy_params import LazyParams
from imagen_jax.pipeline.moderation import Refused
from imagen_jax.pipeline.progress import Progress, progress_bar
from imagen_jax.pipeline.request import Request
from imagen_jax.pipeline.settings import with_settings
from imagen_jax.text import encoder as text
from imagen_jax.typing import Params, TextEmbeddings


def sample_cascade(
    cascade: Cascade,
    params: Mapping,
    sampling: Sequence[Sampling],
    request: Request,
    conditions: Conditions,
    place: Callable[[Any], Any] = lambda batch: batch,
) -> Iterator[np.ndarray]:
    """Images in [-1, 1] of a checked request, as they are done: float32 [some, height, width, 3].

    Stage i of a sample has its noise from `fold_in(key, i)`. A batch passes all stages before the
    next batch starts; with `low_memory` all samples pass a stage before the next one starts, so
    that only one stage's parameters are needed at a time.

    Args:
        params: of each stage by its name; may be a mapping that loads on access.
        sampling: one a stage of the cascade.
        conditions: of all samples; of one row where it is the same for all. `low_res` for a cascade
            entered at a super-resolution stage.
        place: puts a batch's arrays where they are to be (`spread`); the default device without.
    """
    count, batch_size = len(request.rows), request.batch_size
    watched = request.progress or request.callback is not None
    lengths = plan_lengths(cascade, sampling, request)
    total = ceil(count / batch_size) * sum(lengths.values())
    together = count if request.low_memory else batch_size
    inputs = _inputs(cascade, params.__getitem__, sampling, request, conditions, place)
    with progress_bar(total, unit="step", shown=request.progress) as bar:
        for begin in range(0, count, together):
            end, images = min(begin + together, count), None
            for position, steps in lengths.items():
                stage, done = cascade.stages[position], []
                bar.set_description(stage.name)
                for start in range(begin, end, batch_size):
                    # The last batch is filled up: any number of samples runs the same program.
                    rows = np.arange(start, start + batch_size).clip(max=count - 1)
                    low_res = None if images is None else take_rows(images, rows - begin)
                    given = inputs(position, rows, low_res)
                    valid, before = min(batch_size, count - start), 0
                    every = (request.every or ceil(steps / 10)) if watched else None
                    if request.watch is None:
                        run = sample_steps(*given, every)
                    else:
                        run = watched_steps(*given, partial(request.watch, rows, valid))
                    for step, state in run:
                        if watched:
                            jax.block_until_ready(state)
                        bar.update(step - before)
                        before = step
                        if request.callback is not None and (step == steps or not step % every):
                            request.callback(Progress(stage, step, steps, start, valid, state))
                    done.append(np.asarray(state.x)[:valid])
                images = np.clip(np.concatenate(done), -1.0, 1.0)
                if request.low_memory:
                    params.free(stage.name)
            yield images


def _inputs(
    cascade: Cascade,
    params: Callable[[str], Params],
    sampling: Sequence[Sampling],
    request: Request,
    conditions: Conditions,
    place: Callable[[Any], Any],
) -> Callable[[int, np.ndarray, np.ndarray | None], tuple]:
    """What `sample_steps` takes for a stage, some rows and what the stage before made of them."""
    indices = (request.first_index + np.arange(len(request.rows))).astype(np.uint32)

    def inputs(position: int, rows: np.ndarray, low_res: np.ndarray | None) -> tuple:
        stage, edit, batch = cascade.stages[position], request.edit(position), conditions
        batch = take_rows(batch, rows)
        if low_res is not None:
            batch = batch._replace(low_res=low_res)
        keys = stage_keys(np.uint32(request.seed), indices[rows], np.uint32(position))
        edit = None if edit is None else edit_rows(edit, rows)
        noise, batch = place((keys, batch))
        return stage, params(stage.name), noise, batch, sampling[position], edit, request.size

    return inputs


def prepare_ahead(
    executor: Executor,
    cascade: Cascade,
    params: Mapping,
    sampling: Sequence[Sampling],
    request: Request,
) -> None:
    """Begins to compile the programs of a request's stages for the default device, in the order in
    which they are needed. Who needs one meanwhile waits for it, and learns why it cannot be.
    """
    null = label = None  # only shapes count
    if request.prompt:
        encoder = cascade.encoder
        null = text.null_text(1, encoder.max_length, encoder.config.d_model)
    if request.label:
        label = np.zeros(1, np.int32)
    conditions = Conditions(null, null, label, request.low_res)
    shapes = params.shapes if isinstance(params, LazyParams) else params.__getitem__
    inputs = _inputs(cascade, shapes, sampling, request, conditions, lambda batch: batch)
    rows, settings = np.arange(request.batch_size) % len(request.rows), program_cache.settings()
    images = None  # of the stage before

    def prepare(position: int) -> None:
        nonlocal images
        if program_cache.settings() != settings:  # of the calling thread alone
            return
        shape = prepare_steps(*inputs(position, rows, images))
        images = np.zeros((len(rows), *shape), np.float32)

    for position in request.stages:
        executor.submit(prepare, position)


@contextlib.contextmanager
def thread_ahead() -> Iterator[Executor]:
    """A thread for what is needed later. What it has not begun at the end is dropped; what it has
    begun it finishes, for which the process waits as it ends.
    """
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def plan_lengths(
    cascade: Cascade, sampling: Sequence[Sampling], request: Request
) -> dict[int, int]:
    """How many steps each stage runs, by its position.

    Raises:
        ValueError: a spacing or an edit that does not fit the stage.
    """
    grids = {i: plan_steps(cascade.stages[i], sampling[i], request.edit(i)) for i in request.stages}
    return {position: int(grid.stop - grid.start) for position, grid in grids.items()}


def spread(batch_size: int, mesh: Mesh | None) -> tuple[int, Callable[[Any], Any]]:
    """(batch size, what puts a batch's rows there) on a mesh: as many rows on each device."""
    if mesh is None:
        return batch_size, lambda rows: rows
    parts = batch_parts(mesh)
    return -(-batch_size // parts) * parts, partial(jax.device_put, device=batch_sharding(mesh))


def memory_advice(cascade: Cascade, request: Request) -> str:
    """What decides the memory of a checked request, with its present values, and what to change."""
    dtype, size = cascade.stages[0].network.dtype, cascade.stages[request.stages[-1]].resolution
    changes = {
        f"batch_size {request.batch_size // 2}": request.batch_size > 1,
        "low_memory, which holds one stage's parameters at a time": not request.low_memory,
        "dtype bfloat16": dtype != "bfloat16",
        "a smaller size": len(request.stages) > 1,
    }
    tries = ", ".join(change for change, possible in changes.items() if possible)
    return (
        f"Now: batch_size {request.batch_size}, low_memory {request.low_memory}, dtype {dtype}, "
        f"size {size}. Try one after the other: {tries or 'a smaller model'}."
    )


def take_rows(tree: Any, rows: np.ndarray) -> Any:
    """The rows of a batch; an array of one row is the same for all samples."""
    return jax.tree.map(lambda x: np.asarray(x)[rows % len(x)], tree)


def edit_rows(edit: Edit, rows: np.ndarray) -> Edit:
    """`take_rows` of an edit's image and mask."""
    return replace(edit, **take_rows({"image": edit.image, "mask": edit.mask}, rows))


def encode_prompts(
    encoder: text.TextEncoder, params: Params, prompts: Sequence[str], batch_size: int
) -> TextEmbeddings:
    """Embeddings on the host, encoded `batch_size` at a time: one program for any number."""
    tokens, batches = text.tokenize(encoder, prompts), []
    for start in range(0, len(prompts), batch_size):
        rows = np.arange(start, start + batch_size).clip(max=len(prompts) - 1)
        batch = take_rows(tokens, rows)
        encoded = text.encode_tokens(encoder.config, params, *batch, encoder.padding)
        batches.append(take_rows(encoded, np.arange(min(batch_size, len(prompts) - start))))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def encode_request(cascade: Cascade, params: Mapping, request: Request) -> Conditions:
    """What each image of a checked request is made of."""
    embeddings = null = label = None
    if request.prompt:
        encoder, weights = cascade.encoder, params[TEXT_ENCODER]
        prompts = list(request.prompt)
        if request.negative_prompt or encoder.null == "empty":
            prompts.append(request.negative_prompt or "")
        embeddings = encode_prompts(encoder, weights, prompts, request.batch_size)
        if len(prompts) > len(request.prompt):
            null = jax.tree.map(lambda x: x[-1:], embeddings)
        else:
            null = text.unconditional(encoder, weights)
        embeddings = jax.tree.map(lambda x: x[request.rows], embeddings)
        if request.low_memory:
            params.free(TEXT_ENCODER)
    if request.label:
        label = np.asarray(request.label, np.int32)[request.rows]
    return Conditions(embeddings, null, label, request.low_res)


def collect(
    batches: Iterable[np.ndarray],
    name: str,
    request: Request,
    sampling: Sequence[Sampling],
    size: int,
    class_names: Sequence[str] = (),
    finish: Callable[[ImageList], ImageList] = lambda images: images,
) -> ImageList:
    """The images of all batches, each batch given to `finish`, and to `request.finished` then.

    Raises:
        ValueError: a batch of the model of this name has images that are not finite.
        Refused: `finish` refuses an image; `request.finished` has got the others.
    """
    images = ImageList()
    for batch in batches:
        broken = int(np.sum(~np.isfinite(batch).all(axis=(1, 2, 3))))
        if broken:
            raise ValueError(
                f"{broken} of {len(batch)} images of {name!r} are not finite numbers: parameters, "
                "or an adapter's, are not finite or too large."
            )
        made = with_settings(batch, len(images), request, sampling, size, class_names)
        try:
            made = finish(made)
        except Refused as refusal:
            if request.finished is not None and refusal.others:
                request.finished(refusal.others)
            raise
        if request.finished is not None:
            request.finished(made)
        images += made
    return images

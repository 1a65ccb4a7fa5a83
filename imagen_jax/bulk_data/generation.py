"""A data set from the request to its shards: what is there already is never generated again.

A shard's bytes depend on the model, the settings, the prompts and its number alone, on devices of
one kind and number. A run that was killed goes on, and ends as an uninterrupted one does.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_jax.bulk_data.examples import Example, Examples, read_examples, shard_file, shards
from imagen_jax.data.shard_writing import to_example, write_records, write_tar
from imagen_jax.diffusion.overrides import with_overrides
from imagen_jax.diffusion.sampling import ByStage
from imagen_jax.evaluation.generation import Generate, make_generate
from imagen_jax.evaluation.inputs import EvaluatedModel, choose_size, read_model
from imagen_jax.evaluation.progress import image_bar
from imagen_jax.evaluation.report import image_settings
from imagen_jax.evaluation.request import EvaluationRequest
from imagen_jax.evaluation.shards import WHOLE, Shard
from imagen_jax.images.image_file import SETTINGS_KEY, save_image
from imagen_jax.pipeline.generation import spread
from imagen_jax.pipeline.moderation import Moderation
from imagen_jax.pipeline.request import class_numbers, default_batch_size
from imagen_jax.storage.codec import require
from imagen_jax.storage.folders import output_folder
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.trees import first_difference
from imagen_jax.text.encoder import tokenize

MANIFEST = "manifest.json"
SUFFIXES = {"tar": ".tar", "array_record": ".array_record"}
Made = tuple[Example, Image.Image]


@dataclass(frozen=True)
class DataSetRequest:
    """What is asked for. model: with prompts, seed and how to sample, as for an evaluation, its
    batch_size left out; batch_size: None leaves it to the device.

    format: a key of SUFFIXES. shard_size: images a shard. share: which shards this process makes.
    moderation: that flags images or blanks them.
    """

    model: EvaluationRequest
    out: Path
    format: str = "tar"
    shard_size: int = 1000
    negative_prompt: str | None = None
    guidance: ByStage | None = None
    aug_level: ByStage | None = None
    spacing: Any = None
    batch_size: int | None = None
    share: Shard = WHOLE
    moderation: Moderation | None = None

    def __post_init__(self):
        known, judged = ", ".join(SUFFIXES), self.moderation
        refuses = judged is not None and judged.image_filter and judged.image_action == "refuse"
        require(
            (not refuses, "a refused image would end the data set: let moderation flag or blank"),
            (self.format in SUFFIXES, f"--format is {self.format!r}; it must be one of {known}"),
            (self.model.prompts is not None, "--prompts FILE says what to generate"),
        )


def make_data_set(request: DataSetRequest, say: Callable[[str], None]) -> int:
    """Generates all shards of this process's share that are not there; gives how many images.

    Raises:
        ValueError: the request cannot be met, or the folder holds something else.
        OSError: the disk is full; what was finished stays.
    """
    asked = request.model
    examples = read_examples(
        asked.prompts, asked.num, asked.num_images, asked.seed, request.negative_prompt
    )
    check_folder(request)
    model = read_model(asked)
    given = {name: getattr(request, name) for name in ("guidance", "aug_level", "spacing")}
    sampling = with_overrides(model.sampling, **given)
    model = EvaluatedModel(model.pipeline, sampling, model.about)
    check_prompts(model, examples)
    if request.moderation is not None:
        request.moderation.check_prompts([row.prompt for row in examples.rows])
        model.pipeline.moderation = request.moderation
    size = choose_size(asked, model.pipeline.sizes)
    batch_size = request.batch_size or default_batch_size(largest_batch(examples))
    batch_size, _ = spread(batch_size, model.pipeline.mesh)
    about = describe(request, model, examples, {"size": size, "batch_size": batch_size})
    with output_folder(request.out):
        open_folder(request.out, about)
        generate = make_generate(model, size, asked.seed, batch_size)
        every = shards(len(examples), request.shard_size)
        own = every[request.share.index :: request.share.count]
        missing = {
            path: numbers for numbers in own if not (path := _path(request, numbers)).is_file()
        }
        count = sum(map(len, missing.values()))
        repeated = f" ({examples.duplicates:,} more are repeated)" if examples.duplicates else ""
        say(
            f"{model.pipeline.name}: {len(examples):,} images of {len(examples.rows):,} prompts"
            f"{repeated}, {len(every):,} shards; {count:,} images to be made here"
        )
        with image_bar("images", count) as bar:
            for path, numbers in missing.items():
                made = images_of(generate, examples, numbers, batch_size, bar.update)
                write_shard(path, request.format, made)
    return count


def _path(request: DataSetRequest, numbers: range) -> Path:
    return shard_file(request.out, numbers.start // request.shard_size, SUFFIXES[request.format])


def largest_batch(examples: Examples) -> int:
    """As many images as one call of the model can make."""
    own = all(row.seed is not None for row in examples.rows)
    return examples.num_images if own else len(examples)


def check_prompts(model: EvaluatedModel, examples: Examples) -> None:
    """Warns of prompts that are cut; ValueError for what a model of classes does not know."""
    cascade, texts = model.pipeline.cascade, [row.prompt for row in examples.rows]
    if cascade.encoder is not None:
        tokenize(cascade.encoder, texts)
        return
    require((not any(row.negative for row in examples.rows), "the model reads no negative prompt"))
    class_numbers(cascade, texts)


# -------------------------------------------------------------------------------- the folder


def describe(
    request: DataSetRequest,
    model: EvaluatedModel,
    examples: Examples,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that decides the shards, as JSON values."""
    mesh, judged = model.pipeline.mesh, request.moderation
    if judged is not None:
        settings = {**settings, "moderation": judged.fingerprint}
    return {
        "format": request.format,
        "examples": len(examples),
        "shard_size": request.shard_size,
        "shards": math.ceil(len(examples) / request.shard_size),
        "settings": image_settings(
            model,
            examples.fingerprint,
            num_images=examples.num_images,
            seed=examples.seed,
            mesh=None if mesh is None else dict(mesh.shape),
            **settings,
        ),
    }


def check_folder(request: DataSetRequest) -> None:
    """ValueError where a folder holds something else than a data set of this command."""
    folder = request.out
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        others = [name for name in names if not name.startswith(".")]
        if others:
            raise ValueError(
                f"--out {folder} holds no data set of this command, but {others[0]}: give another "
                "folder"
            )


def open_folder(folder: Path, about: dict[str, Any]) -> None:
    """Writes the manifest, or sees that the one there is the same.

    Raises ValueError where it is another's; the message has the first difference.
    """
    path = folder / MANIFEST
    if not path.is_file():
        write_object(path, about)
        return
    if difference := first_difference(read_object(path, "a manifest of a data set"), about):
        name, was, wanted = difference
        raise ValueError(
            f"--out {folder} holds a data set with {name} = {was!r}, not {wanted!r}; give another "
            "folder, or delete it"
        )


# -------------------------------------------------------------------------------- the shards


def images_of(
    generate: Generate,
    examples: Examples,
    numbers: range,
    batch_size: int,
    advance: Callable[[int], Any],
) -> Iterator[Made]:
    """The images of a shard, one after the other; `advance` is told of each batch."""
    for batch in examples.batches(numbers, batch_size):
        first, prompts = batch[0], [example.row.prompt for example in batch]
        images = generate(prompts, first.index, first.seed, first.row.negative)
        yield from zip(batch, images, strict=True)
        advance(len(batch))


def write_shard(path: Path, form: str, made: Iterable[Made]) -> None:
    """A shard: of a tar the members KEY.png, KEY.txt and KEY.json (the settings), of ArrayRecord
    examples with features image, text, settings, width, height; of a model of classes with the
    number of the class as KEY.cls or label, its name or number being the text.
    """
    if form == "tar":
        return write_tar(path, _members(made))
    return write_records(path, (_record(example, image) for example, image in made))


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    save_image(image, file, "PNG")
    return file.getvalue()


def _settings(image: Image.Image) -> str:
    """What makes the image again, and its size, by which `train` filters."""
    settings = image.info[SETTINGS_KEY] | {"width": image.width, "height": image.height}
    return json.dumps(settings, ensure_ascii=False)


def _members(made: Iterable[Made]) -> Iterator[tuple[str, bytes]]:
    for example, image in made:
        key = f"{example.number:09d}"
        yield f"{key}.png", _encoded(image)
        yield f"{key}.txt", example.row.prompt.encode("utf-8")
        if (label := image.info[SETTINGS_KEY]["label"]) is not None:
            yield f"{key}.cls", str(label).encode()
        yield f"{key}.json", _settings(image).encode("utf-8")


def _record(example: Example, image: Image.Image) -> bytes:
    label = image.info[SETTINGS_KEY]["label"]
    return to_example(
        {
            "image": _encoded(image),
            "text": example.row.prompt,
            "settings": _settings(image),
            "width": image.width,
            "height": image.height,
            **({} if label is None else {"label": label}),
        }
    )

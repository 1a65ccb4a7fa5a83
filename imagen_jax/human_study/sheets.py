"""The images of a study: sheets of two models side by side, in an order that nobody can guess."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.evaluation.generation import SETTINGS_FILE, image_files
from imagen_jax.evaluation.image_folder import (
    Preprocessing,
    common_size,
    list_images,
    order_by_ids,
    read_image,
)
from imagen_jax.evaluation.prompts import PromptList
from imagen_jax.human_study.study import STUDIES, Secret, Study, Trial
from imagen_jax.images.grid import image_grid
from imagen_jax.images.image_file import save_image
from imagen_jax.storage.codec import require
from imagen_jax.storage.json_file import read_object

COLUMNS = 4  # of a sheet
NOISE = 60.0  # of the spoilt image in a control of photorealism, of 255


@dataclass(frozen=True)
class StudyImages:
    """The images of one model or of the truth: as many for each prompt, in their order.

    files: of each prompt. named: whether something besides the order of the names pairs them with
    the prompts.
    """

    files: tuple[tuple[Path, ...], ...]
    size: int
    named: bool

    def of(self, prompt: int) -> list[Image.Image]:
        """Without anything that their files say besides the pixels. ValueError names a file that
        cannot be read.
        """
        found, preprocessing = [], Preprocessing(self.size)
        for file in self.files[prompt]:
            try:
                found.append(Image.fromarray(read_image(file, preprocessing)))
            except (OSError, ValueError) as error:
                raise ValueError(f"{file} cannot be read: {error}") from error
        return found


def read_set(
    directory: Path, prompts: PromptList, num: int, per_prompt: int, size: int | None = None
) -> StudyImages:
    """The images of the first `num` prompts: of a run of imagen-jax evaluate, or of any folder.

    A run may be of more of these prompts, with more images each. A folder holds `per_prompt`
    images of each of the first `num` prompts, or of all; or COCO's val2014, whose images are
    found by the prompts' image ids.

    Raises ValueError where the images are of other prompts, or not as many.
    """
    images = directory / "images"
    folder = images if images.is_dir() else directory
    if (folder / SETTINGS_FILE).is_file():
        (files, stride), named = _of_run(folder, prompts, num, per_prompt), True
    else:
        files, named = _of_folder(folder, prompts, num, per_prompt)
        stride = per_prompt
    each = [tuple(files[row * stride : row * stride + per_prompt]) for row in range(num)]
    return StudyImages(
        tuple(each), size or common_size([file for row in each for file in row]), named
    )


def _of_run(folder: Path, prompts: PromptList, num: int, per_prompt: int) -> tuple[list[Path], int]:
    """(the files in the order of the prompts, how many are of each)."""
    settings = read_object(folder / SETTINGS_FILE, "the settings of imagen-jax evaluate")
    made_of, stride = settings.get("prompts"), settings.get("num_images")
    if type(stride) is not int or stride < per_prompt:
        raise ValueError(
            f"{folder} has num_images = {stride!r}; {per_prompt} images a prompt are needed: "
            "--num_images of imagen-jax evaluate makes several."
        )
    made = len(list_images(folder)) // stride
    if made < num or prompts.first(made).fingerprint != made_of:
        raise ValueError(
            f"{folder} holds images of {made} prompts, {stride} each, which are not the first "
            f"{made} of {prompts.name}, or not the {num} that are needed: its run had other "
            "prompts, or has not ended."
        )
    return image_files(folder, made * stride), stride


def _of_folder(
    folder: Path, prompts: PromptList, num: int, per_prompt: int
) -> tuple[list[Path], bool]:
    """(the files in the order of the prompts, whether they are named after ids of theirs)."""
    files = list_images(folder)
    if prompts.image_ids is not None and per_prompt == 1:
        true = {file.stem: file for file in files}
        names = [f"COCO_val2014_{number:0>12}" for number in prompts.image_ids[:num]]
        if true.keys() >= set(names):
            return [true[name] for name in names], True
    for some in (prompts.first(num), prompts):
        if len(files) == len(some) * per_prompt:
            return order_by_ids(files, some.ids)
    raise ValueError(
        f"{folder} has {len(files)} images; {num} prompts with {per_prompt} each need "
        f"{num * per_prompt}, no more and no fewer."
    )


# What a trial shows before it gets an id: its caption, its sheets in the order shown, its secret.
Shown = tuple[str, Sequence[Image.Image], Secret]


def make_study(
    kind: str,
    prompts: PromptList,
    a: StudyImages,
    b: StudyImages,
    names: tuple[str, str],
    directory: Path,
    *,
    controls: int,
    seed: int,
) -> Study:
    """Writes the sheets and gives the study. Ids and sides come from the seed.

    Args:
        a: the model under study. b: the other model, or the true images.
        controls: trials whose right answer is known, among the others.

    Raises ValueError where the study is unknown or cannot have controls.
    """
    require(
        (kind in STUDIES, f"Unknown study {kind!r}; known are {', '.join(STUDIES)}."),
        (
            controls >= 1 and len(prompts) >= 2,
            f"{controls} controls of {len(prompts)} prompts cannot be made: without a control no "
            "rater's answers are kept, and one needs 2 prompts.",
        ),
    )
    makers = {
        "drawbench": (_pair, _other_prompt),
        "photorealism": (_pair, _spoilt),
        "captions": (_single, _wrong_caption),
    }
    trial, control = makers[kind]
    rng, sets = random.Random(seed), {"a": a, "b": b}
    shown = [entry for row in range(len(prompts)) for entry in trial(rng, prompts, sets, row)]
    rows = [rng.randrange(len(prompts)) for _ in range(controls)]
    shown += [control(rng, prompts, sets, row) for row in rows]
    rng.shuffle(shown)
    (directory / "sheets").mkdir(parents=True, exist_ok=True)
    trials, key = {}, {}
    for caption, sheets, secret in shown:
        name = f"{rng.getrandbits(48):012x}"
        files = tuple(f"{name}-{side}.png" for side in range(len(sheets)))
        for file, sheet in zip(files, sheets, strict=True):
            save_image(sheet, directory / "sheets" / file)
        trials[name], key[name] = Trial(name, caption, files), secret
    return Study(kind, dict(zip("ab", names, strict=True)), seed, trials, key)


def _secret(
    prompts: PromptList, row: int, models: Sequence[str], control: dict[str, str] | None = None
) -> Secret:
    category = "uncategorized" if prompts.categories is None else prompts.categories[row]
    return Secret(prompts.ids[row], category, tuple(models), control)


def _sheet(images: Sequence[Image.Image]) -> Image.Image:
    sheet = image_grid(images, columns=min(COLUMNS, len(images)))
    # What raters see tells nothing but itself: not which of two images is real, either.
    sheet.info.clear()
    return sheet


def _pair(
    rng: random.Random, prompts: PromptList, sets: Mapping[str, StudyImages], row: int
) -> list[Shown]:
    """The sheets of both at one prompt, on random sides."""
    order = rng.sample("ab", 2)
    sheets = [_sheet(sets[name].of(row)) for name in order]
    return [(prompts.texts[row], sheets, _secret(prompts, row, order))]


def _single(
    rng: random.Random, prompts: PromptList, sets: Mapping[str, StudyImages], row: int
) -> list[Shown]:
    """The image of each, by itself."""
    return [
        (prompts.texts[row], [_sheet(images.of(row))], _secret(prompts, row, (name,)))
        for name, images in sets.items()
    ]


def _other_prompt(
    rng: random.Random, prompts: PromptList, sets: Mapping[str, StudyImages], row: int
) -> Shown:
    """One model's images of the prompt beside its images of another: it is plain which fit."""
    name = rng.choice("ab")
    right, wrong = sets[name].of(row), sets[name].of(_another(rng, prompts, row))
    sheets, side = _on_one_side(rng, right, wrong)
    return prompts.texts[row], sheets, _secret(prompts, row, (name, name), {"alignment": side})


def _spoilt(
    rng: random.Random, prompts: PromptList, sets: Mapping[str, StudyImages], row: int
) -> Shown:
    """A true image beside itself with noise: it is plain which is real."""
    (image,) = sets["b"].of(row)
    generator = np.random.default_rng(rng.getrandbits(32))
    noisy = np.asarray(image, float) + generator.normal(0, NOISE, (*image.size[::-1], 3))
    spoilt = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    sheets, side = _on_one_side(rng, [image], [spoilt])
    return prompts.texts[row], sheets, _secret(prompts, row, ("b", "b"), {"photorealism": side})


def _on_one_side(
    rng: random.Random, right: Sequence[Image.Image], wrong: Sequence[Image.Image]
) -> tuple[list[Image.Image], str]:
    """(the sheets of right and wrong images in a random order, the side of the right ones)."""
    side = rng.choice(("left", "right"))
    sheets = [_sheet(right), _sheet(wrong)]
    return (sheets if side == "left" else sheets[::-1]), side


def _wrong_caption(
    rng: random.Random, prompts: PromptList, sets: Mapping[str, StudyImages], row: int
) -> Shown:
    """A true image with the caption of another."""
    caption = prompts.texts[_another(rng, prompts, row)]
    return caption, [_sheet(sets["b"].of(row))], _secret(prompts, row, ("b",), {"caption": "no"})


def _another(rng: random.Random, prompts: PromptList, row: int) -> int:
    """A prompt with other words, of another category where there is one."""
    others = [i for i, text in enumerate(prompts.texts) if text != prompts.texts[row]]
    if not others:
        raise ValueError("All prompts are the same: no control can be made.")
    if prompts.categories is not None:
        apart = [i for i in others if prompts.categories[i] != prompts.categories[row]]
        others = apart or others
    return rng.choice(others)

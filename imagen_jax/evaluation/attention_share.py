"""Whether the map of a thing's word lies on the thing (`Pipeline.explain`), on icons: of one thing
on white, so that an image says itself where the thing is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from imagen_jax.data.icon_captions import STYLE_WORDS, styled
from imagen_jax.evaluation.icon_set import IconSet
from imagen_jax.evaluation.inputs import EvaluatedModel
from imagen_jax.evaluation.report import Report
from imagen_jax.images.heat import resize_map
from imagen_jax.pipeline.explanation import Explanation, make_page

PROMPTS = 100
WHITE = 230  # what is darker in any channel, of 255, is of the thing
AREAS = 0.05, 0.9  # of the image: otherwise there is no telling thing from ground
SHOWN = 8  # explanations on the sheet


def thing_mask(image: np.ndarray) -> Bool[np.ndarray, "height width"]:
    """Where an icon on white shows its thing, of uint8 [height, width, 3]."""
    return image.min(axis=-1) < WHITE


def excess(values: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "h w"]) -> float:
    """The share of a map that lies on the mask, less the mask's share of the image: 0 for a map
    that is even, or has nothing to do with it.
    """
    values = resize_map(values, mask.shape[::-1])
    return float(values[mask].sum() / values.sum() - mask.mean())


def excesses(explanation: Explanation, word: str, style: str) -> dict[str, float] | None:
    """The `excess` of a word's maps: of all layers, parts of a U-Net, single layers and steps; and
    of the style's word, to compare with. None where the thing cannot be told from the ground.
    """
    mask = thing_mask(np.asarray(explanation.image))
    if not AREAS[0] <= mask.mean() <= AREAS[1]:
        return None
    place, other = explanation.place(word), explanation.place(style)
    size, layers = explanation.image.size, explanation.layers
    found = {"all layers": explanation.maps[place]}
    found["all layers, divided by all words"] = found["all layers"] / explanation.maps.sum(0)
    found["all layers, the style's word"] = explanation.maps[other]
    for part in ("down", "mid", "up"):
        if those := [values for name, values in layers.items() if name.startswith(part)]:
            for of, i in (("", place), (", the style's word", other)):
                resized = [resize_map(values[i], size) for values in those]
                found[f"layers {part}{of}"] = np.mean(resized, axis=0)
    found |= {f"layer {name}": values[place] for name, values in layers.items()}
    found |= {f"step {i + 1}": maps[place] for i, maps in enumerate(explanation.steps)}
    return {name: excess(values, mask) for name, values in found.items()}


def choose(icons: IconSet, num: int) -> list[tuple[str, str, str]]:
    """(prompt, its thing's word, its style's) of icons that were trained on and have a name of one
    word.
    """
    names, styles = icons.column("name_en"), icons.column("style")
    rows = [row for row in icons.select("train", False) if str(names[row]).isalpha()][:num]
    return [
        (styled(names[row], styles[row], "en"), str(names[row]), STYLE_WORDS[styles[row]]["en"])
        for row in rows
    ]


def with_interval(values: Sequence[float]) -> dict[str, float]:
    """{"mean", "low", "high"}: the 95 % interval of Student's t over prompts."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def measure_attention(
    icons: IconSet, model: EvaluatedModel, seed: int, batch_size: int, num: int = PROMPTS
) -> Report:
    """The mean excess over prompts of the base stage's maps, with intervals, and a sheet.

    Raises:
        ValueError: the model does not attend to text; too few icons can be used.
    """
    asked, size = choose(icons, num), model.pipeline.sizes[0]
    given = {"sampling": model.sampling, "seed": seed, "batch_size": batch_size, "size": size}
    prompts = [prompt for prompt, *_ in asked]
    made = model.pipeline.explain(prompts, layers="all", progress=False, **given)
    found = [excesses(each, *words) for each, (_, *words) in zip(made, asked, strict=True)]
    used = [each for each in found if each is not None]
    if len(used) < 2:
        raise ValueError(
            f"Attention cannot be measured: of {len(asked)} icons with a name of one word, "
            f"{len(used)} show a thing that can be told from the ground."
        )
    columns = {name: with_interval([each[name] for each in used]) for name in used[0]}
    values = {"n": len(used), "left_out": len(found) - len(used), "excess": columns}
    return Report({"attention": values}, sheets={"attention.png": make_page(made[:SHOWN])})


def attention_table(found: Mapping[str, Any]) -> list[list[str]]:
    """The figures as rows, in percentage points."""
    table = [[f"map of the thing's word ({found['n']} prompts)", "share on the thing - its area"]]
    for name, value in found["excess"].items():
        mean, low, high = (f"{100 * value[key]:+.1f}" for key in ("mean", "low", "high"))
        table.append([name, f"{mean} points ({low} to {high})"])
    return table

"""Which word counts where in an image: cross-attention maps (DAAM, arXiv 2210.04885).

The images come from the very programs that make them otherwise. Before each step, the network is
also run on the conditional half alone, x_t with the prompt, to see how its pixels attend to the
tokens. Samplers that evaluate the network more than once a step are seen at the first evaluation.
"""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax import models
from imagen_jax.cascade.cascade import Cascade, part_shapes
from imagen_jax.cascade.sample import Moment
from imagen_jax.cascade.stage import Conditions, GuidedParams, Stage, apply_network
from imagen_jax.devices.program_cache import kept_program
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline.explanation import Explanation
from imagen_jax.pipeline.request import check_count, check_prompts, last_stage
from imagen_jax.storage.codec import require
from imagen_jax.storage.trees import name_some
from imagen_jax.text.encoder import null_text
from imagen_jax.text.words import Word, find_words, prompt_words
from imagen_jax.typing import Images, Params

ALL = "all"  # layers, whose mean is DAAM's map
UP = "up"  # how those of a U-Net begin that tell words apart best (docs/explain.md)
ROOM = 8  # words share a program up to this number, and up to each multiple of it


class WordMaps(NamedTuple):
    """The attention of a batch to each word at one step: of each layer at its own resolution, and
    the mean of all layers at the finest of these.
    """

    layers: dict[str, Float[Array, "batch words rows columns"]]
    mean: Float[Array, "batch words rows columns"]


class Look(NamedTuple):
    """What is looked into: a stage, and of its layers those whose names begin so."""

    stage: Stage
    layers: str = ""


@kept_program(static_argnums=0, results=(WordMaps,))
def word_maps(
    look: Look,
    params: Params,
    x_t: Images,
    times: tuple[Any, Any],
    conditions: Conditions,
    aug_level: Any,
    words: Float[Array, "batch tokens words"],
) -> WordMaps:
    """The share of attention that goes to each word, in [0, 1]: the mean over heads, the sum over
    the word's tokens, for which `words` is 1.

    times: t and s of the step.
    """
    stage, (t, s) = look.stage, (jnp.full(len(x_t), time, jnp.float32) for time in times)
    found = apply_network(
        stage,
        models.WatchedParams(params),
        x_t,
        t,
        s if stage.is_flow_map else None,
        text=conditions.text,
        low_res=conditions.low_res,
        aug_level=aug_level,
    )
    layers = {
        name: jnp.einsum("bhwt,btn->bnhw", tokens, words, precision="highest")
        for name, tokens in found.items()
        if name.startswith(look.layers)
    }
    return WordMaps(layers, mean_of_layers(layers))


def mean_of_layers(
    layers: Mapping[str, Float[Array, "batch words _ _"]],
) -> Float[Array, "batch words rows columns"]:
    """Their mean at the resolution of the finest, to which others are upsampled bilinearly."""
    finest = max((layer.shape for layer in layers.values()), key=lambda shape: shape[-2:])
    alike = [jax.image.resize(layer, finest, "linear") for layer in layers.values()]
    return sum(alike) / len(alike)


@dataclass
class Kept:
    """What is kept of one image: of each step the mean over layers, of each layer the sum."""

    times: list[float] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    layers: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, t: float, mean: np.ndarray, layers: Mapping[str, np.ndarray]) -> None:
        """Adds a step's maps."""
        self.times.append(t)
        self.steps.append(mean)
        for name, layer in layers.items():
            self.layers[name] = self.layers.get(name, 0) + layer


class Recorder:
    """Watches a stage (`Request.watch`), and keeps how its images attend to words: a list of them
    for each prompt. `num_images`: of each prompt.
    """

    def __init__(self, look: Look, words: Sequence[Sequence[Word]], length: int, num_images: int):
        self.look, self.words, self.num_images = look, words, num_images
        self.kept: dict[int, Kept] = collections.defaultdict(Kept)
        most = max(map(len, words))
        self.tokens = np.zeros((len(words), length, -(-most // ROOM) * ROOM), np.float32)
        for prompt, found in enumerate(words):
            for place, word in enumerate(found):
                self.tokens[prompt, list(word.tokens), place] = 1

    def __call__(self, rows: np.ndarray, count: int, moment: Moment) -> None:
        stage, params, x_t, t, s, conditions, aug_level = moment
        if stage != self.look.stage or s > t:  # where an edit jumps back no network runs
            return
        params = params.network if isinstance(params, GuidedParams) else params
        prompts = rows // self.num_images
        given = conditions._replace(label=None), np.float32(aug_level), self.tokens[prompts]
        maps = jax.device_get(word_maps(self.look, params, x_t, (t, s), *given))
        for place in range(count):
            number = len(self.words[prompts[place]])
            layers = {name: layer[place, :number] for name, layer in maps.layers.items()}
            self.kept[int(rows[place])].add(float(t), maps.mean[place, :number], layers)

    def explanations(self, images: ImageList) -> list[Explanation]:
        """What was kept of all images."""
        stage = self.look.stage.name
        return [
            _explanation(image, self.words[row // self.num_images], self.kept[row], stage)
            for row, image in enumerate(images)
        ]


def _explanation(image: Any, words: Sequence[Word], kept: Kept, stage: str) -> Explanation:
    steps = np.stack(kept.steps)
    return Explanation(
        image=image,
        words=tuple(word.text for word in words),
        steps=steps,
        times=np.asarray(kept.times, np.float32),
        layers={name: total / len(steps) for name, total in kept.layers.items()},
        stage=stage,
    )


def plan_look(
    cascade: Cascade,
    name: str,
    prompt: str | Sequence[str],
    words: Sequence[str] | None,
    look: tuple[str | None, str | None],
    options: Mapping[str, Any],
) -> Recorder:
    """What watches a model of this name while it makes images of a prompt, with `options` as of
    `generate_images`.

    look: the names of the stage and of its layers, as of `Pipeline.explain`.

    Raises:
        ValueError: what cannot be explained.
    """
    seen = _seen(cascade, name, look, options.get("size"))
    prompts, encoder = check_prompts(cascade, name, prompt), cascade.encoder
    num_images = check_count("num_images", options.get("num_images", 1))
    if not all(text.strip() for text in prompts):
        raise ValueError("The prompt is empty: there is no word to explain.")
    if isinstance(words, str):
        words = [words]
    found = [
        prompt_words(encoder, text) if words is None else find_words(encoder, text, words)
        for text in prompts
    ]
    for text, each in zip(prompts, found, strict=True):
        if not each:
            raise ValueError(f"There is no word to explain in the prompt {text!r}.")
    return Recorder(seen, found, encoder.max_length, num_images)


def _seen(cascade: Cascade, model: str, look: tuple[str | None, str | None], size: Any) -> Look:
    """The stage and layers of these names; ValueError where there are none, or nothing to see."""
    (name, layers), stages = look, cascade.stages[: last_stage(cascade, model, size) + 1]
    names = [stage.name for stage in stages]
    require(
        (
            any(stage.conditioning == "text" for stage in cascade.stages),
            f"{model!r} reads no text: there is no word to explain.",
        ),
        (
            name is None or name in names,
            f"No stage {name!r} makes these images; there is {', '.join(names)}.",
        ),
    )
    stage = stages[0 if name is None else names.index(name)]
    known = _text_layers(cascade, stage)
    if not known:
        others = [f"; stage={each.name!r} does" for each in stages if _text_layers(cascade, each)]
        raise ValueError(
            f"No layer of stage {stage.name!r} attends to words of the text{''.join(others[:1])}."
        )
    if layers is None:
        layers = UP if any(each.startswith(UP) for each in known) else ALL
    layers = "" if layers == ALL else layers
    if not any(each.startswith(layers) for each in known):
        raise ValueError(
            f"No layer of stage {stage.name!r} has a name that begins with {layers!r}; those that "
            f"attend to the text are {name_some(known)}."
        )
    return Look(stage, layers)


def _text_layers(cascade: Cascade, stage: Stage) -> list[str]:
    """The layers of a stage's network that attend to the tokens of the text."""
    if stage.conditioning != "text":
        return []
    shape = 1, stage.resolution, stage.resolution, stage.channels
    text = jax.tree.map(jnp.asarray, null_text(1, 2, stage.text_width))
    low_res = None if stage.low_resolution is None else jnp.zeros(shape)

    def maps(params: Params) -> models.TextMaps:
        x_t, t, watched = jnp.zeros(shape), jnp.zeros(1), models.WatchedParams(params)
        return apply_network(stage, watched, x_t, t, text=text, low_res=low_res, aug_level=0.0)

    return list(jax.eval_shape(maps, part_shapes(cascade, stage.name)))

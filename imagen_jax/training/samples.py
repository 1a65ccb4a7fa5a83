"""Images generated while training, to look at."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.cascade.sample import sample_stage
from imagen_jax.cascade.stage import Conditions
from imagen_jax.data.classes import class_names
from imagen_jax.data.sources import BrokenExample, Source
from imagen_jax.devices import memory
from imagen_jax.devices.hosts import whole
from imagen_jax.diffusion.augmentation import downsample, upsample
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images import grid, pixels, signing
from imagen_jax.images.provenance import COMPOSITE, TRAINED
from imagen_jax.text import encoder as text
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import Frozen, encoder_params, network_params
from imagen_jax.typing import Images, Keys, Params

MOST_READ = 1000  # images looked at, where broken ones come first
Generate = Callable[..., np.ndarray]


def make_generate(config: RunConfig, encoder: text.TextEncoder | None, frozen: Frozen) -> Generate:
    """(parameters, keys, prompts or labels, low-resolution images or None) -> images in [-1, 1], as
    the config's section `sample` says.
    """
    stage = config.stage
    sampling = config.sample.sampling if config.sample else Sampling()

    def generate(params: Params, keys: Keys, asked: Sequence, low_res: Images | None = None):
        conditions = Conditions(low_res=low_res)
        if stage.conditioning == "text":
            weights = encoder_params(params, frozen)
            embeddings = text.encode(encoder, weights, list(asked))
            null = text.unconditional(encoder, weights)
            conditions = conditions._replace(text=embeddings, null=null)
        elif stage.conditioning == "label":
            conditions = conditions._replace(label=jnp.asarray(asked, jnp.int32))
        network = network_params(params, frozen, config.lora)
        return whole(sample_stage(stage, network, keys, conditions, sampling))

    return generate


def sampled(config: RunConfig) -> tuple[Sequence, int]:
    """(prompts or labels, how many images) of the config's section `sample`; none without one."""
    section, conditioning = config.sample, config.stage.conditioning
    if section is None or config.data.embeddings is not None:  # without an encoder, no text
        return (), 0
    asked = {"text": section.prompts, "label": section.labels, None: ()}[conditioning]
    return asked, section.count if conditioning is None else len(asked)


def make_sample_fn(
    config: RunConfig, encoder: text.TextEncoder | None, source: Source | None, frozen: Frozen
) -> Callable[[Params], Image.Image] | None:
    """parameters -> a grid by the config's section `sample`; None where it has none.

    A base model generates one image a prompt (or label). A super-resolution model upsamples as many
    images of `source`, each with its own caption; those of the prompts, where the source is in
    memory and has them. Its grid has a row of inputs, one of results and one of the true images.
    """
    section, stage = config.sample, config.stage
    asked, count = sampled(config)
    if not count or (stage.low_resolution is not None and source is None):
        return None
    signing.credentials()  # wrong ones are an error before the work
    classes = stage.network.num_classes
    if stage.conditioning == "label" and not 0 <= min(asked) <= max(asked) < classes:
        raise ValueError(
            f"sample.labels are {list(asked)}; with stage.network.num_classes {classes} they go "
            f"from 0 to {classes - 1}"
        )
    keys, generate = sample_keys(section.seed, range(count)), make_generate(config, encoder, frozen)
    generate = memory.explained(
        f"That was while sampling {count} images at once, for section sample: give fewer "
        "(sample.prompts, sample.labels or sample.count), or --config.sample=None."
    )(generate)
    if stage.low_resolution is None:
        names = class_names(source) if stage.conditioning == "label" else ()
        captions = [names[each] if names else str(each) for each in asked] or None
        return lambda params: grid.image_grid(
            list(generate(params, keys, asked)), captions, source=TRAINED
        )

    examples = _examples(source, asked, count)
    if stage.conditioning == "text":
        # A set that has no captions has one for all its images.
        asked = [example.get("captions", [(config.data.prompt,)])[0][0] for example in examples]
    elif stage.conditioning == "label":
        asked = [example["label"] for example in examples]
    cropped = [pixels.resize(example["image"], stage.resolution) for example in examples]
    truth = pixels.to_float(jnp.asarray(np.stack(cropped)))
    low_res = downsample(truth, stage.low_resolution)
    inputs = upsample(low_res, stage.resolution)

    def sample(params: Params) -> Image.Image:
        rows = [inputs, generate(params, keys, asked, low_res), truth]
        return grid.image_grid(list(np.concatenate(rows)), columns=count, source=COMPOSITE)

    return sample


def _examples(source: Source, wanted: Sequence, count: int) -> list[dict[str, Any]]:
    """`count` examples: the first with each wanted caption or label, then any that can be read.

    Raises ValueError where none of the first can be read. A source of fewer gives some twice.
    """
    found: dict = {}
    for row in range(min(len(source), 20_000)) if wanted and hasattr(source, "images") else ():
        example = source[row]
        names = [caption for caption, _ in example.get("captions", ())] or [example.get("label")]
        for name in set(names).intersection(wanted):
            found.setdefault(name, example | {"captions": [(name, 1.0)]})
    examples = [found[name] for name in wanted if name in found][:count]
    readable = _readable(source, count - len(examples))
    return examples + [readable[i % len(readable)] for i in range(count - len(examples))]


def _readable(source: Source, count: int) -> list[dict[str, Any]]:
    """The first `count` examples that can be read, or all there are."""
    examples, error = [], None
    for row in range(min(len(source), MOST_READ)):
        if len(examples) == count:
            break
        try:
            examples.append(source[row])
        except BrokenExample as broken:
            error = broken
    if count and not examples:
        raise ValueError(f"no image to generate samples from can be read; the last: {error}")
    return examples

"""Images drawn while training, to look at."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.cascade.sample import sample_stage
from imagen_jax.cascade.stage import Conditions
from imagen_jax.data import Source
from imagen_jax.data.sources import BrokenExample
from imagen_jax.devices.hosts import whole
from imagen_jax.diffusion.augmentation import downsample, upsample
from imagen_jax.images.grid import image_grid
from imagen_jax.images.pixels import resize, to_float
from imagen_jax.text import encoder as text
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.loop import SampleFn
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.state import Frozen, encoder_params, network_params
from imagen_jax.typing import Params

MOST_READ = 1000  # images looked at, where broken ones come first


def make_sample_fn(
    config: RunConfig, encoder: TextEncoder | None, source: Source | None, frozen: Frozen | None
) -> SampleFn | None:
    """(parameters, step) -> a grid by the config's section `sample`; None where it has none.

    A base model draws one image a prompt (or label). A super-resolution model enlarges as many
    images of `source`, each with its own caption, those of the prompts where the source is in
    memory and has them: its grid has a row of inputs, one of results and one of the true images.
    """
    section, stage = config.sample, config.stage
    if section is None:
        return None
    prompts, labels = list(section.prompts), list(section.labels)
    count = {"text": len(prompts), "label": len(labels), None: section.count}[stage.conditioning]
    if not count or (stage.low_resolution is not None and source is None):
        return None
    captions = {"text": prompts, "label": [str(label) for label in labels], None: None}
    captions = captions[stage.conditioning]
    truth = None
    if stage.low_resolution is not None:
        wanted = {"text": prompts, "label": labels, None: []}[stage.conditioning]
        examples = _examples(source, wanted, count)
        if stage.conditioning == "text":
            of_all = [(config.data.prompt, 1.0)]  # the caption of a set that has no others
            prompts = [example.get("captions", of_all)[0][0] for example in examples]
        elif stage.conditioning == "label":
            labels = [example["label"] for example in examples]
        cropped = [resize(example["image"], stage.resolution) for example in examples]
        truth = to_float(jnp.asarray(np.stack(cropped)))
    keys = sample_keys(section.seed, range(count))

    def sample(params: Params, step: int):
        conditions = Conditions()
        if stage.conditioning == "text":
            weights = encoder_params(params, frozen)
            embeddings = text.encode(encoder, weights, prompts)
            null = text.unconditional(encoder, weights)
            conditions = conditions._replace(text=embeddings, null=null)
        elif stage.conditioning == "label":
            conditions = conditions._replace(label=jnp.asarray(labels, jnp.int32))
        if truth is not None:
            low_res = downsample(truth, stage.low_resolution)
            conditions = conditions._replace(low_res=low_res)
        network = network_params(params, frozen, config.lora)
        images = sample_stage(stage, network, keys, conditions, section.sampling)
        if truth is None:
            return image_grid(list(whole(images)), captions)
        rows = [upsample(low_res, stage.resolution), images, truth]
        return image_grid(list(np.concatenate([whole(row) for row in rows])), columns=count)

    return sample


def _examples(source: Source, wanted: list, count: int) -> list[dict[str, Any]]:
    """`count` examples: the first with each wanted caption or label, then any that can be read.

    Raises ValueError where none of the first can be read. A source of fewer gives some twice.
    """
    found: dict = {}
    for row in range(min(len(source), 20_000)) if wanted and hasattr(source, "images") else ():
        example = source[row]
        names = [caption for caption, _ in example.get("captions", ())] or [example.get("label")]
        for name in names:
            if name in wanted:
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
        raise ValueError(f"no image to draw samples from can be read; the last: {error}")
    return examples

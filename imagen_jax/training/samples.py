"""Pictures drawn while training, to look at."""

import jax.numpy as jnp
import numpy as np
from jax import device_get

from imagen_jax import text
from imagen_jax.cascade import Conditions, sample_keys, sample_stage
from imagen_jax.data import Source
from imagen_jax.data.preprocess import resize
from imagen_jax.diffusion.augmentation import downsample, upsample
from imagen_jax.grid import image_grid
from imagen_jax.text import TextEncoder
from imagen_jax.training.build import RunConfig
from imagen_jax.training.loop import SampleFn
from imagen_jax.training.state import Frozen, encoder_params, network_params
from imagen_jax.typing import Params


def make_sample_fn(
    config: RunConfig, encoder: TextEncoder | None, source: Source | None, frozen: Frozen | None
) -> SampleFn | None:
    """(parameters, step) -> a grid by the config's section `sample`; None where it has none.

    A base model draws one picture a prompt (or label). A super-resolution model enlarges pictures
    of `source`, those with the prompts as captions where there are such: its grid has a row of
    inputs, one of results and one of the true pictures.
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
        rows = _rows_of(source, prompts if stage.conditioning == "text" else labels, count)
        pictures = [resize(source[row]["image"], stage.resolution) for row in rows]
        truth = jnp.asarray(np.stack(pictures), jnp.float32) / 127.5 - 1.0
    keys = sample_keys(section.seed, range(count))

    def sample(params: Params, step: int):
        conditions = Conditions()
        if stage.conditioning == "text":
            embeddings = text.encode(encoder, encoder_params(params, frozen), prompts)
            null = text.null_text(1, encoder.max_length, encoder.config.d_model)
            conditions = conditions._replace(text=embeddings, null=null)
        elif stage.conditioning == "label":
            conditions = conditions._replace(label=jnp.asarray(labels, jnp.int32))
        if truth is not None:
            low_res = downsample(truth, stage.low_resolution)
            conditions = conditions._replace(low_res=low_res)
        network = network_params(params, frozen, config.lora)
        images = sample_stage(stage, network, keys, conditions, section.sampling)
        if truth is None:
            return image_grid(device_get(images), captions)
        rows = [upsample(low_res, stage.resolution), images, truth]
        return image_grid(np.concatenate(device_get(rows)), columns=count)

    return sample


def _rows_of(source: Source, wanted: list, count: int) -> list[int]:
    """The first picture with each caption or label; other pictures for those not found."""
    found: dict = {}
    for row in range(min(len(source), 20_000)) if wanted and hasattr(source, "images") else ():
        example = source[row]
        names = [name for name, _ in example.get("captions", ())] or [example.get("label")]
        for name in names:
            if name in wanted:
                found.setdefault(name, row)
    spare = iter(range(len(source)))
    rows = [found[name] if name in found else next(spare) for name in wanted]
    return rows or [row % len(source) for row in range(count)]

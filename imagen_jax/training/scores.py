"""FID, FD-DINOv2, CLIP score and CMMD of a base model's images while it is trained."""

import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.devices import memory
from imagen_jax.evaluation.metrics import DISTANCES, METRICS, compute_targets, measure
from imagen_jax.evaluation.networks import read_extractors
from imagen_jax.evaluation.prompts import read_prompts
from imagen_jax.evaluation.reference import read_reference
from imagen_jax.images.pixels import to_uint8
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.run_config import RunConfig
from imagen_jax.training.samples import make_generate
from imagen_jax.training.state import Frozen
from imagen_jax.typing import Params

LOGGED = ("fid", "fd_dinov2", "cmmd", "clip")


def make_score_fn(
    config: RunConfig, encoder: TextEncoder | None, frozen: Frozen
) -> Callable[[Params], dict[str, float]] | None:
    """parameters -> {"scores/fid/NETWORK": value, ...} by the config's section `evaluate`; None
    where it has none.

    Raises:
        FileNotFoundError: the prompts, a network or the reference are missing.
        ValueError: the stage does not generate from prompts, or nothing can be measured.
    """
    section, stage = config.evaluate, config.stage
    if section is None:
        return None
    if stage.conditioning != "text" or stage.low_resolution is not None or encoder is None:
        raise ValueError(
            f"section 'evaluate' is for a base model of text, which {stage.name!r} is not"
        )
    if config.data.embeddings is not None:
        raise ValueError(
            "section 'evaluate' generates from prompts, which needs the text encoder, and with "
            "data.embeddings the run has none: leave the section out, and score its checkpoints "
            "with imagen-jax evaluate --model WORKDIR"
        )
    prompts = read_prompts(section.prompts).first(section.num)
    extractors = read_extractors(section.features)
    reference = None if section.reference is None else read_reference(Path(section.reference))
    kinds = {extractor.kind for extractor in extractors}
    known = [m for m in LOGGED if METRICS[m].network in kinds]
    metrics = [m for m in known if reference or m not in DISTANCES]
    if not metrics:
        raise ValueError("section 'evaluate' measures nothing: FID needs a reference, CLIP a model")
    targets = compute_targets(metrics, extractors, reference, prompts.texts)
    # The keys of a cascade's first stage: the images are those of imagen-jax evaluate.
    keys = sample_keys(section.seed, range(len(prompts)))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    generate = make_generate(config, encoder, frozen)

    def score(params: Params) -> dict[str, float]:
        found: dict[str, list[np.ndarray]] = {extractor.name: [] for extractor in extractors}
        for start in range(0, len(prompts), section.batch_size):
            # The last batch is filled up with the last prompt, so that one program does for all.
            rows = np.minimum(np.arange(start, start + section.batch_size), len(prompts) - 1)
            images = generate(params, keys[rows], [prompts.texts[row] for row in rows])
            images = to_uint8(images)[: len(prompts) - start]
            for extractor in extractors:
                found[extractor.name].append(extractor.images(images))
        features = {name: np.concatenate(batches) for name, batches in found.items()}
        values, failures = measure(metrics, extractors, features, targets)
        for what, why in failures.items():
            warnings.warn(f"{what} is not measured: {why}", stacklevel=2)
        return {
            f"scores/{metric}/{name}": entry["value"]
            for metric, entries in values.items()
            for name, entry in entries.items()
        }

    return memory.explained(f"evaluate.batch_size is {section.batch_size}; give less.")(score)

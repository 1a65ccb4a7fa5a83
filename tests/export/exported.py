"""What the tests of exports share: random inputs, the package's own results, tiny models."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from tiny_cascade import CASCADE, ENCODER, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.sample import InjectedNoise, sample_stage
from imagen_jax.cascade.stage import Conditions, Stage
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.export.parts import Part
from imagen_jax.models import UNetConfig, UNetLevel
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.text.encoder import encode_tokens, null_text
from imagen_jax.typing import TextEmbeddings


def distance(found: Any, wanted: Any) -> float:
    """Relative L2."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.isfinite(wanted).all()
    return float(np.linalg.norm(found - wanted) / (np.linalg.norm(wanted) or 1.0))


def run_part(part: Part, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What jax makes of a part, compiled in haste."""
    hasty = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    program = jax.jit(lambda arrays: part.function(**arrays), compiler_options=hasty)
    return list(map(np.asarray, program(given)))


def first_row(part: Part, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of the first example alone."""

    def cut(name: str, value: np.ndarray) -> np.ndarray:
        sizes = list(map(str, part.inputs[name].shape))
        return value.take([0], sizes.index("batch")) if "batch" in sizes else value

    return {name: cut(name, value) for name, value in given.items()}


def sampled(pipeline: Pipeline, given: dict[str, np.ndarray]) -> np.ndarray:
    """The images of a cascade's inputs as the package samples them, a stage after the other."""
    cascade, images = pipeline.cascade, None
    encoder, params = cascade.encoder, pipeline.params

    def encode(kind: str) -> TextEmbeddings:
        ids, mask = given[f"{kind}ids"], given[f"{kind}mask"]
        return encode_tokens(encoder.config, params["text_encoder"], ids, mask, encoder.padding)

    text, null = encode(""), null_text(1, encoder.max_length, encoder.config.d_model)
    if given.get("negative_mask", np.zeros(1)).any():
        null = encode("negative_")
    for stage, sampling in zip(cascade.stages, cascade.sampling, strict=True):
        own = {
            n.removesuffix(f"_{stage.name}"): a for n, a in given.items() if n.endswith(stage.name)
        }
        steps = len(own["times"]) - 1
        later = own.get("step_noise", np.zeros((steps, *own["noise"].shape), np.float32))
        noise = InjectedNoise(
            np.concatenate([own["noise"][None], later]), own.get("augmentation_noise")
        )
        chosen = replace(sampling, steps=steps, guidance=float(own.get("guidance", 1)))
        conditions = Conditions(text, null, None, images)
        images = np.asarray(sample_stage(stage, params[stage.name], noise, conditions, chosen))
    return images


def tiny(sampling: Sampling | None = None, **changes: Any) -> Pipeline:
    """The tiny cascade; its base sampled otherwise."""
    first, *rest = CASCADE.sampling
    first = replace(sampling or first, **changes)
    return Pipeline(replace(CASCADE, sampling=(first, *rest)), random_params(CASCADE), name="tiny")


def of_network(network: Any, **stage: Any) -> Pipeline:
    """A cascade of one stage of 16 pixels with this network."""
    conditioning = "text" if network.num_classes is None else "label"
    low = 8 if network.low_res_channels else None
    only = Stage(
        "only",
        16,
        network,
        text_width=8,
        conditioning=conditioning,
        prediction="v",
        low_resolution=low,
        **stage,
    )
    encoder = ENCODER if conditioning == "text" else None
    cascade = Cascade((only,), (Sampling("ddim", steps=3, threshold="static"),), encoder)
    return Pipeline(cascade, random_params(cascade), name="one")


def if_stages(width: int = 16, side: int = 8) -> Pipeline:
    """DeepFloyd IF's stages I and II in miniature, with a T5 encoder, all random."""
    levels = (UNetLevel(32, 1), UNetLevel(64, 1, "cross"))
    common = {
        "out_channels": 6, "head_channels": 8, "activation": "gelu", "text_projection": 32,
        "text_norm": "group", "pooling_heads": 2, "mask_text": False, "mid_attention": "self",
    }  # fmt: skip
    base = UNetConfig(levels, **common)
    second = replace(
        base, low_res_channels=3, output_scale_factor=2**0.5, mid_output_scale_factor=2**0.5,
        embedding_activation="gelu", activate_embedding=False, mid_attention="cross",
    )  # fmt: skip
    schedule = DiscreteBeta()
    fields = {"text_width": width, "schedule": schedule, "upsampling": "bilinear_align_corners"}
    stages = (
        Stage("I", side, base, **fields),
        Stage("II", 4 * side, second, low_resolution=side, aug_schedule=schedule, **fields),
    )
    settings = Sampling("ddpm", steps=4, guidance=4.0, percentile=95.0, cap=1.5, spacing="trailing")
    config = replace(ENCODER.config, d_model=width, num_heads=2, num_layers=2, d_ff=24)
    encoder = replace(ENCODER, config=config, null="empty", padding="encoded")
    cascade = Cascade(stages, (settings, replace(settings, steps=3, aug_level=0.25)), encoder)
    params = random_params(cascade)
    small = jax.tree.map(
        lambda x: 0.1 * x, {k: v for k, v in params.items() if k != "text_encoder"}
    )
    return Pipeline(cascade, params | small, name="if")

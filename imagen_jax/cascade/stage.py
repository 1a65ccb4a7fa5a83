"""A stage: one diffusion model of the cascade, as data, and what its parameters make of it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagen_jax import models
from imagen_jax.diffusion.augmentation import AUGMENTATION_SCHEDULE, UPSAMPLINGS
from imagen_jax.diffusion.denoiser import (
    NO_GUIDANCE,
    PAPER_THRESHOLDING,
    Denoiser,
    Guidance,
    Thresholding,
    make_denoiser,
)
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.schedules import SCHEDULES, Cosine, DiscreteBeta, Schedule, network_time
from imagen_jax.models import EfficientUNetConfig, UNetConfig
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings


@dataclasses.dataclass(frozen=True)
class Stage:
    """One diffusion model: network, noise, what it predicts, at which resolution, from what.

    resolution: side of its images. low_resolution: side of the images it enlarges, None for a
    base model. crop: side of the squares cut out of images of `resolution` for training, None for
    whole images. conditioning: "text" (embeddings of `text_width`), "label" (the network's
    `num_classes`) or None. prediction: what the network outputs. time_power: training draws t = u
    ** time_power, u uniform; 1 is the paper's, less spends more on high noise. aug_levels: range of
    the augmentation level in training. aug_schedule: what noise a level is; where it counts time
    steps, so does the level. upsampling: of the low-resolution input, a key of UPSAMPLINGS.
    """

    name: str
    resolution: int
    network: UNetConfig | EfficientUNetConfig
    low_resolution: int | None = None
    conditioning: Literal["text", "label"] | None = "text"
    text_width: int | None = None
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    prediction: Literal["eps", "x0", "v"] = "eps"
    loss: Loss = dataclasses.field(default_factory=Loss)
    time_power: float = 1.0
    aug_levels: tuple[float, float] = (0.0, 1.0)
    channels: int = 3
    crop: int | None = None
    aug_schedule: Schedule = AUGMENTATION_SCHEDULE
    upsampling: str = "bilinear"

    def __post_init__(self):
        network, step = self.network, models.reduction(self.network)
        if self.resolution < 1 or self.resolution % step:
            raise ValueError(
                f"stage {self.name!r}: resolution {self.resolution} is no multiple of {step}"
            )
        if self.crop is not None:
            self._check_crop(step)
        if self.conditioning == "text" and not self.text_width:
            raise ValueError(f"stage {self.name!r}: conditioning 'text' needs text_width")
        pooling_heads = getattr(network, "pooling_heads", None)
        if self.conditioning == "text" and pooling_heads and self.text_width % pooling_heads:
            raise ValueError(
                f"stage {self.name!r}: text_width {self.text_width} does not split into "
                f"network.pooling_heads {pooling_heads}"
            )
        if getattr(network, "draft", False) and self.conditioning != "text":
            raise ValueError(
                f"stage {self.name!r}: network.draft guesses from text, but conditioning is "
                f"{self.conditioning!r}"
            )
        if (self.conditioning == "label") != (network.num_classes is not None):
            raise ValueError(
                f"stage {self.name!r}: conditioning {self.conditioning!r} and network.num_classes "
                f"{network.num_classes} do not fit: num_classes is for conditioning 'label' alone"
            )
        if (self.low_resolution is not None) != bool(network.low_res_channels):
            raise ValueError(
                f"stage {self.name!r}: low_resolution {self.low_resolution} and "
                f"network.low_res_channels {network.low_res_channels} do not fit: an enlarging "
                "stage needs both, a base model neither"
            )
        if network.in_channels != self.channels or network.out_channels not in (
            self.channels,
            2 * self.channels,
        ):
            raise ValueError(
                f"stage {self.name!r}: the network takes {network.in_channels} and gives "
                f"{network.out_channels} channels for images of {self.channels}"
            )
        low, high = self.aug_levels
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"stage {self.name!r}: aug_levels {self.aug_levels} must rise within [0, 1]"
            )
        if not self.time_power > 0:
            raise ValueError(
                f"stage {self.name!r}: time_power must be positive, not {self.time_power}"
            )
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(
                f"stage {self.name!r}: upsampling {self.upsampling!r} is none of "
                f"{tuple(UPSAMPLINGS)}"
            )
        if self.loss.vlb_weight and not (
            network.out_channels == 2 * self.channels and isinstance(self.schedule, DiscreteBeta)
        ):
            raise ValueError(
                f"stage {self.name!r}: loss.vlb_weight {self.loss.vlb_weight} needs a network with "
                f"a learned variance (out_channels {2 * self.channels}, not "
                f"{network.out_channels}) and a schedule of kind discrete_beta"
            )

    def _check_crop(self, step: int) -> None:
        # The low-resolution crop has whole pixels, too.
        enlargement = 1 if self.low_resolution is None else self.resolution / self.low_resolution
        fits = 0 < self.crop <= self.resolution and self.crop % step == 0
        if not fits or self.crop % enlargement:
            raise ValueError(
                f"stage {self.name!r}: crop {self.crop} must be at most {self.resolution}, and a "
                f"multiple of {step} and of the enlargement, {enlargement:g}"
            )

    @property
    def training_side(self) -> int:
        """Side of the images in a training batch."""
        return self.resolution if self.crop is None else self.crop


# For storage.codec: what these fields of a stage may be.
KINDS = {"network": models.NETWORKS, "schedule": SCHEDULES, "aug_schedule": SCHEDULES}


def init_params(stage: Stage, key: Keys) -> Params:
    """Fresh float32 parameters of the stage's network."""
    width = stage.text_width if stage.conditioning == "text" else None
    return models.init(stage.network, key, resolution=stage.resolution, text_width=width)


def apply_network(
    stage: Stage,
    params: Params,
    x_t: Images,
    t: Float[Array, " batch"],
    *,
    text: TextEmbeddings | None = None,
    label: Int[Array, " batch"] | None = None,
    low_res: Images | None = None,
    aug_level: Float[Array, " batch"] | None = None,
) -> Float[Array, "batch height width out_channels"]:
    """The network's output at x_t, t in [0, 1]; `low_res` enlarged and augmented at `aug_level` in
    [0, 1].
    """
    level = None
    if aug_level is not None and low_res is not None:
        level = network_time(stage.aug_schedule, aug_level)
    return models.apply(
        stage.network,
        params,
        x_t,
        network_time(stage.schedule, t),
        text=text,
        label=label,
        low_res=low_res,
        aug_level=level,
    )


def null_label(stage: Stage, batch: int) -> Int[Array, " batch"]:
    """The label that stands for no class: the row after the last one."""
    return jnp.full((batch,), stage.network.num_classes, jnp.int32)


def make_stage_denoiser(
    stage: Stage,
    params: Params,
    *,
    text: TextEmbeddings | None = None,
    null: TextEmbeddings | None = None,
    label: Int[Array, " batch"] | None = None,
    low_res: Images | None = None,
    aug_level: Float[Array, " batch"] | None = None,
    guidance: Guidance = NO_GUIDANCE,
    threshold: str = "dynamic",
    thresholding: Thresholding = PAPER_THRESHOLDING,
    learned_variance: bool = True,
) -> Denoiser:
    """(x_t, t) -> Denoised for a batch with these conditions, guided away from `null` (or from "no
    class").
    """
    if stage.conditioning == "label":
        text, null = None, None

    def predict(x_t, t):
        return apply_network(
            stage, params, x_t, t, text=text, label=label, low_res=low_res, aug_level=aug_level
        )

    def predict_pair(x_t, t):
        away = null if stage.conditioning == "text" else null_label(stage, x_t.shape[0])
        towards = text if stage.conditioning == "text" else label
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), towards, away)
        x_t, t, low, level = jax.tree.map(
            lambda a: jnp.concatenate([a, a]), (x_t, t, low_res, aug_level)
        )
        conditions = {stage.conditioning: both}
        out = apply_network(stage, params, x_t, t, low_res=low, aug_level=level, **conditions)
        return tuple(jnp.split(out, 2))

    guided = (stage.conditioning == "text" and null is not None) or stage.conditioning == "label"
    return make_denoiser(
        predict,
        predict_pair if guided else None,
        stage.schedule,
        stage.prediction,
        guidance,
        threshold,
        thresholding,
        learned_variance,
    )

"""A stage: one diffusion model of the cascade, as data, and what its parameters make of it."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagen_jax import models
from imagen_jax.cascade.hoisting import hoisted
from imagen_jax.diffusion.augmentation import AUGMENTATION_SCHEDULE, UPSAMPLINGS
from imagen_jax.diffusion.denoiser import Denoiser, make_denoiser
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.process import PREDICTIONS, convert, network_input, per_example
from imagen_jax.diffusion.sampling import Number, Sampling
from imagen_jax.diffusion.schedules import SCHEDULES, Cosine, DiscreteBeta, Schedule, network_time
from imagen_jax.models import NetworkConfig
from imagen_jax.models.bounds import MAX_SIDE, MAX_WIDTH
from imagen_jax.storage.codec import require
from imagen_jax.typing import Images, Keys, Params, TextEmbeddings


class Conditions(NamedTuple):
    """What a batch is made of; each field has one row a sample, or is None.

    null: what guidance leads away from, one row for all or one a sample: the null text or the
    negative prompt. low_res: images in [-1, 1] of the stage's low resolution.
    """

    text: TextEmbeddings | None = None
    null: TextEmbeddings | None = None
    label: Int[Array, " batch"] | None = None
    low_res: Images | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One diffusion model: network, noise, what it predicts, at which resolution, from what.

    resolution: side of its images. low_resolution: side of the images it upsamples, None for a
    base model. crop: side of the squares cut out of images of `resolution` for training, None for
    whole images. conditioning: "text" (embeddings of `text_width`), "label" (the network's
    `num_classes`) or None. prediction: what the network outputs, a key of PREDICTIONS. time_power:
    training draws t = u ** time_power, u uniform; 1 is the paper's, less spends more on high noise.
    time_logit_normal: (mean, deviation) of log(t / (1 - t)), which training draws from a normal
    distribution instead (arXiv 2403.03206, section 3.1); on the unshifted flow it is log(sigma /
    alpha), so that EDM's noise levels are (-1.2, 1.2) (arXiv 2206.00364, table 1). aug_levels:
    range of the augmentation level in training. aug_schedule: what noise a level is; where it
    counts time steps, so does the level. upsampling: of the low-resolution input, a key of
    UPSAMPLINGS.
    min_scale: in sampling, of a network that predicts x0 (`with_least_scale`); 0 for none. In
    training it is `loss.min_scale`.
    """

    name: str
    resolution: int
    network: NetworkConfig
    low_resolution: int | None = None
    conditioning: Literal["text", "label"] | None = "text"
    text_width: int | None = None
    schedule: Schedule = dataclasses.field(default_factory=Cosine)
    prediction: Literal["eps", "x0", "v", "edm"] = "eps"
    loss: Loss = dataclasses.field(default_factory=Loss)
    time_power: float = 1.0
    time_logit_normal: tuple[float, float] | None = None
    aug_levels: tuple[float, float] = (0.0, 1.0)
    channels: int = 3
    crop: int | None = None
    aug_schedule: Schedule = AUGMENTATION_SCHEDULE
    upsampling: str = "bilinear"
    min_scale: float = 0.0

    def __post_init__(self):
        self._check_fields()
        self._check_network()

    def _check_fields(self) -> None:
        name, step = f"stage {self.name!r}", models.reduction(self.network)
        (low, high), crop = self.aug_levels, self.crop
        # The low-resolution crop has whole pixels, too.
        scale = self.resolution / self.low_resolution if self.low_resolution else 1
        require(
            (
                1 <= self.resolution <= MAX_SIDE and self.resolution % step == 0,
                f"{name}: resolution {self.resolution} is not a multiple of {step} up to "
                f"{MAX_SIDE}",
            ),
            (
                self.low_resolution is None or 1 <= self.low_resolution <= self.resolution,
                f"{name}: low_resolution {self.low_resolution} must be from 1 to the resolution, "
                f"{self.resolution}",
            ),
            (
                self.text_width is None or 1 <= self.text_width <= MAX_WIDTH,
                f"{name}: text_width {self.text_width} must be from 1 to {MAX_WIDTH}",
            ),
            (
                crop is None
                or (0 < crop <= self.resolution and crop % step == 0 and crop % scale == 0),
                f"{name}: crop {crop} must be at most {self.resolution}, and a multiple of {step} "
                f"and of the upsampling factor, {scale:g}",
            ),
            (
                self.text_width or self.conditioning != "text",
                f"{name}: conditioning 'text' needs text_width",
            ),
            (
                0 <= low <= high <= 1,
                f"{name}: aug_levels {self.aug_levels} must rise within [0, 1]",
            ),
            (
                self.prediction in PREDICTIONS,
                f"{name}: prediction {self.prediction!r} must be one of {tuple(PREDICTIONS)}",
            ),
            (self.time_power > 0, f"{name}: time_power must be positive, not {self.time_power}"),
            (
                self.time_logit_normal is None
                or (self.time_logit_normal[1] > 0 and self.time_power == 1),
                f"{name}: time_logit_normal {self.time_logit_normal} must be a mean and a positive "
                f"deviation, and time_power 1, not {self.time_power}",
            ),
            (
                self.upsampling in UPSAMPLINGS,
                f"{name}: upsampling {self.upsampling!r} must be one of {tuple(UPSAMPLINGS)}",
            ),
        )

    def _check_network(self) -> None:
        name, network, kind = f"stage {self.name!r}", self.network, self.conditioning
        heads = models.pooling_heads(network, self.text_width or 1)
        outputs, learned = network.out_channels, 2 * self.channels
        require(
            (
                kind != "text" or self.text_width % heads == 0,
                f"{name}: text_width {self.text_width} does not split into the {heads} heads that "
                "pool it (network.pooling_heads)",
            ),
            (
                kind == "text" or not getattr(network, "draft", False),
                f"{name}: network.draft guesses from text, but conditioning is {kind!r}",
            ),
            (
                (kind == "label") == (network.num_classes is not None),
                f"{name}: conditioning {kind!r} and network.num_classes {network.num_classes} do "
                "not fit: num_classes is for conditioning 'label' alone",
            ),
            (
                (self.low_resolution is not None) == bool(network.low_res_channels),
                f"{name}: low_resolution {self.low_resolution} and network.low_res_channels "
                f"{network.low_res_channels} do not fit: a super-resolution stage needs both, a "
                "base model neither",
            ),
            (
                network.in_channels == self.channels and outputs in (self.channels, learned),
                f"{name}: the network takes {network.in_channels} and gives {outputs} channels for "
                f"images of {self.channels}",
            ),
            (
                0 <= self.min_scale < 1,
                f"{name}: min_scale must be in [0, 1), not {self.min_scale}",
            ),
            (
                not self.min_scale or self.prediction == "x0",
                f"{name}: min_scale {self.min_scale} is for prediction 'x0', not "
                f"{self.prediction!r}",
            ),
            (
                not self.loss.vlb_weight
                or (outputs == learned and isinstance(self.schedule, DiscreteBeta)),
                f"{name}: loss.vlb_weight {self.loss.vlb_weight} needs a network with a learned "
                f"variance (out_channels {learned}, not {outputs}) and a schedule of kind "
                "discrete_beta",
            ),
        )

    @property
    def is_flow_map(self) -> bool:
        """Whether the network is told the time that a step leads to (`diffusion.flow_map`)."""
        return models.takes_target_time(self.network)

    @property
    def training_side(self) -> int:
        """Side of the images in a training batch."""
        return self.resolution if self.crop is None else self.crop


NO_GUIDE = (
    "guidance_kind 'auto' of stage {!r} leads away from a second, weaker model, and there is none: "
    "load_model(SOURCE, guide=OTHER), or --guide OTHER."
)
# For storage.codec: what these fields of a stage may be.
KINDS = {"network": models.NETWORKS, "schedule": SCHEDULES, "aug_schedule": SCHEDULES}


def init_params(stage: Stage, key: Keys) -> Params:
    """Fresh float32 parameters of the stage's network."""
    width = stage.text_width if stage.conditioning == "text" else None
    return models.init(stage.network, key, resolution=stage.resolution, text_width=width)


def apply_network(
    stage: Stage,
    params: Params | models.TrainingParams | models.WatchedParams,
    x_t: Images,
    t: Float[Array, " batch"],
    s: Float[Array, " batch"] | None = None,
    *,
    text: TextEmbeddings | None = None,
    label: Int[Array, " batch"] | None = None,
    low_res: Images | None = None,
    aug_level: Number | None = None,
) -> Float[Array, "batch height width out_channels"] | models.TextMaps:
    """The network's output at x_t, t in [0, 1]; `low_res` upsampled and augmented at `aug_level` in
    [0, 1], one level or one an example. s: of a flow map, the time that the step leads to; t when
    None.
    """
    level = None
    if s is None and stage.is_flow_map:
        s = t
    if aug_level is not None and low_res is not None:
        aug_level = jnp.broadcast_to(jnp.asarray(aug_level, jnp.float32), t.shape)
        level = network_time(stage.aug_schedule, aug_level)
    schedule = stage.schedule
    return models.apply(
        stage.network,
        params,
        network_input(x_t, schedule.logsnr(t), stage.prediction, schedule),
        network_time(schedule, t, stage.prediction),
        text=text,
        label=label,
        low_res=low_res,
        aug_level=level,
        target=None if s is None else network_time(schedule, s, stage.prediction),
    )


def null_label(stage: Stage, batch: Any) -> Int[Array, " batch"]:
    """The label that stands for no class: the row after the last one."""
    return jnp.full((batch,), stage.network.num_classes, jnp.int32)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "guide"],
    meta_fields=["guide_stage"],
)
@dataclasses.dataclass(frozen=True)
class GuidedParams:
    """The parameters of a stage's network and of a weaker one, which autoguidance leads away from
    (arXiv 2406.02507); `check_guide` sees that the two stages fit.
    """

    network: Params
    guide: Params
    guide_stage: Stage


def check_guide(stage: Stage, guide: Stage) -> None:
    """ValueError where a stage cannot guide another. Size, schedule and prediction may differ."""
    for each in (stage, guide):
        if each.is_flow_map:
            raise ValueError(
                f"Stage {each.name!r} is distilled (network.target_time): it has its teacher's "
                "guidance, and neither guides nor is guided."
            )
    fields = ["resolution", "low_resolution", "channels", "conditioning", "text_width", "min_scale"]
    pairs = {name: (getattr(stage, name), getattr(guide, name)) for name in fields}
    pairs["num_classes"] = stage.network.num_classes, guide.network.num_classes
    if stage.low_resolution is not None:  # both get the same low-resolution input
        pairs["upsampling"] = stage.upsampling, guide.upsampling
        pairs["aug_schedule"] = stage.aug_schedule, guide.aug_schedule
    for name, (own, other) in pairs.items():
        if own != other:
            raise ValueError(
                f"Stage {guide.name!r} cannot guide stage {stage.name!r}: {name} is {other!r}, "
                f"not {own!r}."
            )


def guide_output(
    stage: Stage, params: GuidedParams, x_t: Images, t: Float[Array, " batch"], **given: Any
) -> Images:
    """What the guide says at x_t, t of the stage, as the stage's own kind of prediction.

    The guide sees the image at the noise level, and on the path, of its own schedule.
    """
    guide, schedule, logsnr = params.guide_stage, stage.schedule, stage.schedule.logsnr(t)
    if guide.schedule == schedule:
        output = apply_network(guide, params.guide, x_t, t, **given)[..., : stage.channels]
        return convert(output, x_t, logsnr, guide.prediction, stage.prediction, schedule)
    # At one log-SNR alpha and sigma of two paths are in one ratio, that of their sums.
    scale = sum(guide.schedule.alpha_sigma(logsnr)) / sum(schedule.alpha_sigma(logsnr))
    own_x, own_t = per_example(scale, x_t) * x_t, guide.schedule.time(logsnr)
    output = apply_network(guide, params.guide, own_x, own_t, **given)[..., : stage.channels]
    own_logsnr = guide.schedule.logsnr(own_t)
    x0 = convert(output, own_x, own_logsnr, guide.prediction, "x0", guide.schedule)
    return convert(x0, x_t, logsnr, "x0", stage.prediction, schedule)


def _example(stage: Stage, shape: tuple[Any, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """An x_t and its times, as `make_denoiser` calls a network with them."""
    shapes = shape, *[shape[:1]] * (2 if stage.is_flow_map else 1)
    return tuple(jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes)


def make_stage_denoiser(
    stage: Stage,
    params: Params | models.TrainingParams | GuidedParams,
    conditions: Conditions,
    sampling: Sampling,
    shape: tuple[Any, ...] | None = None,
    guided: bool | None = None,
) -> Denoiser:
    """(x_t, t) -> Denoised for a batch, guided away from the null text (or from "no class"), or
    from a weaker network.

    Args:
        conditions: with one row of `null` a sample, and with `low_res` upsampled and augmented at
            `sampling.aug_level` (one number, or one a sample).
        shape: of x_t, if what follows from the conditions alone, such as the keys and values of the
            text, is to be computed here, for all calls. (Not where gradients are taken.)
        guided: whether the pair is evaluated, always or never; None: where the weight is not 1.

    Raises:
        ValueError: guidance of the kind "auto", and `params` are of one network.
    """
    paired = isinstance(params, GuidedParams)
    network = functools.partial(apply_network, stage, params.network if paired else params)
    low = {}
    if conditions.low_res is not None:
        low_res, level = conditions.low_res, jnp.asarray(sampling.aug_level, jnp.float32)
        low = {"low_res": low_res, "aug_level": jnp.broadcast_to(level, low_res.shape[:1])}
    if stage.conditioning == "text":
        towards, away = {"text": conditions.text}, {"text": conditions.null}
    elif stage.conditioning == "label":
        towards = {"label": conditions.label}
        away = {"label": null_label(stage, conditions.label.shape[0])}
    else:
        towards, away = {}, {}
    predict = functools.partial(network, **low, **towards)

    def predict_both(x_t, *times):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), towards, away)
        inputs, twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), ((x_t, *times), low))
        return tuple(jnp.split(network(*inputs, **twice, **both), 2))

    def predict_two(x_t, t):
        return predict(x_t, t), guide_output(stage, params, x_t, t, **low, **towards)

    predict_pair = predict_both if any(value is not None for value in away.values()) else None
    if sampling.guidance_kind == "auto":
        if not paired:
            raise ValueError(NO_GUIDE.format(stage.name))
        predict_pair = predict_two
    if guided is False:
        predict_pair = None  # nor is anything of it computed here
    if shape is not None:
        once = functools.partial(
            hoisted, example=_example(stage, shape), fixed=conditions._replace(low_res=None)
        )
        predict, predict_pair = once(predict), predict_pair and once(predict_pair)
    kind = stage.prediction
    return make_denoiser(
        predict, predict_pair, stage.schedule, kind, sampling, stage.min_scale, guided
    )

"""What of a cascade is exported: functions of arrays by name, with the names' meanings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.cascade.sample import stage_sampler
from imagen_jax.cascade.stage import Conditions, Stage, apply_network, make_stage_denoiser
from imagen_jax.diffusion.augmentation import augment, upsample
from imagen_jax.diffusion.guided_steps import guided_start
from imagen_jax.diffusion.samplers import initial_state, sample_loop
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.diffusion.steps import Estimate, SamplerState
from imagen_jax.diffusion.time_grids import MAX_STEPS, TimeGrid
from imagen_jax.export.meanings import meaning
from imagen_jax.models import t5
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.text.encoder import null_text
from imagen_jax.typing import Params, TextEmbeddings

CASCADE = "cascade"
ONE_STEP = ("ddpm", "ddim", "euler", "heun")  # samplers that keep no estimates
Shape = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Part:
    """A function of arrays by name that gives a tuple of arrays.

    inputs, outputs: by name, in order; what each means is in `meanings`. Sizes that a caller
    chooses are the symbols batch, times (one more than steps) and steps.
    """

    name: str
    function: Callable[..., tuple]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    meanings: dict[str, str]


@dataclass(frozen=True)
class Frame:
    """What all parts share: sizes, and how long texts are and how wide."""

    batch: Any
    grids: tuple[tuple[Any, Any], ...]  # by stage: how many times, how many steps have noise
    length: int
    width: int | None

    def images(self, side: int, channels: int = 3) -> Shape:
        """Of a batch of images."""
        return Shape((self.batch, side, side, channels), np.float32)

    def text(self, name: str) -> dict[str, Shape]:
        """Of embeddings under this name, and of their mask."""
        values = Shape((self.batch, self.length, self.width), np.float32)
        return {name: values, f"{name}_mask": Shape((self.batch, self.length), bool)}


def is_guided(sampling: Sampling) -> bool:
    """Whether a stage is exported with guidance, at twice the price of a step."""
    return float(np.max(sampling.guidance)) != 1.0


def needs_noise(sampling: Sampling) -> bool:
    """Whether the steps of a stage add noise."""
    kind = sampling.sampler
    if kind == "ddim":
        return float(np.max(sampling.eta)) > 0
    if kind == "heun":
        return float(np.max(sampling.churn)) > 0
    return kind == "ddpm" or kind.endswith("sde")


def frame_of(cascade: Cascade) -> Frame:
    """With symbols, for texts of the encoder's length (128 tokens without one)."""
    ends = [f"_{i}" if i else "" for i in range(len(cascade.stages))]
    symbols = [f"times{end}, steps{end}" for end in ends]
    batch, *sizes = export.symbolic_shape(", ".join(["batch", *symbols]))
    grids = tuple(zip(sizes[::2], sizes[1::2], strict=True))
    length = 128 if cascade.encoder is None else cascade.encoder.max_length
    widths = [stage.text_width for stage in cascade.stages if stage.conditioning == "text"]
    return Frame(batch, grids, length, widths[0] if widths else None)


def part_names(cascade: Cascade) -> list[str]:
    """The parts that a cascade has."""
    names = [f"{stage.name}_{kind}" for stage in cascade.stages for kind in ("network", "steps")]
    reads = any(stage.conditioning == "text" for stage in cascade.stages)
    if cascade.encoder is not None:
        names.insert(0, TEXT_ENCODER)
    whole = cascade.stages[0].low_resolution is None and (cascade.encoder is not None or not reads)
    return [*names, CASCADE] if whole else names


def make_part(pipeline: Pipeline, name: str, dtype: str = "float32") -> Part:
    """A part by its name, of `part_names`; its networks compute in `dtype`, in float32 for int8."""
    dtype = "float32" if dtype == "int8" else dtype
    cascade, frame = pipeline.cascade, frame_of(pipeline.cascade)
    if name == TEXT_ENCODER:
        return encoder_part(cascade, frame, on_device(pipeline.params[TEXT_ENCODER]))
    if name == CASCADE:
        return cascade_part(pipeline, frame, dtype)
    position, kind = next(
        (i, kind)
        for i, stage in enumerate(cascade.stages)
        for kind in ("network", "steps")
        if name == f"{stage.name}_{kind}"
    )
    stage, params = computing_in(cascade.stages[position], dtype), cascade.stages[position].name
    params = on_device(pipeline.params[params])
    if kind == "network":
        return network_part(name, stage, frame, params)
    return steps_part(name, stage, cascade.sampling[position], frame, params)


def on_device(params: Params) -> Params:
    """The parameters as jax's arrays, which become constants of the program."""
    return jax.tree.map(jnp.asarray, params)


def computing_in(stage: Stage, dtype: str) -> Stage:
    """The stage whose network computes in this dtype, in the plain form of its layers."""
    chosen = {"dtype": dtype, "fused": False, "scan_layers": False, "remat": False}
    fields = stage.network.__dataclass_fields__
    return replace(
        stage,
        network=replace(
            stage.network, **{key: value for key, value in chosen.items() if key in fields}
        ),
    )


# --------------------------------------------------------------------------------- encoder, network


def encode(cascade: Cascade, params: Params, ids: Array, mask: Array) -> Array:
    """The embeddings of tokens, float32 [batch, tokens, width]."""
    config = replace(cascade.encoder.config, remat=False)
    return t5.encode(config, params, ids, mask, zero_padding=cascade.encoder.padding == "zeros")


def encoder_part(cascade: Cascade, frame: Frame, params: Params) -> Part:
    """From tokens to embeddings."""

    def function(ids, mask):
        return (encode(cascade, params, ids, mask),)

    return part(TEXT_ENCODER, function, token_inputs(frame), ("text",))


def token_inputs(frame: Frame) -> dict[str, Shape]:
    """Of what the text encoder reads."""
    shape = frame.batch, frame.length
    return {"ids": Shape(shape, np.int32), "mask": Shape(shape, bool)}


def part(name: str, function: Callable, inputs: dict[str, Shape], outputs: tuple[str, ...]) -> Part:
    """A part with the meanings of its names."""
    return Part(name, function, inputs, outputs, {key: meaning(key) for key in (*inputs, *outputs)})


def network_part(name: str, stage: Stage, frame: Frame, params: Params) -> Part:
    """One evaluation of a stage's network."""
    inputs = {"x": frame.images(stage.resolution, stage.channels)}
    inputs["t"] = Shape((frame.batch,), np.float32)
    if stage.is_flow_map:
        inputs["s"] = Shape((frame.batch,), np.float32)
    inputs |= condition_inputs(stage, frame)
    if stage.low_resolution is not None:
        inputs["low_res"] = frame.images(stage.resolution, stage.channels)
        inputs["aug_level"] = Shape((frame.batch,), np.float32)

    def function(x, t, text=None, text_mask=None, **rest):
        text = None if text is None else TextEmbeddings(text, text_mask)
        return (apply_network(stage, params, x, t, text=text, **rest).astype(jnp.float32),)

    made = part(name, function, inputs, ("prediction",))
    if "low_res" in inputs:
        made.meanings["low_res"] += ", upsampled to the stage's resolution, with noise of aug_level"
    return made


def condition_inputs(stage: Stage, frame: Frame, guided: bool = False) -> dict[str, Shape]:
    """Of the labels or the text that a stage reads; `guided`: of what guidance leads away from."""
    if stage.conditioning == "label":
        return {"label": Shape((frame.batch,), np.int32)}
    if stage.conditioning is None:
        return {}
    return frame.text("text") | (frame.text("null") if guided else {})


# ---------------------------------------------------------------------------------------- the steps


def steps_part(name: str, stage: Stage, sampling: Sampling, frame: Frame, params: Params) -> Part:
    """Steps start ... stop - 1: the whole loop, or one step at a time."""
    guided, side = is_guided(sampling), stage.resolution
    state = jax.eval_shape(lambda: begun(jnp.zeros((1, side, side, stage.channels)), sampling))
    names = state_names(state, sampling)
    inputs = {name: frame.images(side, stage.channels) for name in names}
    inputs |= {name: Shape((), np.float32) for name in names if name.startswith("logsnr")}
    inputs |= run_inputs(stage, sampling, frame) | condition_inputs(stage, frame, guided)
    inputs |= {"start": Shape((), np.int32), "stop": Shape((), np.int32)}

    def function(start, stop, text=None, text_mask=None, null=None, null_mask=None, **given):
        before = state_from({name: given.pop(name) for name in names}, sampling)
        conditions = Conditions(
            text=None if text is None else TextEmbeddings(text, text_mask),
            null=None if null is None else TextEmbeddings(null, null_mask),
            label=given.pop("label", None),
            low_res=given.pop("low_res", None),
        )
        grid = TimeGrid(padded(given["times"]), start, stop)
        after = run_steps(stage, params, sampling, grid, before, conditions, given)
        return tuple(state_values(after, (*names, "x0")).values())

    return part(
        name,
        function,
        inputs,
        tuple(f"next_{n}" if n in names else n for n in dict.fromkeys((*names, "x0"))),
    )


def run_inputs(
    stage: Stage, sampling: Sampling, frame: Frame, position: int = 0
) -> dict[str, Shape]:
    """What a loop over steps reads beside the state and the conditions."""
    (times, steps), noise = frame.grids[position], frame.images(stage.resolution, stage.channels)
    inputs = {"times": Shape((times,), np.float32)}
    if is_guided(sampling):
        inputs["guidance"] = Shape((), np.float32)
    if needs_noise(sampling):
        inputs["step_noise"] = Shape((steps, *noise.shape), np.float32)
    if stage.low_resolution is not None:
        inputs["low_res"] = frame.images(stage.low_resolution, stage.channels)
        inputs["augmentation_noise"] = noise
    return inputs


def padded(times: Array) -> Array:
    """The time grid as long as all are, its end repeated."""
    last = times.shape[0] - 1
    return times[jnp.minimum(jnp.arange(MAX_STEPS + 1), last)]


def run_steps(
    stage: Stage,
    params: Params,
    sampling: Sampling,
    grid: TimeGrid,
    state: SamplerState,
    conditions: Conditions,
    given: dict[str, Any],
) -> SamplerState:
    """As `cascade.sample.run_steps`, with guidance and noise as inputs, and without a condition.

    Args:
        given: of `run_inputs`, those that the stage has.
    """
    guided = is_guided(sampling)
    sampling = jax.tree.map(jnp.asarray, traced(sampling))
    if guided:
        sampling = replace(sampling, guidance=given["guidance"])
    # Of the whole loop, even where one step of it is run.
    sampling = replace(sampling, steps=jnp.int32(given["times"].shape[0] - 1))
    if conditions.low_res is not None:
        low_res = upsample(
            conditions.low_res, (stage.resolution, stage.resolution), stage.upsampling
        )
        low_res = augment(
            low_res, sampling.aug_level, given["augmentation_noise"], stage.aug_schedule
        )
        conditions = conditions._replace(low_res=low_res)
    denoise = make_stage_denoiser(stage, params, conditions, sampling, state.x.shape, guided)

    def noise(index):
        if "step_noise" not in given:
            return jnp.zeros_like(state.x)
        return jax.lax.dynamic_index_in_dim(
            given["step_noise"], index - 1 - grid.start, keepdims=False
        )

    sampler = stage_sampler(stage, sampling)
    return sample_loop(sampler, denoise, stage.schedule, grid, state, noise, sampling)


def begun(x: Array, sampling: Sampling) -> SamplerState:
    """The state before the first step."""
    return guided_start(initial_state(x, sampling.sampler), sampling)


def state_names(state: SamplerState, sampling: Sampling) -> list[str]:
    """Of what goes from step to step: x, and the estimates and the average where they are read."""
    names = ["x"]
    if sampling.sampler not in ONE_STEP:
        for i in range(len(state.history)):
            names += [f"x0_{i}" if i else "x0", f"logsnr_{i}" if i else "logsnr"]
    return names if state.average is None else [*names, "average"]


def state_values(state: SamplerState, names: Any) -> dict[str, Any]:
    """The arrays of a state by these of its names."""
    values = {"x": state.x, "average": state.average}
    for i, estimate in enumerate(state.history):
        ending = f"_{i}" if i else ""
        values |= {f"x0{ending}": estimate.x0, f"logsnr{ending}": estimate.logsnr}
    return {name: values[name] for name in dict.fromkeys(names)}


def state_from(values: dict[str, Any], sampling: Sampling) -> SamplerState:
    """The inverse of `state_values`; of a sampler that keeps no estimates from x alone."""
    state = begun(values["x"], sampling)
    if "x0" in values:
        endings = [f"_{i}" if i else "" for i in range(len(state.history))]
        history = (Estimate(values[f"x0{ending}"], values[f"logsnr{ending}"]) for ending in endings)
        state = state._replace(history=tuple(history))
    return state._replace(average=values["average"]) if "average" in values else state


# ---------------------------------------------------------------------------------- all in one part


def cascade_part(pipeline: Pipeline, frame: Frame, dtype: str) -> Part:
    """From tokens to images: the encoder and the steps of all stages."""
    cascade = pipeline.cascade
    stages = [computing_in(stage, dtype) for stage in cascade.stages]
    reads = any(stage.conditioning == "text" for stage in stages)
    guided = reads and any(map(is_guided, cascade.sampling))
    params = {name: on_device(pipeline.params[name]) for name in (s.name for s in stages)}
    inputs, own = {}, {}
    if reads:
        params[TEXT_ENCODER] = on_device(pipeline.params[TEXT_ENCODER])
        inputs |= token_inputs(frame)
        inputs |= {f"negative_{n}": s for n, s in token_inputs(frame).items()} if guided else {}
    for i, (stage, sampling) in enumerate(zip(stages, cascade.sampling, strict=True)):
        if stage.conditioning == "label":
            inputs |= condition_inputs(stage, frame)
        own[stage.name] = {"noise": frame.images(stage.resolution, stage.channels)}
        own[stage.name] |= run_inputs(stage, sampling, frame, i)
        own[stage.name].pop("low_res", None)
        inputs |= {f"{name}_{stage.name}": shape for name, shape in own[stage.name].items()}

    def function(label=None, **given):
        text, null = texts(cascade, params, frame, given) if reads else (None, None)
        images = None
        for stage, sampling in zip(stages, cascade.sampling, strict=True):
            values = {name: given[f"{name}_{stage.name}"] for name in own[stage.name]}
            times, noise = values["times"], values.pop("noise")
            grid = TimeGrid(padded(times), jnp.int32(0), jnp.int32(times.shape[0] - 1))
            state = begun(stage.schedule.noise_scale * noise, sampling)
            conditions = Conditions(text, null if is_guided(sampling) else None, label, images)
            state = run_steps(stage, params[stage.name], sampling, grid, state, conditions, values)
            images = jnp.clip(state.x, -1.0, 1.0)
        return (images,)

    return part(CASCADE, function, inputs, ("images",))


def texts(
    cascade: Cascade, params: Params, frame: Frame, given: dict[str, Any]
) -> tuple[TextEmbeddings, TextEmbeddings | None]:
    """The embeddings of the prompts, and of what guidance leads away from."""
    encoded = partial(encode, cascade, params[TEXT_ENCODER])
    text = TextEmbeddings(encoded(given["ids"], given["mask"]), given["mask"])
    if "negative_ids" not in given:
        return text, None
    ids, mask = given["negative_ids"], given["negative_mask"]
    some, null = jnp.any(mask, axis=1, keepdims=True), null_text(1, frame.length, frame.width)
    values = jnp.where(some[..., None], encoded(ids, mask), null.values)
    return text, TextEmbeddings(values, jnp.where(some, mask, null.mask))

"""This code's side of the benchmark: train steps, sampling, encoders, features, the command."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.benchmark import input as loading
from imagen_jax.benchmark.child import Work, serve
from imagen_jax.benchmark.trace import top
from imagen_jax.cascade.cascade import sample_keys
from imagen_jax.cascade.sample import sample_stage
from imagen_jax.cascade.stage import KINDS, Conditions, Stage, apply_network, init_params
from imagen_jax.convert.diffusers_unet import config_from_diffusers
from imagen_jax.convert.inception import inception_shapes
from imagen_jax.devices import accelerators, chips
from imagen_jax.devices.compilation_cache import use_compilation_cache
from imagen_jax.devices.compile_options import compiler_options
from imagen_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh
from imagen_jax.diffusion.losses import Loss
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteBeta
from imagen_jax.evaluation.features import FeatureNetwork, make_extractor
from imagen_jax.models import t5
from imagen_jax.pipeline.loading import load_model
from imagen_jax.storage.codec import from_dict, to_dict
from imagen_jax.text.encoder import encode_tokens, null_text
from imagen_jax.training import build, flops
from imagen_jax.training.config import load_config
from imagen_jax.training.loop import in_background, init_sharded, lower_init, trace_step
from imagen_jax.training.optimizer import OptimizerConfig
from imagen_jax.training.run_config import DataConfig, RunConfig, TextConfig
from imagen_jax.training.state import Frozen
from imagen_jax.typing import Params, TextEmbeddings

PHASES = {  # of jax.monitoring
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
}


class Watch:
    """The seconds that JAX traces, lowers and compiles, each counted once where one is in another:
    the stretch belongs to the later phase.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.stretches = clock, {name: [] for name in PHASES.values()}

    def heard(self, event: str, seconds: float, **_: Any) -> None:
        if event in PHASES:
            end = self.clock()
            self.stretches[PHASES[event]].append((end - seconds, end))

    def phases(self) -> dict[str, float]:
        spent, seen, before = {}, [], 0.0
        for name, stretches in self.stretches.items():
            seen += stretches
            together = _length(seen)
            spent[name], before = together - before, together
        return {name: spent[name] for name in ("trace", "lower", "compile")}


def _length(stretches: list[tuple[float, float]]) -> float:
    """The length of what intervals cover together."""
    covered, reached = 0.0, -np.inf
    for start, end in sorted(stretches):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return float(covered)


def about() -> dict[str, Any]:
    """What every side tells: versions and devices; FLOP/s that one device can do at best."""
    devices = jax.devices()
    chip = chips.find_chip(devices[0].device_kind)
    return {
        "library": "imagen_jax",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "device": accelerators.describe(devices),
        "platform": jax.default_backend(),
        "count": len(devices),
        "peak_flops": chip and chip.flops,
    }


def sizes(batch: int, params: Any, dtype: str) -> dict[str, Any]:
    """What a side tells of its work beforehand."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"batch": batch, "parameters": parameters or None, "dtype": dtype}


def measured(flops_per_image: float | None = None, compiled: Any = None) -> dict[str, Any]:
    """What is known at the end: FLOPs of an image, recomputation left out (counted then because
    that traces the network); peak bytes of the first device where it counts them, and what the
    compiler planned.
    """
    stats = jax.devices()[0].memory_stats() or {}
    found = {"flops_per_image": flops_per_image} if flops_per_image else {}
    if "peak_bytes_in_use" in stats:
        found["device_bytes"] = stats["peak_bytes_in_use"]
    if compiled is not None and (plan := compiled.memory_analysis()) is not None:
        found["temporary_bytes"] = plan.temp_size_in_bytes
        found["argument_bytes"] = plan.argument_size_in_bytes
    return found


def profile(call: Callable[[], Any], folder: str) -> dict[str, Any]:
    """Where the time of two calls went; their trace stays in the folder."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # the devices' work alone
    with jax.profiler.trace(folder, profiler_options=options):
        jax.block_until_ready([call() for _ in range(2)])
    return top(folder)


# --------------------------------------------------------------------------------------- networks


def dtype_of(spec: dict[str, Any]) -> str:
    return spec.get("dtype") or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def make_stage(spec: dict[str, Any]) -> Stage:
    """The stage of a case: a config's, a U-Net of diffusers, or a network of ours."""
    dtype, given = dtype_of(spec), {"text_width": spec["text"][1]}
    if "config" in spec:
        section = to_dict(load_config(spec["config"]).stage)
        section["network"]["dtype"] = dtype
        for level in section["network"]["levels"]:
            level.update(spec.get("levels", {}))
        return from_dict(Stage, section | given | spec.get("stage", {}), "stage", KINDS)
    given |= {"name": "base", "resolution": spec["resolution"]}
    if "network" in spec:
        network = {"dtype": dtype} | spec["network"]
        return from_dict(Stage, given | {"network": network}, "stage", KINDS)
    network = config_from_diffusers(spec["diffusers"], dtype=dtype)
    return Stage(**given, network=network, schedule=DiscreteBeta(), loss=Loss("eps"))


def forward_flops(stage: Stage, length: int) -> float:
    """FLOPs of the network for one image, counted in the plain form, that of float32."""
    plain = dataclasses.replace(stage, network=dataclasses.replace(stage.network, dtype="float32"))
    side, shape = stage.training_side, jax.ShapeDtypeStruct
    image = shape((1, side, side, stage.channels), jnp.float32)
    text = TextEmbeddings(
        shape((1, length, stage.text_width), jnp.float32), shape((1, length), bool)
    )
    given = {"text": text}
    if stage.low_resolution is not None:
        given |= {"low_res": image, "aug_level": shape((1,), jnp.float32)}
    params = jax.eval_shape(partial(init_params, plain), jax.random.key(0))
    call = lambda params, image, t, given: apply_network(plain, params, image, t, **given)  # noqa: E731
    return flops.total(call, params, image, shape((1,), jnp.float32), given)


def make_text(batch: int, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(batch, length, width)).astype(np.float32)
    return values, np.ones((batch, length), bool)


def random_params(init: Callable[[jax.Array], Params], dtype: Any) -> Params:
    """Parameters as training makes them, on one device."""

    def cast(key: jax.Array) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), init(key))

    return init_sharded(cast, jax.random.key(0), make_mesh(MeshConfig(), jax.devices()[:1]))


def train(spec: dict[str, Any]) -> Work:
    """The train step of imagen-jax train on images and embedded texts in memory."""
    stage, devices = make_stage(spec), jax.devices()[: spec.get("devices", 1)]
    grows = len(devices) if jax.default_backend() != "cpu" else 1  # a CPU's devices share its cores
    batch_size, (length, width) = spec["batch"] * grows, spec["text"]
    config = RunConfig(
        stage,
        DataConfig("memory"),
        batch_size,
        num_steps=1,
        text=TextConfig(t5.T5Config()),  # not run: the texts are embedded
        optimizer=OptimizerConfig(spec.get("optimizer", "adamw"), warmup_steps=0),
    )
    values, mask = make_text(batch_size, length, width)
    shape = (batch_size, stage.training_side, stage.training_side, stage.channels)
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    mesh, key = make_mesh(config.mesh, devices), jax.random.key(0)
    train_step, init, _ = build.make_training(config, None, mesh)
    batch = {"image": images, "text": values.astype(jnp.dtype(stage.network.dtype)), "mask": mask}
    batch = jax.device_put(batch, batch_sharding(mesh))
    made, shapes = in_background(lower_init(init, key, mesh)), jax.eval_shape(init, key)
    step = trace_step(train_step, shapes, batch, mesh).lower().compile(compiler_options())
    state = jax.block_until_ready(made())

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch, key, Frozen())
        return metrics

    figures = lambda: measured(3 * forward_flops(stage, length), step)  # noqa: E731
    facts = sizes(batch_size, state.params, stage.network.dtype) | {"devices": len(devices)}
    return Work(call, batch_size, facts, jax.block_until_ready, figures=figures)


def sample(spec: dict[str, Any]) -> Work:
    """One stage's images by DDPM, as a cascade samples them."""
    stage, n, (length, width) = make_stage(spec), spec["batch"], spec["text"]
    settings = Sampling(
        steps=spec["steps"],
        guidance=spec["guidance"],
        percentile=spec["percentile"],
        cap=spec["cap"],
    )
    dtype = jnp.dtype(stage.network.dtype)

    params = random_params(partial(init_params, stage), dtype)
    values, mask = make_text(n, length, width)
    conditions = Conditions(TextEmbeddings(values, mask), null_text(1, length, width))
    keys = sample_keys(0, np.arange(n))
    call = partial(sample_stage, stage, params, keys, conditions, settings)
    figures = lambda: measured(2 * spec["steps"] * forward_flops(stage, length))  # noqa: E731
    facts = sizes(n, params, dtype.name) | {"steps": spec["steps"]}
    jax.block_until_ready(call())
    return Work(call, n, facts, jax.block_until_ready, started=True, figures=figures)


def encode(spec: dict[str, Any]) -> Work:
    """A T5 encoder on prompts of full length."""
    dtype = dtype_of(spec)
    config = t5.T5Config(**spec["encoder"], dtype=dtype)
    shape = (spec["batch"], spec["length"])
    ids = np.random.default_rng(0).integers(1, config.vocab_size, shape, np.int32)
    params, mask = random_params(partial(t5.init, config), dtype), np.ones(shape, bool)
    call = partial(encode_tokens, config, params, ids, mask, "encoded")

    def figures() -> dict[str, Any]:
        one = params, ids[:1], mask[:1]
        return measured(flops.total(partial(t5.encode, config), *one))

    facts = sizes(shape[0], params, dtype)
    jax.block_until_ready(call())
    return Work(call, shape[0], facts, jax.block_until_ready, started=True, figures=figures)


def features(spec: dict[str, Any]) -> Work:
    """Inception's features of uint8 images, TensorFlow's resize included. Random weights take as
    long.
    """
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32)  # noqa: E731
    network = FeatureNetwork("inception", None, jax.tree.map(draw, inception_shapes()))
    extractor = make_extractor(network, batch_size=spec["batch"])
    images = rng.integers(0, 256, (spec["batch"], spec["pixels"], spec["pixels"], 3), np.uint8)
    facts = sizes(spec["batch"], network.params, "float32")
    call = partial(extractor.images, images)
    call()
    return Work(call, spec["batch"], facts, started=True, figures=measured)


# -------------------------------------------------------------------------------------- the command

PROMPTS = ["red heart, 3d style", "flag: France, twemoji style", "student, outline style"]


def generate(spec: dict[str, Any]) -> Work:
    """imagen-jax generate with the shipped model, each call a process of its own: the first has an
    empty cache.
    """
    folder = tempfile.TemporaryDirectory()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(spec["images"])]
    options = ["--num_images", "1", "--seed", "0", "--out", folder.name, "--overwrite"]
    command = [sys.executable, "-m", "imagen_jax.commands.main", "generate", *prompts, *options]
    environment = os.environ | {"XDG_CACHE_HOME": f"{folder.name}/cache"}
    quiet = {"stdout": subprocess.DEVNULL, "env": environment, "check": True}
    call = partial(subprocess.run, command + spec.get("options", []), **quiet)

    def figures() -> dict[str, Any]:
        """The networks alone: a second call in one process."""
        call = partial(load_model("icons").generate_images, prompts, num_images=1, seed=0)
        call()
        began = time.perf_counter()
        call()
        folder.cleanup()
        return {"networks_seconds": time.perf_counter() - began}

    facts = sizes(len(prompts), None, "float32")
    return Work(call, len(prompts), facts, whole=True, figures=figures)


BUILD = {
    "train": train,
    "sample": sample,
    "encode": encode,
    "features": features,
    "generate": generate,
    "tar": loading.tar,
    "memory": loading.memory,
    "about": lambda spec: Work(list, 0, {}),
}


def main() -> None:
    watch = Watch(time.perf_counter)
    jax.monitoring.register_event_duration_secs_listener(watch.heard)

    def build_work(spec: dict[str, Any]) -> Work:
        use_compilation_cache()
        work = BUILD[spec["kind"]](spec)
        work.facts = about() | work.facts
        work.phases = watch.phases
        if not work.whole:
            work.profile = partial(profile, work.call)
        return work

    serve(build_work)


if __name__ == "__main__":
    main()

"""What does not change from step to step is computed before the loop, and the numbers stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cascade.hoisting import hoisted
from imagen_jax.cascade.stage import Conditions, Stage, init_params, make_stage_denoiser
from imagen_jax.diffusion.sampling import Sampling, traced
from imagen_jax.models import (
    EfficientLevel,
    EfficientUNetConfig,
    UNetConfig,
    UNetLevel,
)
from imagen_jax.typing import TextEmbeddings

LENGTH, WIDTH, BATCH = 13, 24, 2
NETWORKS = {
    "efficient": EfficientUNetConfig(
        (EfficientLevel(8, 1, 2, attention="self"),), stem_channels=8, num_heads=2, draft=True
    ),
    "unet": UNetConfig(
        (UNetLevel(8, 1), UNetLevel(16, 1, "self")), "cross", pooling_heads=2, head_channels=8
    ),
}


def equations(jaxpr):
    """Those of a program and of all in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for part in jax.tree.leaves(eqn.params, is_leaf=lambda part: hasattr(part, "eqns")):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from equations(part)


def text_products(jaxpr) -> int:
    """How many products are of all tokens' embeddings."""
    shapes = [e.invars[0].aval.shape for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    return sum(shape[-2:] == (LENGTH, WIDTH) for shape in shapes)


@pytest.fixture(params=list(NETWORKS))
def case(request, rng):
    stage = Stage("base", 8, NETWORKS[request.param], text_width=WIDTH)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_params(stage, jax.random.key(0))),
    )

    def text():
        values = rng.standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
        return TextEmbeddings(values, np.arange(LENGTH) < rng.integers(1, LENGTH, (BATCH, 1)))

    x = rng.standard_normal((BATCH, 8, 8, 3)).astype(np.float32)
    return stage, params, Conditions(text(), text()), x


def run(stage, params, conditions, x, sampling, once):
    """Three evaluations in a loop, as samplers make them."""
    denoise = make_stage_denoiser(stage, params, conditions, sampling, x.shape if once else None)
    times = jnp.linspace(1.0, 0.2, 3)
    return jax.lax.fori_loop(0, 3, lambda i, x: 0.5 * (x + denoise(x, times[i]).x0), x)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_numbers_are_the_same(case, guidance):
    sampling = traced(Sampling(guidance=guidance))
    plain, once = (
        np.asarray(jax.jit(run, static_argnums=(0, 5))(*case, sampling, once))
        for once in (False, True)
    )
    assert np.linalg.norm(once - plain) <= 1e-6 * np.linalg.norm(plain)


def test_no_step_computes_what_the_text_alone_decides(case):
    """A transformer's tokens of text change from layer to layer: of it, their embedding alone."""
    counts = {}
    for once in (False, True):
        program = jax.make_jaxpr(run, static_argnums=(0, 5))(*case, traced(Sampling()), once)
        (loop,) = (e for e in program.eqns if e.primitive.name in ("scan", "while"))
        body = loop.params["jaxpr" if loop.primitive.name == "scan" else "body_jaxpr"].jaxpr
        counts[once] = text_products(body), text_products(program.jaxpr)
    assert counts[False][0] > 0
    assert counts[True] == (0, counts[False][1])


def test_guidance_has_a_branch_that_runs_half_the_batch(case):
    """Where every weight is 1, nothing of the unconditional half is computed."""

    def denoise(stage, params, conditions, x, sampling):
        return make_stage_denoiser(stage, params, conditions, sampling, x.shape)(x, 0.5).x0

    sampling = traced(Sampling(guidance=3.0))
    program = jax.make_jaxpr(denoise, static_argnums=0)(*case, sampling)
    (branch,) = (e for e in program.eqns if e.primitive.name == "cond")
    batches = [
        {
            e.outvars[0].aval.shape[0]
            for e in equations(part.jaxpr)
            if e.primitive.name in ("conv_general_dilated", "dot_general")
        }
        for part in branch.params["branches"]
    ]
    assert batches == [{BATCH}, {2 * BATCH}]


def test_what_only_repeats_a_value_is_not_kept(rng):
    text, bias = (rng.standard_normal(4).astype(np.float32) for _ in range(2))

    def program(text, x):
        def function(x, unused):
            keys = jnp.exp(text)
            return {"a": x * jnp.broadcast_to(keys, x.shape) + bias, "b": keys, "c": 1.0}

        once = hoisted(function, (x, x), text)
        return jax.lax.map(lambda row: once(row, row), jnp.stack([x, x]))

    x = rng.standard_normal((6, 4)).astype(np.float32)
    (loop,) = (e for e in jax.make_jaxpr(program)(text, x).eqns if e.primitive.name == "scan")
    inside = {e.primitive.name for e in equations(loop.params["jaxpr"].jaxpr)}
    assert "exp" not in inside
    assert "broadcast_in_dim" in inside
    for found in jax.tree.map(lambda rows: rows[1], jax.jit(program)(text, x)).items():
        wanted = {"a": x * np.exp(text) + bias, "b": np.exp(text), "c": 1.0}
        np.testing.assert_allclose(found[1], wanted[found[0]], rtol=1e-5)


def test_effects_and_operations_with_their_own_derivatives_stay(rng):
    text, said = rng.standard_normal(4).astype(np.float32), []

    def program(text, key, x, once):
        def function(x):
            jax.debug.callback(lambda value: said.append(float(value)), x.sum())
            keys = jax.nn.relu(text + jax.random.normal(key, text.shape))
            return x * jax.lax.cond(text.sum() > 0, lambda: keys, lambda: 2 * keys)

        called = hoisted(function, (x,), text) if once else function
        return jax.lax.map(called, jnp.stack([x, 2 * x]))

    inputs = text, jax.random.key(0), np.arange(4, dtype=np.float32)
    found, wanted = (jax.jit(program, static_argnums=3)(*inputs, once) for once in (True, False))
    np.testing.assert_array_equal(found, wanted)
    jax.effects_barrier()
    assert sorted(said) == [6.0, 6.0, 12.0, 12.0]

"""What XLA:CPU shall write to memory before it is read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.devices.compile_options import compiler_options
from imagen_jax.devices.cpu_fusion import computed_once

X, Y = jax.random.normal(jax.random.key(0), (2, 64, 64))
on_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA:CPU's fusions")


def plain(x):
    return x


def readers(keep, x):
    summed = keep(x + Y)
    return jnp.sin(summed).T, summed * 3


def loss(keep, x):
    return sum(jnp.sum(part**3) for part in readers(keep, x))


def compiled(function, *arguments):
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile(compiler_options("cpu")).as_text()


def test_it_changes_no_value_and_no_derivative():
    def forward(keep, x):
        return jax.jvp(lambda x: readers(keep, x), (x,), (Y,))

    def batched(keep, x):
        return jax.vmap(lambda x: loss(keep, x))(jnp.stack([x, Y]))

    def again(keep, x):
        return jax.grad(jax.checkpoint(lambda x: loss(keep, x)))(x)

    for compute in (readers, forward, batched, again):
        leaves = (jax.tree.leaves(compute(keep, X)) for keep in (computed_once, plain))
        for a, b in zip(*leaves, strict=True):
            assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


@on_cpus
def test_on_a_cpu_a_sum_is_made_once_for_all_that_read_it():
    def sums(keep):
        return len(re.findall(r" add\(", compiled(lambda x: readers(keep, x), X)))

    assert sums(computed_once) == 1
    assert sums(plain) == 2, "XLA:CPU now does this itself: drop computed_once"


@on_cpus
def test_on_a_cpu_no_convolution_is_made_by_the_sum_of_its_result():
    """The gradient of a convolution after an enlargement."""
    x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    def gradient(keep, x, kernel):
        def loss(x):
            b, h, w, c = x.shape
            wide = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
            wide = keep(wide.reshape(b, 2 * h, 2 * w, c))
            layout = ("NHWC", "HWIO", "NHWC")
            out = jax.lax.conv_general_dilated(wide, kernel, (1, 1), "SAME", None, None, layout)
            return jnp.sum(out**3)

        return jax.grad(loss)(x)

    def fused(keep):
        text = compiled(lambda x, kernel: gradient(keep, x, kernel), x, kernel)
        return " convolution(" in text[: text.index("ENTRY")]

    assert not fused(computed_once)
    assert fused(plain), "XLA:CPU now does this itself: drop computed_once"


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_elsewhere_programs_are_as_without_it(platform):
    def text(keep):
        traced = jax.jit(jax.grad(lambda x: loss(keep, x))).trace(X)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert text(computed_once) == text(plain)

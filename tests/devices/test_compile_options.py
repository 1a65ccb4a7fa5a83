"""Compile options for our programs alone, and convolutions in loops on CPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.devices import compile_options
from imagen_jax.devices.compile_options import compiler_options, program, random_by_kernel
from imagen_jax.devices.cpu_loops import fast_in_loops
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.training.loop import init_sharded

IMAGES, KERNEL = (2, 6, 5, 4), (3, 3, 4, 8)
FAST = "b01f_01io->b01f"  # the only form that XLA:CPU has fast code for


@program(static_argnums=0)
def power(exponent, x):
    return x**exponent


def test_options_that_this_jaxlib_does_not_know_are_left_out(monkeypatch):
    known = compiler_options("cpu")
    assert list(known) == ["xla_cpu_experimental_ynn_fusion_type", "xla_disable_hlo_passes"]
    assert "CONVOLUTION" not in known["xla_cpu_experimental_ynn_fusion_type"]
    monkeypatch.setitem(
        compile_options.OPTIONS, "cpu", known | {"xla_cpu_of_another_version": True}
    )
    assert compiler_options() == known
    assert compiler_options("a platform without any") == {}


def test_a_program_is_compiled_once_with_the_options_and_is_a_part_of_others():
    assert [float(power(3, x)) for x in (2.0, 4.0)] == [8.0, 64.0]
    assert power._cache_size() == 1
    assert float(jax.jit(lambda x: power(2, x) + 1)(3.0)) == 10
    assert float(jax.grad(lambda x: power(2, x))(3.0)) == 6
    compiled = power.lower(2, jax.ShapeDtypeStruct((), np.float32)).compile(compiler_options())
    assert float(compiled(5.0)) == 25


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["", "remat", "jit"])
def test_gradients_in_the_fast_form_are_the_gradients(wrap, stride, groups):
    keys = jax.random.split(jax.random.key(stride + groups), 2)
    x, kernel = (jax.random.normal(*pair) for pair in zip(keys, (IMAGES, KERNEL), strict=True))
    kernel = kernel[:, :, : 4 // groups]

    def loss(both):
        return jnp.sum(jnp.tanh(convolve(*both, stride, groups)) ** 2)

    expected = jax.value_and_grad(loss)((x, kernel))
    found = jax.jit(fast_in_loops(jax.value_and_grad(wrap(loss))))((x, kernel))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_every_convolution_in_a_loop_is_in_the_fast_form():
    x, kernel = jnp.ones((3, *IMAGES)), jnp.ones((3, 3, 4, 4))

    def gradients(kernel, x, fast):
        def loss(kernel, rows):
            return jnp.sum(jnp.tanh(convolve(jnp.tanh(convolve(rows, kernel)), kernel)))

        compute = fast_in_loops(jax.grad(loss)) if fast else jax.grad(loss)

        def body(summed, rows):
            return summed + compute(kernel, rows), None

        return jax.lax.scan(body, jnp.zeros_like(kernel), x)[0]

    def forms(fast):
        compiled = jax.jit(gradients, static_argnums=2).lower(kernel, x, fast).compile()
        return re.findall(r"convolution\(.*dim_labels=([\w>-]+)", compiled.as_text())

    assert len(forms(True)) == 5
    assert set(forms(True)) == {FAST}
    assert set(forms(False)) > {FAST}, "XLA:CPU now does this itself: drop fast_in_loops"


def test_what_the_fast_form_does_not_fit_stays_as_it_is():
    """A sum over devices has a name that is known within its own program alone."""
    x, kernel = jnp.ones(IMAGES), jnp.ones(KERNEL)

    def loss(kernel):
        def summed(x):
            return jax.lax.psum(convolve(x, kernel).sum(), "data")

        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        return jax.shard_map(summed, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P())(x)

    with pytest.warns(UserWarning, match="stay slow"):
        found = jax.jit(fast_in_loops(jax.value_and_grad(loss)))(kernel)
    wanted = jax.jit(jax.value_and_grad(loss))(kernel)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_random_numbers_come_by_a_kernel_on_gpus_and_are_the_same():
    def draw(key):
        return jax.random.normal(key, (3, 5))

    def for_gpus():
        return jax.jit(draw).trace(jax.random.key(0)).lower(lowering_platforms=("cuda",)).as_text()

    plain = jax.jit(draw)(jax.random.key(0))
    with random_by_kernel():
        assert "@cu_threefry2x32" in for_gpus()
        np.testing.assert_array_equal(jax.jit(draw)(jax.random.key(0)), plain)
    assert "@cu_threefry2x32" not in for_gpus()


def test_parameters_are_made_with_that_kernel():
    seen = []

    def init(key):
        seen.append(jax.config.jax_threefry_gpu_kernel_lowering)
        return {"kernel": jax.random.normal(key, (4, 4))}

    init_sharded(init, jax.random.key(0), make_mesh(MeshConfig(), jax.devices()[:1]))
    assert seen[-1]

"""Meshes fit the devices, arrays are split as the rules say, and bad sizes are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax.devices.sharding import (
    MeshConfig,
    batch_sharding,
    check_batch,
    frozen_shardings,
    gather_shards,
    make_mesh,
    mesh_shape,
    partition_spec,
    shard_batch,
    state_shardings,
)


def mesh(data=1, fsdp=1, tensor=1):
    count = data * fsdp * tensor
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[:count])


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(2, 2, 2), (2, 2, 2)),
        (MeshConfig(1, None, 2), (1, 4, 2)),
    ],
)
def test_none_takes_the_devices_left(config, shape):
    assert mesh_shape(config, 8) == shape


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MeshConfig(fsdp=3), "fsdp 3 .* does not divide the 8 devices"),
        (MeshConfig(2, 2, 1), "= 4 devices, but there are 8"),
        (MeshConfig(None, None, 1), "data and fsdp"),
        (MeshConfig(tensor=0), "mesh.tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(config, named):
    with pytest.raises(ValueError, match=named):
        mesh_shape(config, 8)


def test_a_batch_that_does_not_split_is_named():
    check_batch(mesh(2, 2, 2), 12)
    with pytest.raises(ValueError, match=r"batch_size 30 .* nearest that does is 24 or 32"):
        check_batch(mesh(4, 2), 30)
    with pytest.raises(ValueError, match=r"nearest that does is 8"):
        check_batch(mesh(8), 3)


def test_fsdp_splits_the_largest_axis_it_divides():
    assert partition_spec("params/conv/kernel", (3, 3, 64, 128), mesh(fsdp=8)) == P(
        None, None, None, "fsdp"
    )
    assert partition_spec("params/conv/kernel", (3, 3, 128, 12), mesh(fsdp=8)) == P(
        None, None, "fsdp"
    )
    assert partition_spec("params/conv_in/kernel", (3, 3, 3, 6), mesh(fsdp=8)) == P()
    assert partition_spec("params/norm/scale", (128,), mesh(fsdp=8)) == P()


def test_tensor_splits_outputs_then_inputs():
    both = mesh(2, 2, 2)
    assert partition_spec("params/wi_0/kernel", (64, 256), both) == P("fsdp", "tensor")
    assert partition_spec("params/wo/kernel", (256, 64), both) == P("tensor", "fsdp")
    assert partition_spec("params/conv1/kernel", (3, 3, 64, 64), both) == P(
        None, None, "fsdp", "tensor"
    )
    assert partition_spec("params/conv2/kernel", (3, 3, 64, 64), both) == P(
        None, None, "tensor", "fsdp"
    )


def test_moments_are_split_like_their_parameters():
    both = mesh(2, 2, 2)
    for path in ("params/a/kernel", "ema/a/kernel", "opt_state/0/mu/a/kernel"):
        assert partition_spec(path, (64, 32), both) == P("fsdp", "tensor")


def test_a_split_state_takes_its_share_of_memory():
    state = {"kernel": jnp.ones((64, 128)), "step": jnp.int32(0)}
    split = jax.device_put(state, state_shardings(state, mesh(fsdp=8)))
    assert split["kernel"].addressable_shards[0].data.size == 64 * 128 // 8
    assert split["step"].sharding.is_fully_replicated


def test_batches_split_over_data_and_fsdp_alone():
    batch = {"image": np.arange(8 * 2).reshape(8, 2)}
    split = shard_batch(batch, mesh(2, 2, 2))["image"]
    assert {shard.data.shape for shard in split.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(split, batch["image"])


def test_a_strided_convolution_has_the_gradient_of_one_device():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 3, 8)) / 5},
        "down": {"kernel": jax.random.normal(keys[1], (3, 3, 8, 16)) / 5},
    }
    x = jax.random.normal(keys[2], (8, 8, 8, 3))

    def loss(params, x, mesh=None):
        params = params if mesh is None else gather_shards(params, mesh)
        for name, stride in (("conv", 1), ("down", 2)):
            kernel, layout = params[name]["kernel"], ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME", dimension_numbers=layout
            )
        return jnp.mean(x**3)

    expected = jax.jit(jax.grad(loss))(params, x)
    both = mesh(2, 2, 2)
    shardings = state_shardings(params, both)
    assert shardings["down"]["kernel"].spec == P(None, None, "fsdp", "tensor")
    split = jax.jit(
        jax.grad(lambda params, x: loss(params, x, both)),
        in_shardings=(shardings, batch_sharding(both)),
        out_shardings=shardings,
    )(params, x)
    for name, kernel in expected.items():
        got = split[name]["kernel"]
        np.testing.assert_allclose(got, kernel["kernel"], rtol=1e-3, atol=1e-6)


def test_a_gradient_is_split_as_its_parameter_is():
    both = mesh(2, 4)
    keys = jax.random.split(jax.random.key(1))
    params = {"dense": {"kernel": jax.random.normal(keys[0], (64, 256))}}
    x = jax.random.normal(keys[1], (8, 64))

    def loss(params, x):
        return jnp.sin(x @ gather_shards(params, both)["dense"]["kernel"]).sum()

    shardings = state_shardings(params, both)
    found = jax.jit(jax.grad(loss), in_shardings=(shardings, batch_sharding(both)))(params, x)
    kernel = found["dense"]["kernel"]
    assert kernel.sharding.is_equivalent_to(shardings["dense"]["kernel"], kernel.ndim)
    assert "fsdp" in shardings["dense"]["kernel"].spec
    expected = jax.grad(lambda kernel: jnp.sin(x @ kernel).sum())(params["dense"]["kernel"])
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_may_lie_whole_along_fsdp():
    devices, frozen = mesh(1, 4, 2), {"dense": {"kernel": np.zeros((512, 1024), np.float32)}}
    (rules,) = jax.tree.leaves(frozen_shardings(frozen, devices))
    (whole,) = jax.tree.leaves(frozen_shardings(frozen, devices, split=False))
    assert set(rules.spec) - set(whole.spec) == {"fsdp"}
    assert "tensor" in whole.spec

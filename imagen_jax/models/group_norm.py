"""Group normalization with what stands around it: a bias before, modulation and activation after.

The plain form is differentiated by jax. The fused one is the same function with a gradient of its
own, for GPUs, where a U-Net's time is the bytes it moves: the feature map is read once for the
statistics and once for the result, and twice, beside the result's gradient, for the gradient. No
float32 copy of it is kept.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]


class GroupNorm(nn.Module):
    """Group normalization (arXiv 1803.08494) with float32 statistics, optionally modulated by scale
    and shift, then the activation. `fused`: see this file's head.
    """

    groups: int = 32
    epsilon: float = 1e-5
    activation: Activation | None = None
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        scale_shift: Float[Array, "b c2"] | None = None,
        offset: jax.typing.ArrayLike | None = None,
    ) -> Float[Array, "b h w c"]:
        """`offset` [c] is added to x first: the bias of the layer before."""
        channels = x.shape[-1]
        groups = math.gcd(self.groups, channels)
        gain = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        if self.fused:
            layer = Layer(groups, self.epsilon, self.activation)
            return _fused(layer, x, gain, bias, scale_shift, offset)
        if offset is not None:
            x = x + offset.astype(x.dtype)
        out = _plain(x, gain, bias, scale_shift, groups, self.epsilon)
        return out if self.activation is None else self.activation(out)


def _plain(x, gain, bias, scale_shift, groups: int, epsilon: float):
    channels = x.shape[-1]

    # Over space first, over the channels of a group after: a TPU has channels in its lanes, and
    # splitting those of a whole feature map would move all of it.
    def over_group(values):
        means = values.reshape(x.shape[0], groups, -1).mean(-1, keepdims=True)
        spread = jnp.broadcast_to(means, (x.shape[0], groups, channels // groups))
        return spread.reshape(x.shape[0], 1, 1, channels)

    wide = x.astype(jnp.float32)
    mean = over_group(wide.mean((1, 2)))
    variance = over_group(jnp.square(wide - mean).mean((1, 2)))
    # Everything that is constant over space is folded into one multiply-add over the feature
    # map.
    a = jax.lax.rsqrt(variance + epsilon) * gain
    b = bias - mean * a
    if scale_shift is not None:
        scale, shift = jnp.split(scale_shift.astype(jnp.float32)[:, None, None], 2, axis=-1)
        a, b = a * (1 + scale), b * (1 + scale) + shift
    return (x.astype(jnp.float32) * a + b).astype(x.dtype)


class Layer(NamedTuple):
    """What of a fused normalization is no array."""

    groups: int
    epsilon: float
    activation: Activation | None


class Statistics(NamedTuple):
    """Mean and 1 / deviation of x + offset over a group, [b 1 1 c], and the sums of x over space.
    All the same for the channels of a group but the sums.
    """

    mean: Array
    inverse: Array
    sums: Array


# The feature map meets only arrays [b 1 1 c], which little kernels make of its sums. All factors of
# the equations in its own kernels, XLA would not fuse into the sums what they are of.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(layer: Layer, x, gain, bias, scale_shift, offset):
    return _forward(layer, x, gain, bias, scale_shift, offset)[0]


def _forward(layer: Layer, x, *vectors):
    statistics = _statistics(layer, x, vectors[-1])
    a, b = _linear(statistics, *vectors)
    out = x.astype(jnp.float32) * a + b
    if layer.activation is not None:
        out = layer.activation(out)
    return out.astype(x.dtype), (x, *vectors, statistics)


def _statistics(layer: Layer, x, offset) -> Statistics:
    """Sums and sums of squares in one pass. That costs digits where the variance is small beside
    the mean, but fewer than the 16 bits by which float32 is finer than bfloat16.
    """
    wide, space = x.astype(jnp.float32), math.prod(x.shape[1:3])
    size = math.prod(x.shape[1:]) // layer.groups
    sums, squares = _over_space(wide), _over_space(jnp.square(wide))
    total = sums
    if offset is not None:
        squares = squares + offset * (2 * sums + space * offset)
        total = sums + space * offset
    mean, square = (_over_group(part, layer.groups) / size for part in (total, squares))
    variance = jnp.maximum(square - jnp.square(mean), 0)
    return Statistics(mean, jax.lax.rsqrt(variance + layer.epsilon), sums)


def _backward(layer: Layer, saved, d_out):
    """Of the gradient d before the activation, with n the normalized x and c what n is multiplied
    by: the gradient of x is (c d - mean(c d) - n mean(c d n)) / deviation, means over a group.
    """
    x, gain, bias, scale_shift, offset, (mean, inverse, sums) = saved
    space, size = math.prod(x.shape[1:3]), math.prod(x.shape[1:]) // layer.groups
    a, b = _linear(saved[-1], *saved[1:-1])
    factor = _factor(scale_shift)

    def before_activation(x, d_out):
        wide, d = x.astype(jnp.float32), d_out.astype(jnp.float32)
        if layer.activation is not None:
            (d,) = jax.vjp(layer.activation, wide * a + b)[1](d)
        return wide, d

    # Read again each time: kept, the two would be float32 copies of the feature map.
    x, d_out = jax.lax.optimization_barrier((x, d_out))
    wide, d = before_activation(x, d_out)
    d_sum, dx_sum = _over_space(d), _over_space(d * wide)
    centre = mean if offset is None else mean - offset
    dn_sum = inverse * (dx_sum - centre * d_sum)
    mean_d, mean_dn = (
        _over_group(factor * gain * part, layer.groups) / size for part in (d_sum, dn_sum)
    )
    slope = -jnp.square(inverse) * mean_dn
    level = -inverse * mean_d - slope * centre
    x, d_out, slope, level = jax.lax.optimization_barrier((x, d_out, slope, level))
    wide, d = before_activation(x, d_out)
    dx = (a * d + slope * wide + level).astype(x.dtype)

    vectors, d_modulation = [factor * dn_sum, factor * d_sum], None
    if scale_shift is not None:
        d_modulation = jnp.concatenate([dn_sum * gain + d_sum * bias, d_sum], -1)[:, 0, 0]
        d_modulation = d_modulation.astype(scale_shift.dtype)
    if offset is not None:
        vectors.append(a * d_sum + slope * sums + space * level)
    over_batch = jnp.split(jnp.concatenate(vectors, -1).sum((0, 1, 2)), len(vectors))
    return dx, *over_batch[:2], d_modulation, over_batch[2] if offset is not None else None


_fused.defvjp(_forward, _backward)


def _factor(scale_shift):
    if scale_shift is None:
        return jnp.float32(1)
    return 1 + jnp.split(scale_shift.astype(jnp.float32)[:, None, None], 2, axis=-1)[0]


def _linear(statistics: Statistics, gain, bias, scale_shift, offset):
    """(a, b): a x + b is x + offset normalized and modulated."""
    factor = _factor(scale_shift)
    a, b = statistics.inverse * gain * factor, bias * factor
    if scale_shift is not None:
        b = b + jnp.split(scale_shift.astype(jnp.float32)[:, None, None], 2, axis=-1)[1]
    centre = statistics.mean if offset is None else statistics.mean - offset
    return a, b - centre * a


def _over_space(values: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    return values.sum((1, 2), keepdims=True)


def _over_group(values: Float[Array, "b 1 1 c"], groups: int) -> Float[Array, "b 1 1 c"]:
    """The sum over each group, for each of its channels."""
    sums = values.reshape(*values.shape[:3], groups, -1).sum(-1)
    return jnp.repeat(sums, values.shape[-1] // groups, axis=-1)

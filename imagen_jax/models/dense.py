"""Dense layers in the form that the compiler for TPUs makes fast; elsewhere they are as any."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SUBLANES = 8  # of a TPU: the least rows that a product of matrices has there


class Dense(nn.Module):
    """`nn.Dense` with the parameters of its name and its results, and `add_bias` for its bias."""

    features: int
    dtype: str
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (jnp.asarray(part, self.dtype) for part in (x, kernel, bias))
        return add_bias(jnp.dot(x, kernel), bias)


@jax.custom_vjp
def add_bias(
    x: Float[Array, "*batch features"], bias: Float[Array, " features"]
) -> Float[Array, "*batch features"]:
    """x + bias, whose gradient is a product with ones: a TPU adds rows up slowly, and multiplies
    fast.
    """
    return x + bias


def _bias_gradient(_, dy):
    rows = dy.reshape(-1, dy.shape[-1])
    ones = jax.lax.optimization_barrier(jnp.ones((SUBLANES, len(rows)), dy.dtype))
    summed = jnp.dot(ones, rows, precision="highest", preferred_element_type=jnp.float32)
    return dy, summed[0].astype(dy.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _bias_gradient)


@jax.custom_vjp
def gated(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """silu(gate) * up, made once, as its gradients are: a TPU would make them anew for each tile of
    each product that reads them.
    """
    return jax.lax.optimization_barrier(nn.silu(gate) * up)


def _gated_gradient(saved, d_hidden):
    _, pull = jax.vjp(lambda gate, up: nn.silu(gate) * up, *saved)
    return jax.lax.optimization_barrier(pull(d_hidden))


gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _gated_gradient)

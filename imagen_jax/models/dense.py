"""Dense layers in the forms that XLA makes fast, on TPUs and on CPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SUBLANES = 8  # of a TPU: the least rows that a product of matrices has there


class Dense(nn.Module):
    """`nn.Dense` with the parameters of its name and its results, and `add_bias` for its bias.

    as_matrix: all axes of rows as one. XLA:CPU takes several in a slow way: in bfloat16 the
    gradients of a whole train step take eight times as long, in float32 a tenth longer. On TPUs it
    is the other way round, by a few percent.
    """

    features: int
    dtype: str
    as_matrix: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (jnp.asarray(part, self.dtype) for part in (x, kernel, bias))
        rows = x.reshape(-1, x.shape[-1]) if self.as_matrix else x
        return add_bias(jnp.dot(rows, kernel), bias).reshape(*x.shape[:-1], self.features)


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

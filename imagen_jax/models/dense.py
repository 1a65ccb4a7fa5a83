"""Dense layers in the forms that XLA makes fast, on TPUs and on CPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SUBLANES = 8  # of a TPU: the least rows that a product of matrices has there


class Dense(nn.Module):
    """`nn.Dense` with the parameters of its name and its results, and `add_bias` for its bias.

    as_matrix: in the form that XLA:CPU makes fast: float32 with all axes of rows as one, bfloat16
    by `product`. As `nn.Dense` has it, the gradients of a whole train step take a tenth longer in
    float32 and ten times as long in bfloat16. On TPUs it is the other way round, by a few percent.
    """

    features: int
    dtype: str
    as_matrix: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x, kernel = (jnp.asarray(part, self.dtype) for part in (x, kernel))
        if not self.as_matrix:
            out = jnp.dot(x, kernel)
        elif x.dtype == jnp.bfloat16:
            out = product(x, kernel)
        else:
            out = jnp.dot(x.reshape(-1, x.shape[-1]), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out = add_bias(out, jnp.asarray(bias, self.dtype))
        return out.reshape(*x.shape[:-1], self.features)


def product(
    x: Float[Array, "*batch width"], kernel: Float[Array, "width features"]
) -> Float[Array, "*batch features"]:
    """x @ kernel. The kernel's gradient is one product over all axes of rows, x first: XLA:CPU then
    transposes x, and stays in bfloat16. Over one axis it goes to float32; with x second, as jax has
    it, the product is slower than either.
    """
    # The product itself is an ordinary one, which rematerialization can see and keep.
    return _with_kernel_gradient(jnp.dot(x, jax.lax.stop_gradient(kernel)), x, kernel)


@jax.custom_vjp
def _with_kernel_gradient(out, x, kernel):
    return out


def _kernel_gradient(x, dy):
    rows = tuple(range(x.ndim - 1))
    return dy, None, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))


_with_kernel_gradient.defvjp(lambda out, x, kernel: (out, x), _kernel_gradient)


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

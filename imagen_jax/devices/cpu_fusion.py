"""Where XLA:CPU shall not fuse. A sum, such as that of a residual block and of its gradient, it takes
for so cheap that it puts it into everything that reads it, and with it the sums before: all of a
U-Net's residuals are added up anew for each block. And it gives a convolution whose result is
summed to YNNPACK, which takes several times as long.

No operation of jax is a barrier on CPUs alone: `jax.lax.optimization_barrier` holds on all platforms,
and `jax.lax.platform_dependent` leaves conditions in the programs of the others.
"""

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Shaped

_primitive = core.Primitive("computed_once")
_primitive.def_impl(lambda x: x)
_primitive.def_abstract_eval(lambda x: x)
ad.deflinear2(_primitive, lambda cotangent, _: [computed_once(cotangent)])
batching.defvectorized(_primitive)
_barrier = mlir.lower_fun(jax.lax.optimization_barrier, multiple_results=False)
mlir.register_lowering(_primitive, lambda _, x: [x])
mlir.register_lowering(_primitive, _barrier, platform="cpu")


def computed_once(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """x, which XLA:CPU writes to memory, as it does its gradient. On other platforms nothing.

    It needs `compile_options.compiler_options`: by default XLA:CPU drops barriers before it fuses.
    """
    return _primitive.bind(x)

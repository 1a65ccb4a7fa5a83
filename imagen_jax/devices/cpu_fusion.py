"""What XLA:CPU shall not fuse. It takes an addition for so cheap that it repeats it in everything
that reads the sum, and so the additions before it: those of a U-Net's residuals, and of their
gradients, are made anew for block after block. And a convolution whose result is summed, as in the
gradient of an enlargement, it leaves to YNNPACK, which takes several times as long.

jax has no barrier for CPUs alone: `jax.lax.optimization_barrier` holds everywhere, and
`jax.lax.platform_dependent` leaves conditions in the programs of other platforms.
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

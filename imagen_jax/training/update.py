"""One update of what is trained: the optimizer's step, the averages, the gradient's norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.state import TrainState, update_ema, update_power_ema
from imagen_jax.typing import Params

# The kinds that update each number by itself; weights of vectors do not decay.
ELEMENTWISE = ("adam", "adamw", "lion", "sgd")
barrier = jax.lax.optimization_barrier


def apply_gradient(
    config: OptimizerConfig,
    state: TrainState,
    gradient: Params,
    ema_decay: float | None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """(the state after an update by this gradient, the gradient's norm)."""
    # An optimizer that clips takes the norm too, in optax's way: then XLA takes it once for both.
    norm, given = optax.tree.norm, state.params
    joins = on_whole_gpus(mesh) and config.kind in ELEMENTWISE and bool(_vectors(given))
    if on_whole_gpus(mesh):
        gradient = jax.tree.map(_row_major, gradient)
        norm = norm if config.clip_norm is not None else rowwise_norm
    if joins:
        state, gradient = join_vectors((state, gradient), given)
    updates, opt_state = make_optimizer(config).update(gradient, state.opt_state, state.params)
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    ema = None if state.ema is None else update_ema(state.ema, params, step, ema_decay)
    powers = state.power_ema and update_power_ema(state.power_ema, params, step)
    state = TrainState(step, params, ema, opt_state, powers)
    return (split_vectors(state, given) if joins else state), norm(gradient)


def on_whole_gpus(mesh: Mesh | None) -> bool:
    """Whether each device is a GPU that has all of the parameters."""
    if mesh is None or mesh.devices.flat[0].platform != "gpu":
        return False
    return mesh.shape["fsdp"] == mesh.shape["tensor"] == 1


def _row_major(gradient: Array) -> Array:
    """The gradient of a convolution's kernel in the layout of the parameters, by way of a vector,
    which has but one. XLA would update in the layout of cuDNN's gradients, and copy all results.
    """
    if gradient.ndim != 4:
        return gradient
    return barrier(gradient.ravel()).reshape(gradient.shape)


def join_vectors(tree: Any, params: Params) -> Any:
    """The tree, of which each part that is built like the parameters, as Adam's averages are, is
    {"others", "vectors"}: all of its vectors, which have one dtype, end to end. Two thirds of a
    U-Net's arrays are biases and norm scales, whose update takes a GPU no time, but many kernels.
    """
    structure = jax.tree.structure(params)

    def like_params(part: Any) -> bool:
        return jax.tree.structure(part) == structure

    def join(part: Any) -> Any:
        if not like_params(part):
            return part
        others = jax.tree.map(lambda leaf: None if leaf.ndim == 1 else leaf, part)
        return {"others": others, "vectors": barrier(jnp.concatenate(_vectors(part)))}

    return jax.tree.map(join, tree, is_leaf=like_params)


def split_vectors(tree: Any, params: Params) -> Any:
    """The tree that `join_vectors` was given, with the arrays of this one."""
    vectors = _vectors(params)
    ends = np.cumsum([vector.size for vector in vectors])[:-1]
    # XLA writes up to 90 arrays by one kernel if they have one shape and read an array in common,
    # but not for reading parts of one. Behind a barrier it does not know what these are.
    ones = {shape: barrier(jnp.ones(shape)) for shape in {vector.shape for vector in vectors}}

    def joined(part: Any) -> bool:
        return isinstance(part, dict) and part.keys() == {"others", "vectors"}

    def split(part: Any) -> Any:
        if not joined(part):
            return part
        pieces = iter(jnp.split(barrier(part["vectors"]), ends))
        return jax.tree.map(
            lambda like, other: next(pieces) * ones[like.shape] if other is None else other,
            params,
            part["others"],
        )

    return jax.tree.map(split, tree, is_leaf=joined)


def _vectors(tree: Params) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 1]


def rowwise_norm(tree: Any) -> Float[Array, ""]:
    """The L2 norm of all arrays together, by the sums of their rows and one sum of those: as a sum
    for each array it would be two kernels for each on a GPU.
    """
    squares = [jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    rows = [square.sum(-1).ravel() if square.ndim > 1 else square.ravel() for square in squares]
    # XLA would take this sum apart again.
    return jnp.sqrt(barrier(jnp.concatenate(rows)).sum())

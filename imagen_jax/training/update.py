"""One update of what is trained: the optimizer's step, the averages, the gradient's norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagen_jax.training.optimizer import OptimizerConfig, make_optimizer
from imagen_jax.training.state import TrainState, update_ema, update_power_ema
from imagen_jax.typing import Params


def apply_gradient(
    config: OptimizerConfig,
    state: TrainState,
    gradient: Params,
    ema_decay: float | None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """(the state after an update by this gradient, the gradient's norm)."""
    # An optimizer that clips takes the norm too, in optax's way: then XLA takes it once for both.
    norm = optax.tree.norm
    if on_whole_gpus(mesh):
        gradient = jax.tree.map(_row_major, gradient)
        norm = norm if config.clip_norm is not None else rowwise_norm
    updates, opt_state = make_optimizer(config).update(gradient, state.opt_state, state.params)
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    ema = None if state.ema is None else update_ema(state.ema, params, step, ema_decay)
    powers = state.power_ema and update_power_ema(state.power_ema, params, step)
    return TrainState(step, params, ema, opt_state, powers), norm(gradient)


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
    return jax.lax.optimization_barrier(gradient.ravel()).reshape(gradient.shape)


def rowwise_norm(tree: Any) -> Float[Array, ""]:
    """The L2 norm of all arrays together, by the sums of their rows and one sum of those: as a sum
    for each array it would be two kernels for each on a GPU.
    """
    squares = [jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    rows = [square.sum(-1).ravel() if square.ndim > 1 else square.ravel() for square in squares]
    # XLA would take this sum apart again.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(rows)).sum())

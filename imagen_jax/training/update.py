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
    optimizer = make_optimizer(config)
    if not takes_matrices(config, mesh):
        return _update(optimizer, state, gradient, ema_decay), optax.tree.norm(gradient)
    gradient = _matrices(gradient, from_vectors=True)
    new = _update(optimizer, _matrices(state), gradient, ema_decay)
    # The optimizer's own clipping takes the norm too, in optax's way: then once for both.
    clips = config.clip_norm is not None
    norm = optax.tree.norm(gradient) if clips else rowwise_norm(gradient)
    return jax.tree.map(lambda x, old: x.reshape(old.shape), new, state), norm


def takes_matrices(config: OptimizerConfig, mesh: Mesh | None) -> bool:
    """Whether the update sees convolutions' kernels as matrices. XLA would make it in the layout of
    cuDNN's gradients, and copy all that it wrote. The result is the same where no axis is sharded,
    but for Adafactor, which factors by axes.
    """
    if mesh is None or config.kind == "adafactor":
        return False
    whole = mesh.shape["fsdp"] == mesh.shape["tensor"] == 1
    return whole and mesh.devices.flat[0].platform != "tpu"


def _matrices(tree: Any, from_vectors: bool = False) -> Any:
    """Convolutions' kernels as matrices. `from_vectors`: by way of a vector each, which has but one
    layout; matrices alone XLA would transpose again.
    """

    def matrix(x):
        if x.ndim != 4:
            return x
        vector = jax.lax.optimization_barrier(x.ravel()) if from_vectors else x
        return vector.reshape(-1, x.shape[-1])

    return jax.tree.map(matrix, tree)


def rowwise_norm(tree: Any) -> Float[Array, ""]:
    """The L2 norm of all arrays together, by the sums of their rows and one sum of those: as a sum
    for each array it would be two kernels for each on a GPU.
    """
    squares = [jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    rows = [square.sum(-1).ravel() if square.ndim > 1 else square.ravel() for square in squares]
    # XLA would take this sum apart again.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(rows)).sum())


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: Params,
    ema_decay: float | None,
) -> TrainState:
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    ema = None if state.ema is None else update_ema(state.ema, params, step, ema_decay)
    powers = state.power_ema and update_power_ema(state.power_ema, params, step)
    return TrainState(step, params, ema, opt_state, powers)

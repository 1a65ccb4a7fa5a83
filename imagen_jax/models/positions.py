"""Where patches lie on an image: sines and cosines that are added, and the turns of RoPE."""

import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_PERIOD = 10_000.0


def check_heads(width: int, heads: int) -> tuple[bool, str]:
    """For `storage.codec.require`: the channels of a head are a multiple of four."""
    return (
        width % (4 * heads) == 0,
        f"network.width {width} must be a multiple of 4 x {heads} (heads): RoPE splits a head into "
        "pairs for rows and pairs for columns",
    )


def grid_positions(rows: int, columns: int, grid: int | None = None) -> Float[Array, "patches 2"]:
    """(row, column) of each patch, row by row; with `grid` as if the image's area were that of
    `grid` x `grid` patches.
    """
    scale = 1.0 if grid is None else grid / (rows * columns) ** 0.5
    axes = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    return scale * jnp.stack([axis.reshape(-1) for axis in axes], -1).astype(jnp.float32)


def _angles(position: Float[Array, " n"], count: int) -> Float[Array, "n count"]:
    """position x `count` geometric frequencies from 1 down to (not including) 1 / MAX_PERIOD."""
    return position[:, None] * MAX_PERIOD ** (-jnp.arange(count, dtype=jnp.float32) / count)


def position_embedding(positions: Float[Array, "n 2"], width: int) -> Float[Array, "n width"]:
    """Sines and cosines of the column, then of the row (as in MAE, arXiv 2111.06377)."""
    row, column = (_angles(positions[:, axis], width // 4) for axis in (0, 1))
    return jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], -1)


def rotary_angles(positions: Float[Array, "n 2"], head_width: int) -> Float[Array, "n half_head"]:
    """By how much RoPE turns each pair of channels: a half of them by the row, then by the column
    (arXiv 2104.09864, eq. 15, an axis each).
    """
    return jnp.concatenate([_angles(positions[:, axis], head_width // 4) for axis in (0, 1)], -1)


def rotate(
    x: Float[Array, "b n heads head"], angles: Float[Array, "n half_head"]
) -> Float[Array, "b n heads head"]:
    """Turns channels (i, i + head / 2) of each token by its angle i, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)

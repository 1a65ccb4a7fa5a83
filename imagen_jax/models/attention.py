"""Fused attention, in the way of FlashAttention (arXiv 2205.14135), where XLA's own writes every
weight to memory: on TPUs jax's kernel, splash attention, on GPUs cuDNN's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from imagen_jax.devices.sharding import by_heads

LANES = 128  # a TPU's: the kernel takes sequences in multiples of it
BLOCKS = (512, 384, 256, 128)  # tokens at a time, those that a sequence divides into
WHOLE = 2048  # so many keys lie beside the core together: the queries' gradient is not in parts
KEPT = "attention"  # the kernel's results, which remat "products" keeps

# Queries [b heads n head], keys and values [b heads m head], lengths [b] or None: of each row the
# first so many tokens are keys. Queries come scaled.
Attention = Callable[[Array, Array, Array, Array | None], Array]


def fused_attention(mesh: Mesh | None) -> Attention | None:
    """The fused attention of a mesh of TPUs, each device on its own images and heads; None for
    other devices, where `jax.nn.dot_product_attention` serves.
    """
    if mesh is None or mesh.devices.flat[0].platform != "tpu":
        return None
    return functools.partial(by_heads, mesh, splash)


def splash(
    query: Float[Array, "b heads n head"],
    key: Float[Array, "b heads m head"],
    value: Float[Array, "b heads m head"],
    lengths: Int[Array, " b"] | None,
    interpret: bool = False,
) -> Float[Array, "b heads n head"]:
    """Attention of scaled queries on one TPU; `interpret` runs it elsewhere, slowly.

    Heads narrower than the lanes are read with tokens in the lanes, which pads nothing: made by
    `narrow_heads`, they lie so.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (heads, tokens, head), keys = query.shape[1:], key.shape[2]
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % LANES), (0, 0))) for x in (query, key, value)
    )
    if lengths is None:
        lengths = jnp.full(len(query), keys)
    real = (jnp.arange(key.shape[2]) < lengths[:, None]).astype(jnp.int32)
    block, block_kv = (next(n for n in BLOCKS if x.shape[2] % n == 0) for x in (query, key))
    whole = key.shape[2] if key.shape[2] <= WHOLE else block_kv
    layouts = kernels.QKVLayout
    layout = layouts.SEQ_MINOR if head % LANES else layouts.HEAD_DIM_MINOR
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=whole,
        block_kv_compute=block_kv,
        block_q_dkv=block,
        block_kv_dkv=whole,
        block_kv_dkv_compute=block_kv,
        use_fused_bwd_kernel=True,
        **dict.fromkeys(("q_layout", "k_layout", "v_layout"), layout),
    )
    mask = masks.MultiHeadMask([masks.FullMask((query.shape[2], key.shape[2]))] * heads)
    run = kernels.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=KEPT, interpret=interpret
    )
    # A query reads the keys of its own segment: all queries are of that of the real tokens.
    segments = kernels.SegmentIds(jnp.ones(query.shape[::2], jnp.int32), real)
    return jax.vmap(run)(query, key, value, segments)[:, :, :tokens]


def cudnn_takes(head: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN's attention, with its gradient, knows heads of this width in this dtype."""
    return jnp.dtype(dtype).itemsize == 2 and head % 8 == 0 and head <= 128


def cudnn_attention(
    query: Float[Array, "b queries width"],
    key: Float[Array, "b keys width"],
    value: Float[Array, "b keys width"],
    heads: int,
    lengths: Int[Array, " b"] | None,
    implementation: str = "cudnn",
) -> Float[Array, "b queries width"]:
    """Attention by several heads on NVIDIA's GPUs, in bfloat16 or float16, to the first `lengths`
    keys of each row, or to all. `implementation` "xla" runs it elsewhere.
    """
    keys = key.shape[1]
    if keys % 2:  # cuDNN's gradient wants an even number
        key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0))) for x in (key, value))
        lengths = jnp.full(len(key), keys, jnp.int32) if lengths is None else lengths
    parts = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        *parts, key_value_seq_lengths=lengths, implementation=implementation
    )
    return out.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_and_turn(
    x: Float[Array, "b heads n head"],
    scale: Float[Array, " head"],
    angles: Float[Array, "n half_head"],
    epsilon: float,
) -> Float[Array, "b heads n head"]:
    """RMSNorm over a head, then RoPE on its channels (i, i + head / 2), in float32 between x and
    the result, which have one dtype. The angles are constants.

    The other channel of a pair comes by a product with a signed permutation, exact in any dtype: a
    TPU moves channels slowly.
    """
    return _norm_and_turn(x, scale, angles, epsilon)[0]


def _norm_and_turn(x, scale, angles, epsilon):
    """The result, and what its gradient reads: no more than is in memory anyway."""
    half = x.shape[-1] // 2
    cos, sin = (jnp.tile(f(angles), 2) for f in (jnp.cos, jnp.sin))
    other = (x @ _swap(half, x.dtype)).astype(jnp.float32)
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    turned = wide * (scale * cos) + other * (jnp.roll(scale, half) * sin)
    out = (inverse * turned).astype(x.dtype)
    return out, (x, out, inverse, scale, angles)


def _norm_and_turn_gradient(epsilon, saved, d_out):
    """Back by the angles, then an RMSNorm's gradient; what that sums, the rotation preserves."""
    x, out, inverse, scale, angles = saved
    half, g = x.shape[-1] // 2, d_out.astype(jnp.float32)
    cos, sin = (jnp.tile(f(angles), 2) for f in (jnp.cos, jnp.sin))
    other = (d_out @ _swap(half, x.dtype).T).astype(jnp.float32)  # sin is the same for a pair
    back = g * cos + other * sin
    normed = x.astype(jnp.float32) * inverse
    along = jnp.mean(g * out.astype(jnp.float32), axis=-1, keepdims=True)
    dx = (inverse * (back * scale - normed * along)).astype(x.dtype)
    return dx, (back * normed).sum((0, 1, 2)), jnp.zeros_like(angles)


norm_and_turn.defvjp(_norm_and_turn, _norm_and_turn_gradient)


def _swap(half: int, dtype) -> Float[Array, "head head"]:
    """x @ this: -x[i + half] at i, x[i] at i + half."""
    swap, pairs = np.zeros((2 * half, 2 * half), np.float32), np.arange(half)
    swap[pairs + half, pairs], swap[pairs, pairs + half] = -1, 1
    return jnp.asarray(swap, dtype)


def narrow_heads(x: Float[Array, "b n width"], heads: int) -> Float[Array, "b heads n head"]:
    """Channels to heads, by way of [b width n], whose channels are split without moving them."""
    by_tokens = jnp.swapaxes(x, 1, 2).reshape(len(x), heads, -1, x.shape[1])
    return jnp.swapaxes(by_tokens, 2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def split_heads(x: Float[Array, "b n width"], heads: int) -> Float[Array, "b heads n head"]:
    """Channels to heads. By slices, as a TPU that reshapes and transposes moves all twice."""
    return jnp.stack(jnp.split(x, heads, axis=-1), axis=1)


split_heads.defvjp(
    lambda x, heads: (split_heads(x, heads), None), lambda heads, _, dy: (merge_heads(dy),)
)


@jax.custom_vjp
def merge_heads(x: Float[Array, "b heads n head"]) -> Float[Array, "b n width"]:
    """The inverse of `split_heads`. Made once: XLA would rather take the products of its parts."""
    merged = jnp.concatenate([x[:, head] for head in range(x.shape[1])], axis=-1)
    return jax.lax.optimization_barrier(merged)


merge_heads.defvjp(
    lambda x: (merge_heads(x), x.shape[1]), lambda heads, dy: (split_heads(dy, heads),)
)

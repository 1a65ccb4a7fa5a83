"""Inception-v3 (arXiv 1512.00567) as TensorFlow's graph of 2015-12-05 has it: the network of FID.

It differs from the paper's: 1008 classes, average pools that do not count padding, and a max pool
in the last block. Batch normalization is folded into the convolutions (`convert.inception`). Blocks
and branches have the names that torchvision and pytorch-fid use.

Two rewritings save time and change nothing but rounding: the 1x1 convolutions that read the same
input are one matrix product, and a 1x1 convolution comes before the average pool of its branch, not
after it, since both are linear.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.typing import Images, Keys, Params

SIDE = 299
POOLED, CLASSES = 2048, 1008
# Of the batch normalizations that are folded.
NORM_EPS = 1e-3

FeatureMap = Float[Array, "batch _ _ _"]


class InceptionOutputs(NamedTuple):
    """`pooled` is what FID and KID take ("pool_3"); `logits` are those before the softmax."""

    pooled: Float[Array, "batch 2048"]
    logits: Float[Array, "batch 1008"]


class Weights(nn.Module):
    """The kernel and bias of one convolution."""

    shape: tuple[int, int, int, int]  # height, width, in, out

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.he_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), self.shape[-1:])


class Conv(NamedTuple):
    """A convolution with its ReLU; the module that calls it has its weights, by this name."""

    name: str
    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def convolve(x: FeatureMap, conv: Conv) -> FeatureMap:
    """A convolution of any window."""
    kernel, bias = Weights((*conv.window, x.shape[-1], conv.features), name=conv.name)()
    layout = ("NHWC", "HWIO", "NHWC")
    # At stride 1 XLA:CPU takes two to three times as long without padding as with it.
    crop = conv.padding == "VALID" and conv.stride == 1
    padding = "SAME" if crop else conv.padding
    strides = (conv.stride, conv.stride)
    x = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
    if crop:
        top, left = conv.window[0] // 2, conv.window[1] // 2
        x = x[:, top : x.shape[1] - top, left : x.shape[2] - left]
    return nn.relu(x + bias)


def pointwise(x: FeatureMap, convs: Sequence[Conv]) -> list[FeatureMap]:
    """1x1 convolutions of the same input, as one matrix product."""
    weights = [Weights((1, 1, x.shape[-1], conv.features), name=conv.name)() for conv in convs]
    kernel = jnp.concatenate([kernel[0, 0] for kernel, _ in weights], axis=-1)
    bias = jnp.concatenate([bias for _, bias in weights])
    ends = np.cumsum([conv.features for conv in convs])
    return jnp.split(nn.relu(x @ kernel + bias), ends[:-1], axis=-1)


def max_pool(x: FeatureMap, stride: int = 2, padding: str = "VALID") -> FeatureMap:
    """The largest of each 3x3 values."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def average_branch(x: FeatureMap, features: int) -> FeatureMap:
    """ReLU of a 1x1 convolution of the average pool, which counts no padding."""
    kernel, bias = Weights((1, 1, x.shape[-1], features), name="branch_pool")()
    pooled = nn.avg_pool(x @ kernel[0, 0], (3, 3), (1, 1), "SAME", count_include_pad=False)
    return nn.relu(pooled + bias)


def max_branch(x: FeatureMap, features: int) -> FeatureMap:
    """ReLU of a 1x1 convolution of the max pool: the last block's, by a slip of the graph."""
    return pointwise(max_pool(x, 1, "SAME"), [Conv("branch_pool", features)])[0]


# The branches of each kind of block. A branch is a chain of convolutions; those in parentheses of
# their own lie side by side.
Branches = tuple[tuple[Conv | tuple[Conv, ...], ...], ...]
MIXED_35 = (
    (Conv("branch1x1", 64),),
    (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
    (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3)),
    ),
)
REDUCE_35 = (
    (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    ),
)


def mixed_17(width: int) -> Branches:
    """7x7 convolutions as pairs of 1x7 and 7x1."""
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
    )


REDUCE_17 = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
)
MIXED_8 = (
    (Conv("branch1x1", 320),),
    (
        Conv("branch3x3_1", 384),
        (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
    ),
    (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, (3, 3)),
        (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
    ),
)


class Block(nn.Module):
    """Branches of convolutions, and a pooled one, side by side."""

    branches: Branches
    pool: Callable[[FeatureMap], FeatureMap] = max_pool

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        starts = [start for start, *_ in self.branches if start.window == (1, 1)]
        started = dict(zip(starts, pointwise(x, starts), strict=True))
        outputs = []
        for start, *rest in self.branches:
            h = started[start] if start in started else convolve(x, start)
            for step in rest:
                convs = (step,) if isinstance(step, Conv) else step
                h = jnp.concatenate([convolve(h, conv) for conv in convs], axis=-1)
            outputs.append(h)
        return jnp.concatenate([*outputs, self.pool(x)], axis=-1)


class Inception(nn.Module):
    """Images of 299x299 in [-1, 1] to features and logits."""

    @nn.compact
    def __call__(self, x: Images) -> InceptionOutputs:
        x = convolve(x, Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"))
        x = convolve(x, Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"))
        x = max_pool(convolve(x, Conv("Conv2d_2b_3x3", 64, (3, 3))))
        (x,) = pointwise(x, [Conv("Conv2d_3b_1x1", 80)])
        x = max_pool(convolve(x, Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID")))
        for letter, width in (("b", 32), ("c", 64), ("d", 64)):
            pool = partial(average_branch, features=width)
            x = Block(MIXED_35, pool, name=f"Mixed_5{letter}")(x)
        x = Block(REDUCE_35, name="Mixed_6a")(x)
        average = partial(average_branch, features=192)
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = Block(mixed_17(width), average, name=f"Mixed_6{letter}")(x)
        x = Block(REDUCE_17, name="Mixed_7a")(x)
        x = Block(MIXED_8, average, name="Mixed_7b")(x)
        x = Block(MIXED_8, partial(max_branch, features=192), name="Mixed_7c")(x)
        pooled = x.mean(axis=(1, 2))
        return InceptionOutputs(pooled, nn.Dense(CLASSES, name="fc")(pooled))


def init(key: Keys) -> Params:
    """Fresh float32 parameters."""
    return Inception().init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"]


def apply(params: Params, images: Images) -> InceptionOutputs:
    """Features and logits of images [batch, 299, 299, 3] in [-1, 1]."""
    return Inception().apply({"params": params}, images)

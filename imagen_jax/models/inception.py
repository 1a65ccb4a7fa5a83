"""Inception-v3 (arXiv 1512.00567) as TensorFlow's graph of 2015-12-05 has it: the network of FID.

It differs from the paper's: 1008 classes, average pools that do not count padding, and a max pool
in the last block. Batch normalization is folded into the convolutions (`convert.inception`). Blocks
and branches have the names that torchvision and pytorch-fid use.

Two rewritings save time and change nothing but rounding: the 1x1 convolutions that read the same
input are one matrix product, and a 1x1 convolution comes before the average pool of its branch, not
after it, since both are linear.
"""

from collections.abc import Callable
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


def convolve(
    x: FeatureMap,
    name: str,
    features: int,
    window: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: str = "SAME",
) -> FeatureMap:
    """ReLU of a convolution, whose weights belong to the module that calls this."""
    kernel, bias = Weights((*window, x.shape[-1], features), name=name)()
    layout = ("NHWC", "HWIO", "NHWC")
    # At stride 1 XLA:CPU takes two to three times as long without padding as with it.
    crop = padding == "VALID" and stride == 1
    padding = "SAME" if crop else padding
    x = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)
    if crop:
        top, left = window[0] // 2, window[1] // 2
        x = x[:, top : x.shape[1] - top, left : x.shape[2] - left]
    return nn.relu(x + bias)


def pointwise(x: FeatureMap, **features: int) -> list[FeatureMap]:
    """ReLU of 1x1 convolutions of the same input, {name: features}, as one matrix product."""
    weights = [Weights((1, 1, x.shape[-1], width), name=name)() for name, width in features.items()]
    kernel = jnp.concatenate([kernel[0, 0] for kernel, _ in weights], axis=-1)
    bias = jnp.concatenate([bias for _, bias in weights])
    return jnp.split(nn.relu(x @ kernel + bias), np.cumsum([*features.values()])[:-1], axis=-1)


def max_pool(x: FeatureMap, stride: int = 2, padding: str = "VALID") -> FeatureMap:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def average_pool(x: FeatureMap) -> FeatureMap:
    """Means over 3x3 pixels at stride 1, of those inside the image alone."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def average_branch(x: FeatureMap, features: int) -> FeatureMap:
    """ReLU of a 1x1 convolution of the average pool."""
    kernel, bias = Weights((1, 1, x.shape[-1], features), name="branch_pool")()
    return nn.relu(average_pool(x @ kernel[0, 0]) + bias)


def max_branch(x: FeatureMap, features: int) -> FeatureMap:
    """ReLU of a 1x1 convolution of the max pool: the last block's, by a slip of the graph."""
    (x,) = pointwise(max_pool(x, 1, "SAME"), branch_pool=features)
    return x


class Mixed35(nn.Module):
    """A block at 35x35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        pooled = average_branch(x, self.pool_features)
        one, five, three = pointwise(x, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64)
        five = convolve(five, "branch5x5_2", 64, (5, 5))
        three = convolve(three, "branch3x3dbl_2", 96)
        three = convolve(three, "branch3x3dbl_3", 96)
        return jnp.concatenate([one, five, three, pooled], axis=-1)


class Reduce35(nn.Module):
    """From 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        strided = convolve(x, "branch3x3", 384, stride=2, padding="VALID")
        (three,) = pointwise(x, branch3x3dbl_1=64)
        three = convolve(three, "branch3x3dbl_2", 96)
        three = convolve(three, "branch3x3dbl_3", 96, stride=2, padding="VALID")
        return jnp.concatenate([strided, three, max_pool(x)], axis=-1)


class Mixed17(nn.Module):
    """A block at 17x17: 7x7 convolutions as pairs of 1x7 and 7x1."""

    width: int

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        pooled = average_branch(x, 192)
        one, seven, double = pointwise(
            x, branch1x1=192, branch7x7_1=self.width, branch7x7dbl_1=self.width
        )
        seven = convolve(seven, "branch7x7_2", self.width, (1, 7))
        seven = convolve(seven, "branch7x7_3", 192, (7, 1))
        double = convolve(double, "branch7x7dbl_2", self.width, (7, 1))
        double = convolve(double, "branch7x7dbl_3", self.width, (1, 7))
        double = convolve(double, "branch7x7dbl_4", self.width, (7, 1))
        double = convolve(double, "branch7x7dbl_5", 192, (1, 7))
        return jnp.concatenate([one, seven, double, pooled], axis=-1)


class Reduce17(nn.Module):
    """From 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        three, seven = pointwise(x, branch3x3_1=192, branch7x7x3_1=192)
        three = convolve(three, "branch3x3_2", 320, stride=2, padding="VALID")
        seven = convolve(seven, "branch7x7x3_2", 192, (1, 7))
        seven = convolve(seven, "branch7x7x3_3", 192, (7, 1))
        seven = convolve(seven, "branch7x7x3_4", 192, stride=2, padding="VALID")
        return jnp.concatenate([three, seven, max_pool(x)], axis=-1)


class Mixed8(nn.Module):
    """A block at 8x8, branches that end in a 1x3 beside a 3x1."""

    pool: Callable[[FeatureMap, int], FeatureMap]

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        pooled = self.pool(x, 192)
        one, three, double = pointwise(x, branch1x1=320, branch3x3_1=384, branch3x3dbl_1=448)
        double = convolve(double, "branch3x3dbl_2", 384)
        ends = [
            convolve(stem, f"{name}{letter}", 384, window)
            for stem, name in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
            for letter, window in (("a", (1, 3)), ("b", (3, 1)))
        ]
        return jnp.concatenate([one, *ends, pooled], axis=-1)


class Inception(nn.Module):
    """Images of 299x299 in [-1, 1] to features and logits."""

    @nn.compact
    def __call__(self, x: Images) -> InceptionOutputs:
        x = convolve(x, "Conv2d_1a_3x3", 32, stride=2, padding="VALID")
        x = convolve(x, "Conv2d_2a_3x3", 32, padding="VALID")
        x = max_pool(convolve(x, "Conv2d_2b_3x3", 64))
        (x,) = pointwise(x, Conv2d_3b_1x1=80)
        x = max_pool(convolve(x, "Conv2d_4a_3x3", 192, padding="VALID"))
        for letter, pool_features in (("b", 32), ("c", 64), ("d", 64)):
            x = Mixed35(pool_features, name=f"Mixed_5{letter}")(x)
        x = Reduce35(name="Mixed_6a")(x)
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = Mixed17(width, name=f"Mixed_6{letter}")(x)
        x = Reduce17(name="Mixed_7a")(x)
        x = Mixed8(average_branch, name="Mixed_7b")(x)
        x = Mixed8(max_branch, name="Mixed_7c")(x)
        pooled = x.mean(axis=(1, 2))
        return InceptionOutputs(pooled, nn.Dense(CLASSES, name="fc")(pooled))


def init(key: Keys) -> Params:
    """Fresh float32 parameters."""
    return Inception().init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"]


def apply(params: Params, images: Images) -> InceptionOutputs:
    """Features and logits of images [batch, 299, 299, 3] in [-1, 1]."""
    return Inception().apply({"params": params}, images)

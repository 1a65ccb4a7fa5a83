"""How one tree of parameters lies in another project's files: a table, used in both directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from imagen_jax.storage.tensor_file import Index
from imagen_jax.storage.trees import name_some

LINEAR = (1, 0)  # [out, in] to [in, out]
CONVOLUTION = (2, 3, 1, 0)  # [out, in, height, width] to [height, width, in, out]


@dataclass(frozen=True)
class Tensors:
    """Where one of our parameters is in files of another layout.

    names: its tensor, or several that are put together. axes: the permutation that takes one of
    their tensors to our order (None: as it is); axes of length 1 that we lack come first in it.
    join: how several make one parameter: "stack" on a new first axis, or "concat" along the last,
    of which each has an equal share.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    join: Literal["stack", "concat"] | None = None

    def __post_init__(self):
        if not self.names or (self.join is None and len(self.names) > 1):
            raise ValueError(f"{len(self.names)} tensors cannot be joined by {self.join}.")

    def places(self, shape: Sequence[int]) -> dict[str, Index]:
        """The block of a parameter of this shape, a slice for each axis, that each tensor makes.

        ValueError: the shape does not divide into so many.
        """
        whole = [slice(0, size) for size in shape]
        if self.join is None:
            return {self.names[0]: tuple(whole)}
        axis = 0 if self.join == "stack" else len(shape) - 1
        count = len(self.names)
        width, rest = divmod(shape[axis], count)
        if rest or (self.join == "stack" and width != 1):
            raise ValueError(f"Shape {tuple(shape)} does not divide into {count} tensors.")
        cuts = [slice(i * width, (i + 1) * width) for i in range(count)]
        places = [(*whole[:axis], cut, *whole[axis + 1 :]) for cut in cuts]
        return dict(zip(self.names, places, strict=True))

    def in_their_order(self, ours: Sequence, filler: Any) -> tuple:
        """Sizes or slices of a block, one for each axis of ours, as those of its tensor.

        `filler` is for the tensor's axes of length 1 that we lack.
        """
        ours = list(ours[self.join == "stack" :])
        axes = self.axes or range(len(ours))
        if len(ours) > len(axes):
            raise ValueError(f"{self.names[0]}: {axes} do not permute {len(ours)} axes.")
        padded = [filler] * (len(axes) - len(ours)) + ours
        return tuple(padded[axis] for axis in np.argsort(axes))


# Path of a parameter, joined by "/", to where it comes from.
Layout = Mapping[str, Tensors]


def affine(
    ours: str,
    theirs: Sequence[str],
    axes: tuple[int, ...] | None,
    join: Literal["stack", "concat"] | None = None,
) -> Layout:
    """A layer's weight and bias, one or several of theirs: of a norm where no axes are permuted."""
    weight = Tensors(tuple(f"{name}.weight" for name in theirs), axes, join)
    bias = Tensors(tuple(f"{name}.bias" for name in theirs), None, join)
    return {f"{ours}/{'kernel' if axes else 'scale'}": weight, f"{ours}/bias": bias}


def tensor_shapes(
    layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes of their tensors by name, given those of our parameters by path.

    ValueError: the layout is not that of these parameters.
    """
    if odd := sorted(set(layout) ^ set(shapes)):
        raise ValueError(
            f"The layout and the model disagree about the parameters {name_some(odd)}."
        )
    return {
        name: layout[path].in_their_order([part.stop - part.start for part in place], 1)
        for path, shape in shapes.items()
        for name, place in layout[path].places(shape).items()
    }

"""How one tree of parameters lies in another project's files: a table, read in both directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tensors:
    """Where one of our parameters is in files of another layout.

    names: its tensor, or several that are put together. axes: the permutation that takes one of
    their tensors to our order (None: as it is); axes of length 1 that we lack are dropped after it.
    join: how several make one parameter: "stack" on a new first axis, or "concat" along the last,
    of which each has an equal share.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    join: Literal["stack", "concat"] | None = None

    def __post_init__(self):
        if not self.names or (self.join is None and len(self.names) > 1):
            raise ValueError(f"{len(self.names)} tensors cannot be joined by {self.join}.")


# Path of a parameter, joined by "/", to where it comes from.
Layout = Mapping[str, Tensors]

LINEAR = (1, 0)  # [out, in] to [in, out]
CONVOLUTION = (2, 3, 1, 0)  # [out, in, height, width] to [height, width, in, out]


def part_shape(tensors: Tensors, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape, in our order, that each tensor of a parameter of this shape has."""
    if tensors.join == "stack":
        return tuple(shape[1:])
    if tensors.join == "concat":
        return (*shape[:-1], shape[-1] // len(tensors.names))
    return tuple(shape)


def joined_shape(tensors: Tensors, part: Sequence[int]) -> tuple[int, ...]:
    """The inverse of `part_shape`."""
    if tensors.join == "stack":
        return (len(tensors.names), *part)
    if tensors.join == "concat":
        return (*part[:-1], part[-1] * len(tensors.names))
    return tuple(part)


def kept_axes(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Which axes of `shape` remain when those of length 1 that `wanted` lacks are dropped.

    None where the two do not fit.
    """
    kept = []
    for axis, size in enumerate(shape):
        if len(kept) < len(wanted) and size == wanted[len(kept)]:
            kept.append(axis)
        elif size != 1:
            return None
    return tuple(kept) if len(kept) == len(wanted) else None

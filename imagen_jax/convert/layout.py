"""How one tree of parameters lies in another project's files: a table, read in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tensors:
    """Where one of our parameters is in files of another layout.

    names: its tensor, or several that are put together. axes: the permutation that takes one of
    their tensors to our order (None: as it is); axes of length 1 that we lack are dropped after it.
    join: how several make one parameter: "stack" on a new first axis, or "concat" along the last.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    join: Literal["stack", "concat"] | None = None


# Path of a parameter, joined by "/", to where it comes from.
Layout = Mapping[str, Tensors]

LINEAR = (1, 0)  # [out, in] to [in, out]
CONVOLUTION = (2, 3, 1, 0)  # [out, in, height, width] to [height, width, in, out]

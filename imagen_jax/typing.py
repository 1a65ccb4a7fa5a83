"""Array types shared by every room of the package. Images are NHWC floats in [-1, 1] unless said
otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Tokens = Int[Array, "batch length"]
Mask = Bool[Array, "batch length"]
LogSNR = Float[Array, "*batch"]
Keys = PRNGKeyArray | Array
Params = dict[str, Any]
# Makes parameters whole that devices share.
Gather = Callable[[Params], Params]


class TextEmbeddings(NamedTuple):
    """What a text encoder gives: a vector a token, and which tokens are real (True) or padding."""

    values: Float[Array, "batch length width"]
    mask: Bool[Array, "batch length"]

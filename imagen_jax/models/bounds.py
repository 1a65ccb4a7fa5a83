"""What the numbers of a network may be: checked where a config is made, before any work.

The limits are far above every network there is. A number beyond them is a mistake, and would take
all memory or hours before anything else found it.
"""

from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

MAX_WIDTH = 2**16  # channels of a layer, and what divides them
MAX_ROWS = 2**24  # of a table: words, classes
MAX_LAYERS = 1024  # of a transformer
MAX_LEVELS, MAX_BLOCKS = 16, 64  # of a U-Net, and of one of its levels
MAX_LENGTH = 2**16  # tokens
MAX_SIDE = 2**13  # of an image

# The least and the most of each field, ends included.
Bounds = Mapping[str, tuple[int | float, int | float]]
WIDTH = (1, MAX_WIDTH)
EPSILON = (0.0, 1.0)
FACTOR = (1e-6, 1e6)
ATTENTIONS = (None, "self", "cross")
DTYPES = ("float32", "bfloat16", "float16")
# What is computed again in the backward pass: nothing, whole blocks, or all but the products.
REMATS = (False, True, "products")


def check_choice(field: str, value: Any, choices: Collection[Any]) -> None:
    """ValueError unless a config's field has one of these values."""
    if value not in choices:
        raise ValueError(f"{field} is {value!r}; it can be {', '.join(map(repr, choices))}.")


def check_bounds(config: Any, bounds: Bounds) -> None:
    """ValueError unless each of these fields of a config is None or within its bounds.

    Whole numbers as bounds ask for a whole number.
    """
    for field, (least, most) in bounds.items():
        value, whole = getattr(config, field), isinstance(least, int)
        if value is None:
            continue
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"{type(config).__name__}.{field} is {value!r:.40}; it must be {kind} from "
                f"{least} to {most}."
            )


def check_network(config: Any) -> None:
    """What any U-Net's configuration must have: levels, known attention, a known dtype."""
    if not 1 <= len(config.levels) <= MAX_LEVELS:
        number = f"has {len(config.levels)} entries" if config.levels else "is empty"
        raise ValueError(f"network.levels {number}; a U-Net has 1 to {MAX_LEVELS} levels.")
    for level in config.levels:
        check_choice("network.levels.attention", level.attention, ATTENTIONS)
    check_choice("network.dtype", config.dtype, DTYPES)
    check_choice("network.remat", config.remat, REMATS)
    bounds = dict.fromkeys(("in_channels", "out_channels", "embedding_width"), WIDTH)
    bounds |= {"low_res_channels": (0, MAX_WIDTH), "num_classes": (1, MAX_ROWS)}
    check_bounds(config, bounds)
    # The time is embedded in so many, by sines and cosines.
    first = getattr(config, "stem_channels", None) or config.levels[0].channels
    if first < 2:
        raise ValueError(f"network.levels begins with {first} channel; it must be 2 or more.")

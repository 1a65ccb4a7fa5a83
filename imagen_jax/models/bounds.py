"""What the numbers of a network may be: checked where a config is made, before any work.

The limits are far above every network there is. A number beyond them is a mistake, and would take
all memory or hours before anything else found it.
"""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

MAX_WIDTH = 2**16  # channels of a layer, and what divides them
MAX_SIDE = 2**13  # of an image
MAX_LEVELS = 16  # of a U-Net
WIDTH, ROWS, EPSILON, FACTOR = (1, MAX_WIDTH), (1, 2**24), (0.0, 1.0), (1e-6, 1e6)
# The least and the most of each field that a configuration may have, ends included. Whole numbers
# ask for a whole number.
BOUNDS: dict[str, tuple[int | float, int | float]] = {
    **dict.fromkeys(("channels", "in_channels", "out_channels", "stem_channels"), WIDTH),
    **dict.fromkeys(("head_channels", "norm_groups", "text_projection", "pooling_heads"), WIDTH),
    **dict.fromkeys(("d_model", "head_dim", "d_ff", "num_buckets", "num_heads"), WIDTH),
    **dict.fromkeys(("width", "heads", "hidden", "embedding_dim", "embedding_width"), WIDTH),
    "low_res_channels": (0, MAX_WIDTH),
    **dict.fromkeys(("vocab_size", "num_classes", "max_distance"), ROWS),
    "eos_id": (0, ROWS[1]),
    **dict.fromkeys(("layers", "num_layers", "depth"), (1, 1024)),  # of a transformer
    **dict.fromkeys(("bottleneck", "condition_tokens", "position_grid", "mlp_multiple"), WIDTH),
    "class_tokens": (0, MAX_WIDTH),
    "class_start": (0, 1023),
    "mlp_ratio": (1e-3, 64.0),
    "dropout": (0.0, 1.0),
    "num_res_blocks": (1, 64),  # of a level of a U-Net
    "stride": (1, 8),
    "patch_size": (1, 64),
    **dict.fromkeys(("image_size", "position_size"), (1, MAX_SIDE)),
    "position_offset": (0.0, 1.0),
    "registers": (0, 1024),
    "max_length": (1, 2**16),
    "norm_eps": EPSILON,
    **dict.fromkeys(("output_scale_factor", "mid_output_scale_factor"), FACTOR),
    **dict.fromkeys(("embedding_init_scale", "embedding_multiplier"), FACTOR),
    "attention_hidden_ratio": (1e-3, 64.0),
}
ATTENTIONS = (None, "self", "cross")
DTYPES = ("float32", "bfloat16", "float16")
# What is computed again in the backward pass: nothing, whole blocks, or all but the products.
REMATS = (False, True, "products")


def check_choice(field: str, value: Any, choices: Collection[Any]) -> None:
    """ValueError unless a config's field has one of these values."""
    if value not in choices:
        raise ValueError(f"{field} is {value!r}; it can be {', '.join(map(repr, choices))}.")


def check_bounds(config: Any) -> None:
    """ValueError unless each field of a config is None or within its bounds."""
    for field, (least, most) in BOUNDS.items():
        value, whole = vars(config).get(field), isinstance(least, int)
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
    check_bounds(config)
    # The time is embedded in so many, by sines and cosines.
    first = getattr(config, "stem_channels", None) or config.levels[0].channels
    if first < 2:
        raise ValueError(f"network.levels begins with {first} channel; it must be 2 or more.")

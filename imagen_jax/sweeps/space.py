"""What a sweep tries: the values of each key, as a command line writes them.

    1e-4,3e-4          choices; a value that is a list stands in brackets: [1,2],[3,4]
    1e-5:1e-3          a range: each number alike often; whole numbers where both ends are
    1e-5:1e-3:log      each order of magnitude alike often
    16:64:16           in steps

Text with a comma or a colon of its own stands in quotes. One value is no choice: it is fixed.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.storage.codec import nearest
from imagen_jax.training.config import plain_key, read_value

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(?::(\w[\w.+-]*))?")
OPEN, CLOSE = "([{", ")]}"
# By what stands before it a quote begins a text, and is no apostrophe.
BEFORE_QUOTE = ("", ",", ":", *OPEN)
# Keys that change what the training loss measures.
LOSS_KEYS = (
    *("stage.prediction", "stage.loss", "stage.schedule", "stage.time_power", "stage.aug_levels"),
    *("stage.time_logit_normal", "stage.aug_schedule", "stage.resolution", "stage.low_resolution"),
    *("stage.channels", "stage.crop", "stage.upsampling", "stage.conditioning", "data"),
    *("text.dropout", "label_dropout", "distill"),
)
# Keys that it does not depend on.
OTHER_KEYS = ("ema_decay", "ema", "sample", "evaluate", "checkpoint", "log_every")


@dataclass(frozen=True)
class Choices:
    """Values to choose from, as they are written."""

    texts: tuple[str, ...]

    @property
    def values(self) -> list[Any]:
        """What they mean."""
        return [read_value(text) for text in self.texts]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; step: between them; log: by magnitude."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False


Space = Mapping[str, Choices | Range]
Values = dict[str, str]  # of the keys of a trial, as texts for --config.KEY=TEXT


def split_space(overrides: Mapping[str, str]) -> tuple[Values, dict[str, Choices | Range]]:
    """(the keys that have one value, those that are swept) of {key: text}.

    Raises:
        ValueError: a value cannot be read, no key has several, or one is within another.
    """
    found = {plain_key(key): _read(key, text) for key, text in overrides.items()}
    fixed = {key: value for key, value in found.items() if isinstance(value, str)}
    space = {key: value for key, value in found.items() if not isinstance(value, str)}
    if not space:
        raise ValueError(
            "nothing is swept: give several values of a key, --config.KEY=A,B, or a range, "
            "--config.KEY=LOW:HIGH"
        )
    for one, other in itertools.permutations(found, 2):
        if other.startswith(f"{one}.") and (one in space or other in space):
            raise ValueError(f"--config.{one} and --config.{other} set the same key")
    return fixed, space


def _read(key: str, text: str) -> str | Choices | Range:
    try:
        if match := RANGE.fullmatch(text):
            return _range(*match.groups())
        parts = split_commas(text)
        if len(parts) == 1:
            return text
        if any(RANGE.fullmatch(part) for part in parts):
            raise ValueError("a range stands alone, and a text with a colon in quotes")
        choices = Choices(tuple(parts))
        if len({repr(value) for value in choices.values}) < len(parts):
            raise ValueError("it has a value twice")
    except ValueError as error:
        raise ValueError(f"--config.{key}={text}: {error}") from None
    return choices


def split_commas(text: str) -> list[str]:
    """The parts of a text between commas, but for those within brackets or quotes.

    Raises:
        ValueError: a part is empty, a bracket or a quote is left open.
    """
    parts, closing, quote, before = [""], [], "", ""
    for sign in text:
        if quote:
            quote = "" if sign == quote and before != "\\" else quote
        elif sign in "'\"" and before in BEFORE_QUOTE:
            quote = sign
        elif sign in OPEN:
            closing.append(CLOSE[OPEN.index(sign)])
        elif closing and sign == closing[-1]:
            closing.pop()
        if sign == "," and not (quote or closing):
            parts.append("")
        else:
            parts[-1] += sign
        before = sign if quote or not sign.isspace() else before
    if quote or closing:
        raise ValueError(f"{quote or closing[-1]} is missing")
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise ValueError("it has nothing before or after a comma")
    return parts


def _range(low: str, high: str, last: str | None) -> Range:
    first, final = read_value(low), read_value(high)
    log = last == "log"
    step = None if last is None or log else read_value(last)
    if isinstance(step, str):
        raise ValueError(
            f"after the ends comes a step or log, not {last!r}{nearest(last, ['log'])}"
        )
    if first >= final:
        raise ValueError("the first end must be below the second")
    if log and first <= 0:
        raise ValueError("a range with log begins above 0")
    if step is not None and not 0 < step <= final - first:
        raise ValueError("the step must be above 0 and fit between the ends")
    if any(isinstance(value, float) for value in (first, final, step)):
        first, final = float(first), float(final)
    return Range(first, final, step, log)


def grid(space: Space) -> list[Values]:
    """Every choice of each key with every one of the others; the last key changes first.

    Raises:
        ValueError: a key has a range.
    """
    for key, values in space.items():
        if isinstance(values, Range):
            raise ValueError(
                f"--config.{key} is a range, of which a grid has no points: give --search random "
                "or tpe, or a list of values (a text with a colon stands in quotes)"
            )
    every = itertools.product(*(choices.texts for choices in space.values()))
    return [dict(zip(space, texts, strict=True)) for texts in every]


def samples(space: Space) -> list[Values]:
    """Few points in which each choice and each end of a range occurs, to see if they are valid."""
    ends = {
        key: values.texts if isinstance(values, Choices) else (repr(values.low), repr(values.high))
        for key, values in space.items()
    }
    count = max(map(len, ends.values()))
    return [
        {key: texts[min(place, len(texts) - 1)] for key, texts in ends.items()}
        for place in range(count)
    ]


def check_comparable(space: Space, metric: str) -> None:
    """ValueError where trials cannot be compared by the training loss."""

    def among(key: str, keys: Sequence[str]) -> bool:
        return any(key == other or key.startswith(f"{other}.") for other in keys)

    for key in space if metric == "loss" else ():
        if among(key, LOSS_KEYS):
            raise ValueError(
                f"--config.{key} changes what the training loss measures, so trials cannot be "
                "compared by it: give a --metric scores/... of the config's section evaluate, or "
                "use imagen-jax compare_recipes"
            )
        if among(key, OTHER_KEYS):
            raise ValueError(
                f"--config.{key} does not change the training loss, so trials cannot be compared "
                "by it: give a --metric scores/... of the config's section evaluate"
            )

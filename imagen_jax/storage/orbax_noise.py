"""What Orbax prints from its threads besides the errors that it raises: thousands of lines.

All of it is about errors that a caller gets anyway, and says in one line.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

LIBRARY, BELOW = "orbax", "tensorstore"
CLOSED = "Event loop is closed"


def silence() -> None:
    """Drops, from now on, the records of Orbax's log, and what the threads of a read or write that
    failed have to say once nobody listens any more. All else is passed on. Harmless if repeated.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_of_others)
    for name, dropped in (("excepthook", _is_late), ("unraisablehook", _is_cancelled)):
        if not hasattr(before := getattr(sys, name), "passes_on"):
            setattr(sys, name, _hook(before, dropped))


def _of_others(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        return not any(name in record.getMessage() for name in (LIBRARY, BELOW))
    return LIBRARY not in record.pathname


def _hook(before: Callable, dropped: Callable[..., bool]) -> Callable:
    def hook(*given: Any) -> None:
        if not dropped(*given):
            before(*given)

    hook.passes_on = before
    return hook


def _is_late(kind: type | None, error: BaseException | None, trace: Any = None) -> bool:
    """Whether a thread of TensorStore has an answer for a reader or writer who has given up."""
    return isinstance(error, RuntimeError) and str(error) == CLOSED


def _is_cancelled(unraisable: Any) -> bool:
    """Whether it is that, or a coroutine of Orbax's that ended as another one failed."""
    code = getattr(unraisable.object, "cr_code", None)
    own = LIBRARY in getattr(code, "co_filename", "")
    return own or _is_late(unraisable.exc_type, unraisable.exc_value)

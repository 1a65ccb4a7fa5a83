"""What Orbax prints from its threads besides the errors that it raises: thousands of lines.

All of it is about errors that a caller gets anyway, and says in one line.
"""

import logging
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

LIBRARY, BELOW = "orbax", "tensorstore"
CLOSED = "Event loop is closed"


def silence() -> None:
    """Drops, from now on, the records of Orbax's log, and what the threads of a read or write that
    failed have to say once nobody listens any more. All else is passed on. Harmless if repeated.
    """
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _of_others not in logger.filters:
            logger.addFilter(_of_others)
    if not hasattr(sys.excepthook, "passes_on"):
        sys.excepthook = _except_hook(sys.excepthook)
    if not hasattr(sys.unraisablehook, "passes_on"):
        sys.unraisablehook = _unraisable_hook(sys.unraisablehook)


def _of_others(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        return not any(name in record.getMessage() for name in (LIBRARY, BELOW))
    return LIBRARY not in record.pathname


def _except_hook(before: Callable) -> Callable:
    def hook(kind: type, error: BaseException, trace: Any) -> None:
        if not _is_late(error):
            before(kind, error, trace)

    hook.passes_on = before
    return hook


def _unraisable_hook(before: Callable) -> Callable:
    def hook(unraisable: Any) -> None:
        # A coroutine of Orbax's that was cancelled by the failure of another one.
        code = getattr(unraisable.object, "cr_code", None)
        cancelled = isinstance(code, CodeType) and LIBRARY in code.co_filename
        if not (cancelled or _is_late(unraisable.exc_value)):
            before(unraisable)

    hook.passes_on = before
    return hook


def _is_late(error: BaseException | None) -> bool:
    """Whether a thread of TensorStore has an answer for a reader or writer who has given up."""
    return isinstance(error, RuntimeError) and str(error) == CLOSED

"""How much is done, and when the rest will be."""

import sys

from tqdm import tqdm

EVERY = 15.0  # seconds between lines where the output is not a terminal
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n"


def progress_bar(what: str, total: int) -> tqdm:
    """A bar in a terminal; elsewhere, such as in a log, a line now and then."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        unit="image",
        disable=total == 0,
        mininterval=0.1 if terminal else EVERY,
        bar_format=None if terminal else LINE,
    )

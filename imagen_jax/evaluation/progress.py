"""How many images are done, and when the rest will be."""

import sys
from typing import Any

from imagen_jax.pipeline.progress import progress_bar

# Where the output is not a terminal, such as in a log: seconds between lines, and what they say.
LINES = {
    "mininterval": 15.0,
    "bar_format": "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]\n",
}


def image_bar(what: str, total: int) -> Any:
    """A bar of tqdm in a terminal or notebook; elsewhere a line now and then."""
    options = {} if sys.stderr.isatty() else LINES
    return progress_bar(total, unit=" images", shown=total > 0, desc=what, **options)

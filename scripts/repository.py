"""Lets a script run in a clone where the package is not installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("jax", "flax", "ml_collections")

sys.path.insert(0, str(ROOT))
if lacking := [name for name in NEEDED if find_spec(name) is None]:
    made = (ROOT / ".venv").is_dir()
    sys.exit(
        f"error: {sys.executable} lacks {', '.join(lacking)}. "
        + (f"First: . {ROOT}/.venv/bin/activate" if made else f"First: pip install -e {ROOT}")
    )

r"""Writes the tables of docs/scaling.md from the plans in docs/scaling/ and docs/scaling/gpus/.

    python scripts/plan.py --config configs/imagen_sr256.py --topology v5p:4x4x4 \
        --json docs/scaling/sr256_v5p.json
    python scripts/scaling.py
"""

import argparse
import json
import re
from pathlib import Path

from imagen_jax.commands.command_line import make_parser, run_parsed
from imagen_jax.planning.scaling import compiled_table, gpu_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, PLANS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling"
# The tables by the marks before them, and the folders with their plans.
TABLES = {"compiled": (compiled_table, PLANS), "gpus": (gpu_table, PLANS / "gpus")}


def written(document: str) -> str:
    """The document with a new table between each <!-- name --> and the <!-- end --> after it."""
    for name, (table, folder) in TABLES.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        if len(place.findall(document)) != 1:
            raise ValueError(f"{DOCUMENT} must have one <!-- {name} --> ... <!-- end -->")
        lines = table(read_plans(folder)) + "\n"
        document = place.sub(lambda _, lines=lines: lines, document)
    return document


def read_plans(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def write(options: argparse.Namespace) -> None:
    DOCUMENT.write_text(written(DOCUMENT.read_text()))


def main(arguments: list[str] | None = None) -> None:
    run_parsed(make_parser(__doc__), write, arguments)

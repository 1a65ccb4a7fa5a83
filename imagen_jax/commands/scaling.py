r"""Writes the table of docs/scaling.md from the plans in docs/scaling/.

    python scripts/plan.py --config configs/imagen_sr256.py --topology v5p:4x4x4 \
        --json docs/scaling/sr256_v5p.json
    python scripts/scaling.py
"""

import argparse
import json
import re
from pathlib import Path

from imagen_jax.commands.command_line import make_parser, run_parsed
from imagen_jax.planning.scaling import compiled_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, PLANS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling"
TABLE = re.compile(r"(?<=<!-- compiled -->\n).*?(?=<!-- end -->)", re.DOTALL)


def written(document: str, plans: list[dict]) -> str:
    """The document with a new table between <!-- compiled --> and <!-- end -->."""
    if len(TABLE.findall(document)) != 1:
        raise ValueError(f"{DOCUMENT} must have one <!-- compiled --> ... <!-- end -->")
    return TABLE.sub(lambda _: compiled_table(plans) + "\n", document)


def read_plans() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(PLANS.glob("*.json"))]


def write(options: argparse.Namespace) -> None:
    DOCUMENT.write_text(written(DOCUMENT.read_text(), read_plans()))


def main(arguments: list[str] | None = None) -> None:
    run_parsed(make_parser(__doc__), write, arguments)

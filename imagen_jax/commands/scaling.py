"""Writes the tables of docs/scaling.md from the plans in docs/scaling/.

    python scripts/plan.py --config configs/imagen_sr256.py --topology v5p:4x4x4 \
        --json docs/scaling/sr256_v5p.json
    python scripts/scaling.py
"""

import json
import re
from pathlib import Path

from imagen_jax.planning.scaling import compiled_table, growth_table, runs_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, PLANS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling"


def written(document: str, plans: list[dict]) -> str:
    """The document with its tables, each between <!-- NAME --> and <!-- end -->, made anew."""
    tables = {"compiled": compiled_table, "runs": runs_table, "growth": growth_table}
    for name, make in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(block.findall(document)) != 1:
            raise ValueError(f"{DOCUMENT} must have one <!-- {name} --> ... <!-- end -->")
        document = block.sub(
            lambda found, text=make(plans): found[1] + text + "\n" + found[2], document
        )
    return document


def read_plans() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(PLANS.glob("*.json"))]


def main() -> None:
    DOCUMENT.write_text(written(DOCUMENT.read_text(), read_plans()))

"""The tables in docs/scaling.md are those of the plans beside it."""

from pathlib import Path

import pytest

from imagen_jax.commands import scaling
from imagen_jax.planning.scaling import COLUMNS, compiled_table

DOCUMENT = Path(__file__).parents[2] / "docs/scaling.md"


def test_the_documents_tables_are_those_of_its_plans():
    document, plans = DOCUMENT.read_text(), DOCUMENT.with_suffix("")
    assert scaling.written(document, plans) == document
    for name, (_, folder) in scaling.TABLES.items():
        with pytest.raises(ValueError, match=f"must have one <!-- {name} -->"):
            scaling.written(document.replace(f"<!-- {name} -->", ""), plans)
        assert all(plan["topology"] for plan in scaling.read_plans(plans / folder))


def test_a_plan_of_sampling_has_no_days():
    figures = scaling.read_plans(DOCUMENT.with_suffix(""))[0]
    speed = {name: value for name, value in figures["by_compiler"].items() if name != "days"}
    row = compiled_table([{**figures, "what": "sampling", "by_compiler": speed}]).splitlines()[2]
    cells = dict(zip(COLUMNS, map(str.strip, row.strip("|").split("|")), strict=True))
    assert cells["plan"].startswith("sampling base64, v5e:16x16")
    assert cells["days"] == cells["chip-days"] == "-"

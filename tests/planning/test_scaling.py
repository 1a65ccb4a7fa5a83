"""The table in docs/scaling.md is that of the plans beside it."""

import json

import pytest

from imagen_jax.commands import scaling
from imagen_jax.planning.scaling import COLUMNS, compiled_table


def test_the_documents_table_is_that_of_its_plans():
    document = scaling.DOCUMENT.read_text()
    assert scaling.written(document, scaling.read_plans()) == document
    with pytest.raises(ValueError, match="must have one <!-- compiled -->"):
        scaling.written(document.replace("<!-- compiled -->", ""), [])
    for path in scaling.PLANS.glob("*.json"):
        assert json.loads(path.read_text())["topology"]


def test_a_plan_of_sampling_has_no_days():
    figures = scaling.read_plans()[0]
    speed = {name: value for name, value in figures["by_compiler"].items() if name != "days"}
    row = compiled_table([{**figures, "what": "sampling", "by_compiler": speed}]).splitlines()[2]
    cells = dict(zip(COLUMNS, map(str.strip, row.strip("|").split("|")), strict=True))
    assert cells["plan"].startswith("sampling base64, v5e:16x16")
    assert cells["days"] == cells["chip-days"] == "-"

"""What is derived from a compiled plan agrees with it where it must."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from imagen_jax.commands import scaling
from imagen_jax.planning.scaling import compiled_row, derived_row, find, runs_table

ROOT = Path(__file__).resolve().parents[2]
# A step of 1e15 FLOPs and 2e12 bytes a chip, in two instructions that bind at either peak.
FIGURES = {
    "stage": "base64",
    "what": "training",
    "embedded": False,
    "topology": "v5p:4x4x4",
    "chip": "v5p",
    "chips": 64,
    "mesh": {"data": 4, "fsdp": 16, "tensor": 1},
    "batch_size": 2048,
    "num_steps": 1000,
    "memory": {
        "parameters": 10**8,
        "optimizer": 0,
        "ema": 10**8,
        "arguments": 2 * 10**8,
        "temporaries": 2 * 10**10,
        "program": 10**8,
        "total": 2.03e10,
        "hbm": 95 * 10**9,
    },
    "flops": {"analytic": 6e16, "compiled": 6.4e16, "compiled_over_counted": 1.0},
    "roofline": {
        "by_intensity": {"high": [1e15, 1e9], "low": [1e9, 2e12]},
        "collectives": {"all-gather": {"count": 1, "bytes": 4e9, "seconds": 0.02}},
        "exposed_collectives": 0.01,
    },
}
V5P = find("v5p")


def compiled(figures=FIGURES):
    seconds = 1e15 / V5P.flops + 2e12 / V5P.bandwidth + 0.01
    peak = seconds * 64 * V5P.flops
    speed = {
        "seconds": seconds,
        "images_per_second": 2048 / seconds,
        "mfu": 6e16 / peak,
        "hfu": 6.4e16 / peak,
        "days": 1000 * seconds / 86400,
    }
    return {**figures, "by_roofline": speed}


def test_the_same_chips_take_as_long():
    row, derived = compiled_row(compiled()), derived_row(compiled(), V5P, 64)
    for name in ("seconds", "images_per_second", "mfu", "hfu", "days", "memory"):
        assert getattr(derived, name) == pytest.approx(getattr(row, name), rel=1e-6)


def test_twice_the_chips_halve_the_work_and_not_the_links():
    whole, half = (derived_row(compiled(), V5P, chips) for chips in (64, 128))
    assert half.seconds == pytest.approx((whole.seconds - 0.01) / 2 + 0.01)
    assert half.chip_days > whole.chip_days


def test_another_chip_works_at_its_own_peaks():
    fast = replace(V5P, flops=2 * V5P.flops, bandwidth=4 * V5P.bandwidth, link=10 * V5P.link)
    expected = 1e15 / fast.flops + 2e12 / fast.bandwidth + 0.001
    assert derived_row(compiled(), fast, 64).seconds == pytest.approx(expected)


def test_a_row_that_was_compiled_is_not_derived():
    lines = runs_table([compiled()]).splitlines()
    sources = {line.split("|")[2].strip(): line.split("|")[3].strip() for line in lines[2:]}
    assert sources.pop("64 v5p") == "compiled"
    assert set(sources.values()) == {"derived"}
    assert "8 H100" in sources


def test_a_plan_without_the_encoder_is_not_taken_for_one_with_it():
    faster = {**compiled(), "embedded": True, "by_roofline": {}}
    for plans in ([faster, compiled()], [compiled(), faster]):
        assert runs_table(plans) == runs_table([compiled()])


def test_the_documents_tables_are_those_of_its_plans():
    document = scaling.DOCUMENT.read_text()
    assert scaling.written(document, scaling.read_plans()) == document
    with pytest.raises(ValueError, match="must have one <!-- compiled -->"):
        scaling.written(document.replace("<!-- compiled -->", ""), [])
    for path in scaling.PLANS.glob("*.json"):
        assert json.loads(path.read_text())["topology"]

"""The benchmark of networks: its figures belong together."""

import json

import pytest

from imagen_jax.commands import benchmark_networks

SMALL = {"kind": "transformer", "depth": 1, "width": 16, "heads": 1, "patch_size": 4}


def test_the_figures_of_a_case(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark_networks.CASES, "small", (8, {"first": SMALL}))
    out = tmp_path / "figures.json"
    benchmark_networks.main(
        ["--case", "small", "--batch_size", "2", "--rounds", "1", "--out", str(out)]
    )
    entry = json.loads(out.read_text())["networks"]["small"]["first"]
    step = 2 / entry["images_per_second"]
    assert entry["gflop_per_second"] == pytest.approx(entry["gflop_a_step"] / step)
    assert entry["rounds"] == [entry["images_per_second"]]
    assert "| small | first |" in capsys.readouterr().out

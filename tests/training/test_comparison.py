"""A comparison of recipes: the grid, equal FLOPs, a whole small one by its command, and what is
kept of one that was stopped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.commands import compare_recipes
from imagen_jax.storage.codec import to_dict
from imagen_jax.training.comparison import Cell, Protocol, cell_plan, grid
from imagen_jax.training.comparison_report import by_cell, table
from imagen_jax.training.config import apply_overrides, load_config
from tests.commands.in_process import call

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "training" / "tiny_config.py"
AXES = {
    "network": {
        "small": {},
        "large": {
            "network": {
                "kind": "efficient_unet",
                "levels": [{"channels": 24, "num_res_blocks": 2, "attention": "self"}],
                "num_heads": 2,
                "embedding_width": 16,
            }
        },
    },
    "recipe": {
        "paper": {"prediction": "eps", "loss": {"weight": "eps"}},
        "today": {
            "prediction": "x0",
            "loss": {"weight": "v", "min_scale": 0.05},
            "schedule": {"kind": "flow"},
            "time_logit_normal": [0.0, 1.0],
        },
    },
}


def test_the_grid_is_all_choices_of_all_axes():
    names = [cell.folder for cell in grid(AXES, [0, 5])]
    assert len(set(names)) == 8
    assert names[:2] == ["small-paper-seed0", "small-paper-seed5"]
    assert grid(AXES, [1], ["large-today"]) == [Cell(("large", "today"), 1)]
    with pytest.raises(ValueError, match="no cell large-tomorrow; the cells are small-paper, "):
        grid(AXES, [0], ["large-tomorrow"])


def test_cells_take_the_same_flops_and_not_the_same_steps():
    raw = load_config(TINY)
    apply_overrides(raw, {"optimizer.decay_steps": "20"})
    cells = grid(AXES, [7], ["small-paper", "large-today"])
    plans = [cell_plan(to_dict(raw), AXES, cell, Protocol(1e9)) for cell in cells]
    for plan, per_step in plans:
        assert plan.config.num_steps * per_step == pytest.approx(1e9, abs=0.5 * per_step)
        assert plan.config.optimizer.decay_steps == plan.config.num_steps
        assert plan.config.seed == 7
    small, large = (plan.config for plan, _ in plans)
    assert large.num_steps < 0.5 * small.num_steps
    assert large.stage.time_logit_normal == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"small-paper: 1e\+04 FLOPs are 0 steps"):
        cell_plan(to_dict(raw), AXES, Cell(("small", "paper"), 0), Protocol(1e4))


def result(name: str, seed: int, hits: int, error: float) -> dict:
    interval = {"hits": hits, "n": 50, "share": hits / 50, "low": 0.0, "high": 1.0}
    shares = {"top1": interval, "top5": interval}
    return {
        "name": name,
        "seed": seed,
        "parameters": 1_000_000,
        "flops_per_step": 2e9,
        "steps": 10,
        "images": 40,
        "retrieval": {
            "feature": "pixels",
            "candidates": 100,
            "chance": {"top1": 0.01, "top5": 0.05},
            "shares": {"all": shares},
        },
        "x0_error": {"0": error},
    }


def test_the_table_puts_the_seeds_of_a_cell_together():
    results = [result("b", 0, 1, 0.2), result("a", 0, 5, 0.1), result("b", 1, 3, 0.4)]
    assert list(by_cell(results)) == ["b", "a"]
    rows = [line.split(" | ") for line in table(results).splitlines()]
    assert rows[2][:5] == ["| b", "2", "1.0M", "0.50", "40"]
    assert rows[2][5].startswith("4.0%")  # 4 of 100, not 1 or 3 of 50
    assert rows[2][-1] == "0.3000 ± 0.1000 |"
    assert "top-1 1.00%, top-5 5.00%" in table(results)


# ------------------------------------------------------------------------------------- the command

CONFIG = """
from tests.training import tiny_config

def get_config():
    config = tiny_config.get_config()
    config.data.path = {data!r}
    config.sample = {{"prompts": ["no 0"], "sampler": "ddim", "steps": 2}}
    return config

def get_axes():
    return {{"recipe": {recipes!r}}}
"""


@pytest.fixture
def command(tmp_path, rng):
    """The command line of a comparison of two recipes, as small as it goes, without its FLOPs."""
    data, config = tmp_path / "set.npz", tmp_path / "compared.py"
    images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    names, split = np.array([f"no {i}" for i in range(40)]), np.array(["train", "heldout"] * 20)
    np.savez(data, image=images, captions=names, split=split)
    config.write_text(CONFIG.format(data=str(data), recipes=AXES["recipe"]))
    options = {"config": config, "out": tmp_path / "out", "prompts": 3, "points": 2}
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.mark.slow
def test_a_whole_comparison_and_the_same_command_again(command, tmp_path):
    command, out = [*command, "--cells=today"], tmp_path / "out"
    ended, said = call(compare_recipes, *command, "--flops=2e8")
    assert ended is None
    report = json.loads((out / "comparison.json").read_text())
    (cell,) = report["cells"]
    assert cell["steps"] * cell["flops_per_step"] == pytest.approx(2e8, rel=0.1)
    assert all(np.isfinite(list(cell["x0_error"].values())))
    curves = cell["curves"]
    assert len(curves["x0_error"]["flops"]) >= 2
    assert curves["loss"]["flops"][-1] <= curves["x0_error"]["flops"][-1] <= 2.2e8
    assert "today-seed0: top-1 " in said
    assert (out / "today-seed0" / "samples.png").is_file()
    assert (out / "comparison.md").read_text() in said
    assert (out / "comparison.png").stat().st_size > 10_000

    again, said = call(compare_recipes, *command, "--flops=2e8")
    assert again is None
    assert "1 runs of 2e+08 FLOPs, 0 to be trained" in said
    assert json.loads((out / "comparison.json").read_text()) == report
    other, _ = call(compare_recipes, *command, "--flops=3e8")
    assert "today-seed0 is of a run with config.num_steps = " in other


@pytest.mark.slow
def test_a_killed_run_costs_no_other_and_goes_on(command, tmp_path):
    """Two at a time, and one is killed in the middle of its training."""
    line = [sys.executable, str(ROOT / "scripts" / "compare_recipes.py"), *command]
    line += ["--flops=2e9", "--jobs=2", "--config.checkpoint.every=20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as parent:
        saved = tmp_path / "out" / "today-seed0" / "checkpoints"
        until = time.monotonic() + 300
        while not list(saved.glob("[0-9]*")) and time.monotonic() < until:
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task").glob("*/children")
        for child in (int(pid) for file in children for pid in file.read_text().split()):
            if "today-seed0" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(child, signal.SIGKILL)
        said = parent.communicate()[0]
    assert parent.returncode == 1
    assert "today-seed0: failed with status -9" in said
    assert "error: not finished: today-seed0" in said
    ran = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "2 runs of 2e+09 FLOPs, 1 to be trained" in ran.stdout
    assert "today-seed0: resumed at step" in ran.stdout

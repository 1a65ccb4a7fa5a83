"""The example of docs/synthetic_data.md runs: its blocks, on a few icons that look like nothing."""

import itertools
import json
import re
import subprocess

import numpy as np
import pytest

from tests.run_tutorial import ROOT, RUN, blocks, environment

THINGS, STYLES = 4, ("noto", "twemoji", "fluent", "flat", "outline")
PAGE = ROOT / "docs" / "synthetic_data.md"
FEWER = {
    "THINGS = 250": f"THINGS = {THINGS}",
    "400, 5": "20, 2",
    "--size 64": "--size 64 --steps 1",
}


@pytest.mark.slow
def test_the_blocks_run(tmp_path):
    rng = np.random.default_rng(0)
    rows = list(itertools.product(range(THINGS), STYLES))
    thing, style = (np.array(column) for column in zip(*rows, strict=True))
    (tmp_path / "data" / "icons").mkdir(parents=True)
    captions = json.dumps([[[f"thing {i}, {s} style", 1.0]] for i, s in rows]).encode()
    np.savez(
        tmp_path / "data" / "icons" / "icons64.npz",
        image=rng.integers(0, 256, (len(rows), 64, 64, 3), np.uint8),
        captions=np.frombuffer(captions, np.uint8),
        split=np.where(style == "outline", "pair", "train"),
        style=style,
        family=np.array([f"thing {i}" for i in thing]),
        variant=np.zeros(len(rows), bool),
        name_en=np.array([f"thing {i}" for i in thing]),
    )
    told = ""
    for language, block in blocks(path=PAGE):
        for old, new in FEWER.items():
            block = block.replace(old, new)
        ran = subprocess.run(
            [*RUN[language], block],
            cwd=tmp_path,
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
        )
        told += ran.stdout
    assert (
        f"{THINGS} things, {THINGS} test icons, {4 * THINGS} generated, {4 * THINGS} real" in told
    )
    assert len(re.findall(r"[\d.]+ \([\d.]+ to [\d.]+\) % right", told)) == 4

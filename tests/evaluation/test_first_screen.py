"""What an evaluation prints is what the document shows, but for the numbers."""

import contextlib
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import stand_in
from PIL import Image
from tiny_cascade import CASCADE, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.commands import evaluate
from imagen_jax.evaluation import inputs
from imagen_jax.pipeline.pipeline import Pipeline

DOCUMENT = Path(__file__).parents[2] / "docs" / "first_day.md"
NAME = "pt_inception-2015-12-05-6726825d, legacy_tensorflow"
NUMBER = r"-?[\d.:]+(?:e[+-]?\d+)?"


def blocks() -> list[tuple[str, str]]:
    """(command, what it prints) of each block of the section."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Evaluating\n")[2]
    section = section.partition("\n## ")[0]
    found = re.findall(r"```text\n\$ imagen-jax evaluate (.+)\n((?s:.+?))```", section)
    assert len(found) == 2
    return found


def pattern(line: str) -> str:
    """The line with any number in place of each; spaces stand for any width of a column."""
    words = re.sub(r"\d+x\d+", "\0x\0", line.rstrip())
    words = re.sub(r"(?<![\w.-])-?\d[\d.:]*(e[+-]?\d+)?(?![\w-])", "\0", words)
    return re.sub(r"(\\ )+", r"\ +", re.escape(words)).replace("\0", NUMBER)


@pytest.fixture
def place(tmp_path, monkeypatch, rng):
    """The folders, prompts, model and weights that the commands name, all tiny."""
    (tmp_path / "models" / "inception").mkdir(parents=True)
    for folder, count in (("samples", 3), ("photos", 9)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(f"thing {i}" for i in range(8)))
    cascade = Cascade(CASCADE.stages[:1], CASCADE.sampling[:1], CASCADE.encoder)
    pipeline = Pipeline(cascade, random_params(cascade), name="mine")
    pipeline.save_pretrained(tmp_path / "runs" / "mine")
    network = stand_in.StandIn("inception", NAME)
    monkeypatch.setattr(inputs, "read_extractors", lambda features, resizes: (network,))
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_the_document_shows_what_is_printed(number, place, capsys):
    command, shown = blocks()[number]
    with contextlib.redirect_stdout(sys.stderr):
        evaluate.main(shlex.split(command))
    printed = [line.strip("\r") for line in capsys.readouterr().err.splitlines() if line.strip()]
    expected = [line for line in shown.splitlines() if line]
    assert len(printed) == len(expected), "\n".join(printed)
    for line, shown_line in zip(printed, expected, strict=True):
        assert re.fullmatch(pattern(shown_line), line), f"{line!r} is not like {shown_line!r}"

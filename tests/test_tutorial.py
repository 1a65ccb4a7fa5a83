"""The tutorial: its commands can be read, its two configs make a cascade of any folder, and, slow,
its blocks run and what they train knows its captions.
"""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands import main, train
from imagen_jax.training import batches, build, start
from imagen_jax.training.banner import look_at_images
from imagen_jax.training.config import apply_overrides, load_config, split_overrides
from imagen_jax.training.run_config import read_config
from tests import run_tutorial
from tests.commands.in_process import call


def commands() -> list[list[str]]:
    """The words of each `imagen-jax ...` of the tutorial, of what is only shown, too."""
    lines = [
        line
        for _, block in run_tutorial.blocks(("sh", "bash"))
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("imagen-jax")]


def test_every_command_of_the_tutorial_can_be_read():
    assert {words[0] for words in commands()} >= {"train", "generate", "save_model", "plan"}
    for verb, *arguments in commands():
        rest, overrides = split_overrides(arguments)
        options = main.module(verb).parser().parse_args(rest)
        if getattr(options, "config", None):
            raw = load_config(options.config)
            apply_overrides(raw, overrides)
            read_config(raw)
        else:
            assert not overrides


def test_its_blocks_of_python_are_python():
    found = run_tutorial.blocks(("python",))
    assert found
    for _, block in found:
        compile(block, "tutorial", "exec")


def test_the_images_are_forty_with_captions():
    raw = start.read_raw("folder_32_cpu", {"data.path": str(run_tutorial.ICONS)})
    source = look_at_images(read_config(raw))
    assert len(source) == 40
    captions = [source[i]["captions"] for i in range(40)]
    assert len({text for ((text, _),) in captions}) == 40
    assert {Image.open(path).size for path in run_tutorial.ICONS.glob("*.png")} == {(128, 128)}


def write_folder(folder: Path) -> None:
    """Images of any size and kind, with captions of any words."""
    folder.mkdir()
    draw = np.random.default_rng()
    kinds = [((90, 200, 3), "png"), ((301, 47, 3), "jpg"), ((20, 33), "png"), ((160, 64, 4), "png")]
    words = ["a red cat, asleep", "ein grüner Hügel", "红色的苹果", "снег"]
    for i, ((shape, ending), text) in enumerate(zip(kinds, words, strict=True)):
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(folder / f"{i}.{ending}")
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["folder_32_cpu", pytest.param("folder_sr128_cpu", marks=pytest.mark.slow)]
)
def test_its_configs_read_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "mine")
    ended, said = call(train, "--config", name, "--dry_run", "--config.data.path=mine")
    assert not ended, said
    assert "images      4 of mine; with captions" in said
    config = read_config(start.read_raw(name, {"data.path": "mine"}))
    encoder, expected = build.make_text_encoder(config), batches.abstract_batch(config)
    given = next(iter(batches.make_batches(config, encoder, look_at_images(config))(0, None)))
    assert {key: array.shape for key, array in given.items()} == {
        key: array.shape for key, array in expected.items()
    }
    assert len({row.tobytes() for row in given["ids"]}) == 4
    assert len({row.tobytes() for row in given["image"]}) >= 4


def test_its_models_are_chained():
    base, large = (read_config(load_config(name)) for name in ("folder_32_cpu", "folder_sr128_cpu"))
    assert base.text.text_encoder() == large.text.text_encoder()
    assert base.stage.resolution == large.stage.low_resolution
    assert base.stage.text_width == large.stage.text_width
    assert (base.text.trainable, large.text.trainable) == (True, False)


def test_the_share_of_nearest_images_counts_what_is_nearest(tmp_path):
    draw = np.random.default_rng()
    wanted = draw.integers(0, 256, (5, 8, 8, 3), np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for image, file in zip(wanted, files, strict=True):
        Image.fromarray(image).resize((32, 32), Image.NEAREST).save(file)
    near = np.clip(wanted + draw.integers(-9, 10, wanted.shape), 0, 255).astype(np.uint8)
    assert run_tutorial.share_nearest(near, files) == 1
    assert run_tutorial.share_nearest(near[[1, 0, 2, 3, 4]], files) == 0.6


@pytest.mark.slow
def test_the_tutorial_runs_and_its_model_knows_its_captions(tmp_path, record_property):
    seconds = run_tutorial.run(tmp_path)
    share = run_tutorial.measure(tmp_path)
    record_property("the tutorial's blocks", f"{seconds / 60:.1f} minutes; nearest {share:.0%}")
    assert share >= 0.5

"""generate: files, names, metadata, an image made again, one line for each error."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import tiny_pipeline

from imagen_jax.commands.generate import main
from imagen_jax.images.png import read_settings


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return str(path)


def run(*arguments: object) -> None:
    main([*map(str, arguments), "--quiet"])


def mistake(*arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    return stopped.value.code


def test_writes_a_png_an_image_and_a_grid(directory, tmp_path, capsys):
    out = tmp_path / "new" / "samples"
    arguments = ["--model", directory, "--num_images", 2, "--batch_size", 2, "--seed", 4]
    run("a cat / dog!", "红苹果", *arguments, "--steps", "3,2", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "0000_a_cat_dog.png",
        "0001_a_cat_dog.png",
        "0002_红苹果.png",
        "0003_红苹果.png",
        "grid.png",
    ]
    printed = capsys.readouterr().out
    assert "seed 4" in printed
    assert "grid.png" in printed
    settings = read_settings(out / "0003_红苹果.png")
    assert (settings["prompt"], settings["index"], settings["seed"]) == ("红苹果", 3, 4)
    assert [entry["steps"] for entry in settings["sampling"]] == [3, 2]

    # The model's directory goes by its name in the settings, which is no shipped one.
    again = tmp_path / "again"
    png = out / "0003_红苹果.png"
    run("--from_png", png, "--model", directory, "--out", again)
    assert [path.name for path in again.iterdir()] == [png.name]
    first, second = (np.asarray(Image.open(p), np.int32) for p in (png, again / png.name))
    assert np.abs(first - second).max() <= 1
    assert read_settings(again / png.name) == settings


def test_another_models_image_is_made_with_a_warning(directory, tmp_path, capsys):
    run("cat", "--model", directory, "--num_images", 1, "--out", tmp_path, "--size", 4)
    other = tmp_path / "other"
    pipeline = tiny_pipeline()
    pipeline.params["base"]["conv_in"]["bias"] += 1
    pipeline.save_pretrained(other)
    png = tmp_path / "0000_cat.png"
    run("--from_png", png, "--model", other, "--out", tmp_path / "b")
    assert "other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give a prompt"),
        ([""], "The prompt is empty"),
        (["a cat", "--size", "64"], "sizes: 4, 8"),
        (["a cat", "--sampler", "euler"], "choose one of ddpm"),
        (["a cat", "--steps", "0"], "steps must be"),
        (["a cat", "--num_images", "0"], "num_images must be"),
        (["a cat", "--model", "emojy"], "Unknown model 'emojy'"),
        (["a cat", "--label", "3"], "reads no classes"),
        (["a cat", "--from_png", "x.png"], "give no prompts"),
        (["--from_png", "x.png"], "There is no file x.png"),
        (["a cat", "--mask_alpha", "opaque"], "--mask_alpha is for --mask"),
        (["a cat", "--image", "x.png"], "There is no image x.png"),
    ],
)
def test_a_wrong_command_is_one_line(directory, tmp_path, arguments, message):
    model = [] if "--model" in arguments or not arguments else ["--model", directory]
    said = mistake(*arguments, *model, "--out", tmp_path / "out")
    assert message in said
    assert said.startswith("error: ")
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(directory, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in mistake("a cat", "--model", directory, "--out", tmp_path / "out")


def test_an_out_that_cannot_be_written_is_refused_before_generating(directory, monkeypatch):
    monkeypatch.setattr("imagen_jax.pipeline.loading.load_model", None)  # not even loaded
    said = mistake("a cat", "--model", directory, "--out", "/proc/none")
    assert "--out /proc/none cannot be written" in said


def test_the_summary_lists_the_stages_that_ran(directory, tmp_path, capsys):
    arguments = ["--model", directory, "--num_images", 1, "--batch_size", 2, "--out", tmp_path]
    run("a cat", *arguments, "--size", 4)
    summary = capsys.readouterr().out.splitlines()[-1]
    assert "1 image of 4 pixels" in summary
    assert '"base": {"sampler": "ddpm", "steps": 4, "guidance": 3.0}' in summary
    assert "sr" not in summary.partition("seed")[2]


def test_a_long_prompt_warns_in_one_line(directory, tmp_path, capsys):
    arguments = ["--model", directory, "--num_images", 1, "--batch_size", 2, "--out", tmp_path]
    run("a very long prompt", *arguments)
    assert "Warning: The prompt 'a very long prompt' has 18 tokens" in capsys.readouterr().err


def test_wrong_options_need_no_jax(repository):
    program = (
        "import sys; sys.modules['jax'] = None; from imagen_jax.commands.generate import main; "
        "main(['--steps', 'x'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=repository
    )
    assert result.returncode == 2
    assert "argument --steps" in result.stderr
    assert "Traceback" not in result.stderr

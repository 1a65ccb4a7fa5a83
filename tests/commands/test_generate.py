"""generate: files, names, metadata, an image made again, one line for each error."""

import os
import re
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_cascade import tiny_pipeline

from imagen_jax.cascade.stage import Conditions
from imagen_jax.commands.generate import main
from imagen_jax.images.image_file import read_settings
from imagen_jax.pipeline import generation
from imagen_jax.pipeline import pipeline as pipeline_file


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
    assert [line for line in printed.splitlines() if line.startswith(str(out))] == [
        str(out / name) for name in sorted(os.listdir(out))
    ]
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
        (["list.txt"], "list.txt is a file, and a prompt is what an image shows"),
        (["a cat", "--size", "64"], "sizes: 4, 8"),
        (["a cat", "--sampler", "plms"], "choose one of ddpm"),
        (["a cat", "--steps", "0"], "steps must be"),
        (["a cat", "--num_images", "0"], "num_images must be"),
        (["a cat", "--model", "icosn"], "did you mean icons?"),
        (["a cat", "--label", "3"], "reads no classes"),
        (["a cat", "--from_png", "x.png"], "give no prompts"),
        (["--from_png", "x.png"], "There is no file x.png"),
        (["a cat", "--mask_alpha", "opaque"], "--mask_alpha is for --mask"),
        (["--from_png", "x.png", "--steps", "9"], "--steps does not go with it"),
        (["a cat", "--lora_scale", "2"], "--lora_scale is for --lora, which is not given"),
        (["a cat", "--image", "x.png"], "There is no image x.png"),
        (["a cat", "--mask", "x.png"], "--mask is for --image, which is not given"),
        (["a cat", "--aspect_ratio", "wide"], 'must be width to height, such as "16:9"'),
        (["a cat", "--dtype", "float16"], "dtype is 'float16'; it can be 'float32' or 'bfloat16'"),
        (["a cat", "--seed", "-1"], "seed must be a whole number from 0 to 4294967295: -1"),
    ],
)
def test_a_wrong_command_is_one_line(directory, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").touch()
    model = [] if "--model" in arguments or not arguments else ["--model", directory]
    said = mistake(*arguments, *model, "--out", tmp_path / "out")
    assert message in said
    assert said.startswith("error: ")
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_refused_before_anything_is_loaded(
    directory, tmp_path, monkeypatch
):
    (tmp_path / "photo.jpg").touch()  # not what this command writes
    arguments = ["a cat", "--model", directory, "--num_images", 2, "--batch_size", 2]
    run(*arguments, "--out", tmp_path, "--seed", 1)
    before = (tmp_path / "0000_a_cat.png").read_bytes()
    (tmp_path.parent / f"{tmp_path.name}_2").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("imagen_jax.pipeline.loading.load_model", None)
        for again in (arguments, ["--from_png", tmp_path / "0001_a_cat.png"]):
            said = mistake(*again, "--out", tmp_path)
            assert "holds images of another run, such as 0000_a_cat.png" in said
            assert f"(--out {tmp_path}_3), or --overwrite" in said
        assert "Give a prompt" in mistake("--out", tmp_path)
    assert (tmp_path / "0000_a_cat.png").read_bytes() == before
    run(*arguments, "--out", tmp_path, "--seed", 2, "--overwrite")
    assert read_settings(tmp_path / "0000_a_cat.png")["seed"] == 2
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_what_is_finished_stays_when_the_rest_is_stopped(
    directory, tmp_path, capsys, monkeypatch, by
):
    real, calls = generation.sample_steps, []

    def stopped(*arguments):
        calls.append(arguments[0].name)
        if len(calls) == 4:
            if by == "Ctrl-C":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(generation, "sample_steps", stopped)
    arguments = ["cat", "dog", "--model", directory, "--num_images", 2, "--batch_size", 2]
    assert mistake(*arguments, "--out", tmp_path, "--seed", 5) == 130
    assert calls == ["base", "sr", "base", "sr"]
    assert sorted(os.listdir(tmp_path)) == ["0000_cat.png", "0001_cat.png"]
    said = capsys.readouterr().err
    assert f"2 of 4 images are finished, in {tmp_path}. To make all 4: the same" in said
    assert "--seed 5 --overwrite" in said
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_image_that_cannot_be_written_ends_in_one_line_that_names_it(
    directory, tmp_path, capsys
):
    """As on a full disk: those before it are there, and no empty file."""
    (tmp_path / "0003_cat.png" / "in the way").mkdir(parents=True)
    arguments = ["--model", directory, "--num_images", 4, "--batch_size", 2, "--overwrite"]
    assert mistake("cat", *arguments, "--out", tmp_path).endswith(f"'{tmp_path}/0003_cat.png'")
    assert "3 of 4 images are finished" in capsys.readouterr().err
    assert [path.stat().st_size > 0 for path in tmp_path.glob("*.png")] == [True] * 4


HOSTILE = """
import pwd, sys
def unknown(user): raise KeyError(f"uid not found: {user}")
pwd.getpwuid = unknown
from imagen_jax.cascade.stage import Conditions
from imagen_jax.commands.generate import main
main(sys.argv[1:])
"""


def test_images_are_saved_whatever_the_system_is_like(directory, tmp_path, repository):
    """No home, an unknown user, no place for temporary files, an ASCII terminal whose reader is
    gone, and a folder with a comma: the prompt is read as UTF-8, the names are what can be.
    """
    reading, writing = os.pipe()
    os.close(reading)
    kept = [name for name in os.environ if name == "PATH" or name.startswith(("JAX_", "XLA_"))]
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": "/proc"}
    model = tmp_path / "a,b"
    model.symlink_to(directory)
    command = [
        sys.executable,
        "-c",
        HOSTILE,
        "红苹果 apple",
        "--model",
        model,
        "--num_images",
        "2",
        "--size",
        "4",
    ]
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(
            [*map(str, command), "--out", str(tmp_path / "苹,果")],
            stdout=gone,
            stderr=gone,
            cwd=tmp_path,
            env={name: os.environ[name] for name in kept} | {**odd, "PYTHONPATH": str(repository)},
            check=False,
        )
    assert done.returncode == 0
    names = ["0000_apple.png", "0001_apple.png", "grid.png"]
    assert sorted(os.listdir(tmp_path / "苹,果")) == names
    assert read_settings(tmp_path / "苹,果" / names[0])["prompt"] == "红苹果 apple"
    assert sorted(os.listdir(tmp_path)) == ["a,b", "苹,果"]  # no folder named ~


def test_a_prompt_that_is_no_text_is_refused_before_anything_is_loaded(capsys):
    with pytest.raises(SystemExit, match="2"):
        run("caf\udce9")
    assert r"'caf\udce9' is not text in UTF-8" in capsys.readouterr().err


def as_pattern(screen: str) -> str:
    """A part of a screen in the documents, in which any number may be another."""
    return re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(screen.strip()))


def test_the_first_screen_is_as_the_documents_have_it(repository, tmp_path, monkeypatch, capsys):
    """With the shipped model, but networks that give grey at once."""

    def grey(stage, params, keys, *rest):
        yield 1, None
        image = np.zeros((len(keys), stage.resolution, stage.resolution, 3), np.float32)
        yield int(rest[1].steps), SimpleNamespace(x=image)

    monkeypatch.setattr(generation, "sample_steps", grey)
    monkeypatch.setattr(pipeline_file, "encode_request", lambda *given: Conditions())
    monkeypatch.chdir(tmp_path)
    document = (repository / "docs" / "first_day.md").read_text(encoding="utf-8")
    section = document.partition("## Generating\n")[2].partition("\n## ")[0]
    command, screen = re.findall(r"```(?:sh|text)\n(.*?)```", section, re.DOTALL)[:2]
    main(shlex.split(command)[2:])
    printed = capsys.readouterr()
    bar = next(line for line in screen.splitlines() if "step/s" in line)
    assert re.fullmatch(as_pattern(screen.replace(bar + "\n", "")), printed.out.strip())
    shown = re.split(r"[\r\n]", printed.err.strip())[-1]
    assert re.sub(r"[\d:., ]+", "0", shown) == re.sub(r"[\d:., ]+", "0", bar)


def test_an_out_that_is_a_file_is_refused(directory, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in mistake("a cat", "--model", directory, "--out", tmp_path / "out")
    assert "cat.png is named like one image" in mistake("a cat", "--out", tmp_path / "cat.png")
    assert not (tmp_path / "cat.png").exists()


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
    assert "Warning: Cut to 11 tokens: 1 of 1 prompts" in capsys.readouterr().err


def test_wrong_options_need_no_jax(repository):
    program = (
        "import sys; sys.modules['jax'] = None; from imagen_jax.commands.generate import main; "
        "main(['--steps', 'x'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=repository
    )
    assert result.returncode == 2
    assert "error: --steps" in result.stderr
    assert "Traceback" not in result.stderr


def test_explained_images_have_maps_beside_them(directory, tmp_path, capsys):
    given = ["--model", directory, "--num_images", 1, "--seed", 4, "--size", 4]
    run("red ox", "狗", *given, "--explain", "--explain_layers", "up", "--out", tmp_path / "out")
    run("red ox", "狗", *given, "--out", tmp_path / "plain")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        *("0000_red_ox.png", "0001_狗.png", "grid.png", "explain.png"),
        *(f"0000_red_ox_explain/{n}" for n in ("page.png", "0000_red.png", "0001_ox.png")),
        *(f"0001_狗_explain/{name}" for name in ("page.png", "0000_狗.png")),
        *("0000_red_ox_explain/maps.npz", "0001_狗_explain/maps.npz"),
    }
    for name in ("0000_red_ox.png", "0001_狗.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    with np.load(tmp_path / "out/0000_red_ox_explain/maps.npz") as arrays:
        assert arrays["maps"].shape == (2, 4, 4)
        assert [name for name in arrays if name.startswith("layers")] == ["layers/up0_attention"]
    capsys.readouterr()
    assert "--explain_layers is for --explain" in mistake("a", *given, "--explain_layers", "up")
    assert "does not go with --upscale" in mistake("a", *given, "--explain", "--upscale", "a.png")
    assert "begins with 'mid'" in mistake(
        "a", *given, "--explain", "--explain_layers", "mid", "--out", tmp_path / "no"
    )
    assert not (tmp_path / "no").exists()

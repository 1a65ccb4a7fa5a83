"""The wheel, outside the clone: every command's help, images, and a run on a folder of images."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.commands.main import verbs

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("imagen_jax", "configs", "pyproject.toml", "setup.py", "requirements.txt", "README.md")
HELP = """
import contextlib, sys
from imagen_jax.commands.main import main
for verb in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
"""
# A network of some thousand parameters, where the code is to be tested and not the model.
SMALL = {
    "batch_size": 2,
    "num_steps": 20,
    "stage.resolution": 16,
    "stage.network.levels": [{"channels": 8, "num_res_blocks": 1, "attention": None}],
    "stage.network.head_channels": 8,
    "stage.network.dtype": "float32",
    "stage.network.pooling_heads": 1,
    "stage.text_width": 8,
    "text.encoder.d_model": 8,
    "text.encoder.num_layers": 1,
    "text.encoder.d_ff": 8,
    "sample.every": None,
}


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the clone keeps no build of it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    shutil.copyfile(ROOT / "LICENSE", source / "LICENSE")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.iterdir()
    return built


def use(place: Path, program: list, environment: dict[str, str], size: int) -> None:
    """What a newcomer does first, in a folder that knows nothing of the clone: images of `size`."""
    place.mkdir()
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given |= {"XDG_CACHE_HOME": str(place / "cache"), **environment}

    def run(*arguments: str) -> str:
        command = [*program, *arguments]
        ran = subprocess.run(
            command, capture_output=True, text=True, cwd=place, env=given, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    code = "import imagen_jax, pathlib; print(pathlib.Path(imagen_jax.__file__).resolve())"
    assert not Path(run("-c", code)).is_relative_to(ROOT)
    assert run("-c", HELP, *verbs()).count("usage: imagen-jax ") >= len(verbs())
    command = ("-m", "imagen_jax.commands.main")
    few = ("--num_images", "1", "--steps", "1")
    student = ("--model", "icons-fast", "--size", str(size))
    run(*command, "generate", "red heart, 3d style", *student, *few)
    (image,) = (place / "samples").glob("*.png")
    assert Image.open(image).size == (size, size)
    (place / "images").mkdir()
    for i, color in enumerate(np.random.default_rng().integers(0, 256, (8, 3))):
        Image.new("RGB", (20, 16), tuple(map(int, color))).save(place / f"images/{i}.png")
        (place / f"images/{i}.txt").write_text(f"color {i}")
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    train = ("train", "--config", "folder_64", "--workdir", "run", "--config.data.path=images")
    assert "step 20/20" in run(*command, *train, *small)
    run(*command, "generate", "color 3", "--model", "run", "--out", "own", *few)
    (image,) = (place / "own").glob("*.png")
    assert Image.open(image).size == (16, 16)


def test_the_wheel_works_without_the_clone(wheel, tmp_path):
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    use(tmp_path / "work", [sys.executable], {"PYTHONPATH": str(tmp_path / "site")}, 64)


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    pip("install", f"{wheel}[train]", python=python)
    use(tmp_path / "work", [python], {}, 256)
    said = subprocess.run(
        [tmp_path / "venv/bin/imagen-jax"], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"\n  {verb} " in said for verb in verbs())

"""What commands share: lists by stage, one line for an expected error, folders to write into."""

import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imagen_jax.commands import train_tokenizer
from imagen_jax.commands.command_line import (
    ROLE,
    make_parser,
    names,
    numbers,
    one_line_errors,
)
from imagen_jax.storage.folders import make_folder, output_folder


def test_a_comma_separates_the_stages(capsys):
    assert numbers(int)("3") == 3
    assert numbers(float)("3,1.5") == [3.0, 1.5]
    assert [names("ddim"), names("ddim,heun")] == ["ddim", ["ddim", "heun"]]
    parser = make_parser("What it does.\n\n    an example")
    parser.add_argument("--steps", type=numbers(int))
    assert "\n\n    an example" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", "3,x"])
    assert "'3,x' must be a whole number" in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]
SHARED = {"__init__", "command_line"}
COMMANDS = {path.stem for path in (ROOT / "imagen_jax" / "commands").glob("*.py")} - SHARED


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_a_main_that_a_script_calls(name):
    main = importlib.import_module(f"imagen_jax.commands.{name}").main
    assert list(inspect.signature(main).parameters) == ["arguments"]
    script = (ROOT / "scripts" / f"{name}.py").read_text()
    assert f"from imagen_jax.commands.{name} import main\n" in script


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_begins_with_what_the_command_is_for(name, capsys):
    command = importlib.import_module(f"imagen_jax.commands.{name}")
    if "run_configured" in vars(command):  # absl can help once in a process
        program = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
        said = subprocess.run(program, capture_output=True, text=True).stdout
        assert "  --config: " in said
    else:
        with pytest.raises(SystemExit, match="0"):
            command.main(["--help"])
        said = capsys.readouterr().out
    assert command.__doc__.splitlines()[0] in said


def test_a_command_tells_a_mistake_in_one_line(tmp_path):
    arguments = ["--input", str(tmp_path / "none.txt"), "--output", str(tmp_path / "out.model")]
    with pytest.raises(SystemExit, match=r"^error: .*No such file.*none.txt"):
        train_tokenizer.main(arguments)
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(SystemExit, match=r"^error: There are no captions"):
        train_tokenizer.main(arguments)
    assert not (tmp_path / "out.model").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("size is 3"), "error: size is 3"),
        (FileNotFoundError(2, "No such file", "x"), "error: [Errno 2] No such file: 'x'"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_expected_error_is_one_line(error, said):
    with pytest.raises(SystemExit) as caught, one_line_errors(ValueError):
        raise error
    assert caught.value.code == said


@pytest.mark.parametrize(
    ("package", "hint"),
    [("grain", r"pip install -e '.[train]'"), ("seqio", r"pip install -e '.[seqio]'")],
)
def test_a_missing_package_tells_how_to_get_it(monkeypatch, package, hint):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught, one_line_errors():
        __import__(package)
    assert package in caught.value.code
    assert hint in caught.value.code


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("a bug"), ImportError("a bug", name="imagen_jax.data")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a bug"), one_line_errors():
        raise error


@pytest.mark.parametrize("path", ["gs://bucket/run", "/home/me/s3:/bucket"])
def test_a_bucket_is_no_folder(path):
    with pytest.raises(ValueError, match=r"--workdir .*bucket.*: (gs|s3):// is not a folder"):
        make_folder(Path(path), "--workdir")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"--out \S+file is a file"):
        make_folder(tmp_path / "file", "--out")
    with pytest.raises(ValueError, match=r"--out \S+below cannot be written"):
        make_folder(tmp_path / "file" / "below", "--out")
    with pytest.raises(ValueError, match="--workdir /proc/none cannot be written"):
        make_folder(Path("/proc/none"), "--workdir")
    with pytest.raises(ValueError, match="/proc cannot be written"):
        make_folder(Path("/proc"), "--workdir")


def write_and_fail(path):
    path.touch()
    (path / "below a file").read_text()


def test_an_output_folder_goes_again_when_nothing_came_of_it(tmp_path):
    with pytest.raises(KeyError), output_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotADirectoryError), output_folder(tmp_path / "a" / "b"):
        write_and_fail(tmp_path / "a" / "image")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["image"]
    with output_folder(tmp_path / "c"):
        pass
    assert (tmp_path / "c").is_dir()


def test_one_of_several_processes_names_itself(monkeypatch):
    left = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: left.append(timer.args))
    role = ROLE.set("process 3 of 8 (host gpu7)")
    try:
        told = pytest.raises(SystemExit, match=r"^error: process 3 of 8 \(host gpu7\): no$")
        with told, one_line_errors(ValueError):
            raise ValueError("no")
        assert left == [[1]]  # it does not wait for the others for long
        with pytest.raises(KeyError) as caught, one_line_errors():
            raise KeyError("a bug")
        assert caught.value.__notes__ == ["on process 3 of 8 (host gpu7)"]
    finally:
        ROLE.reset(role)

"""What commands share: lists by stage, one line for an expected error, folders to write into."""

import argparse
import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from imagen_jax.commands import train_tokenizer
from imagen_jax.commands.command_line import (
    ROLE,
    Output,
    make_parser,
    names,
    numbers,
    one_line_errors,
    prompt,
    sources,
    use_plain_messages,
    use_tolerant_output,
)
from imagen_jax.commands.main import verbs
from imagen_jax.commands.other_names import SPELLINGS
from imagen_jax.pipeline import option_names
from imagen_jax.storage.folders import make_folder, output_folder
from imagen_jax.training.config import apply_overrides, load_config, split_overrides


def test_a_comma_separates_the_stages():
    assert numbers(int)("3") == 3
    assert numbers(float)("3, 1.5") == [3.0, 1.5]
    assert [names("ddim"), names(" ddim ,heun")] == ["ddim", ["ddim", "heun"]]
    for wrong in ("1,,2", "1,", ",", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="nothing before or after a comma"):
            numbers(float)(wrong)


def test_a_folder_with_a_comma_in_its_name_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources("a,b") == ["a", "b"]
    (tmp_path / "a,b").mkdir()
    assert [sources("a,b"), sources("a"), sources("a,b,c")] == ["a,b", "a", ["a", "b", "c"]]


ROOT = Path(__file__).resolve().parents[2]
COMMANDS = set(verbs())  # the files of the folder, as test_main.py says


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_a_main_that_a_script_calls(name):
    main = importlib.import_module(f"imagen_jax.commands.{name}").main
    assert list(inspect.signature(main).parameters) == ["arguments"]
    script = (ROOT / "scripts" / f"{name}.py").read_text()
    assert f"from imagen_jax.commands.{name} import main\n" in script


CALLS = [*((name,) for name in sorted(COMMANDS))]
CALLS += [("human_eval", command) for command in ("sheets", "serve", "analyse")]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_help_keeps_its_layout_and_tells_of_each_option(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    name, *rest = call
    command = importlib.import_module(f"imagen_jax.commands.{name}")
    with pytest.raises(SystemExit) as ended:
        command.main([*rest, "--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert rest or f"\n\n{command.__doc__.strip()}\n" in said
    assert "\\\\" not in said
    assert "%%" not in said
    assert max(map(len, said.splitlines())) <= 100
    alone = re.findall(r"^  (-\S.*)\n(?=  -|\n|$)", said, re.MULTILINE)
    assert not [line for line in alone if "  " not in line.strip()], "an option without help"


HELP_OF_ALL = """
import contextlib, importlib, sys
for package in {packages}:
    sys.modules[package] = None  # as if it were not installed
for name in {commands}:
    with contextlib.suppress(SystemExit):
        importlib.import_module("imagen_jax.commands." + name).main(["--help"])
"""


def test_help_needs_no_extra():
    packages = ["grain", "tensorboardX", "matplotlib", "resvg_py", "tensorflow", "tokenizers"]
    packages.append("torch")
    code = HELP_OF_ALL.format(packages=packages, commands=sorted(COMMANDS))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("usage:") == len(COMMANDS)


def test_a_python_without_the_packages_is_named():
    script = ROOT / "scripts" / "train.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(  # -S: without installed packages
        [sys.executable, "-S", script], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert re.match(r"error: .*python.* lacks jax, flax, ml_collections\. First: (\.|pip) ", line)


def test_warnings_and_the_log_are_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(warnings, "showwarning", None)
    use_plain_messages()
    logging.getLogger("a.b").warning("%d files are left out", 2)
    logging.getLogger("a.b").info("not told")
    warnings.showwarning("half a line", UserWarning, "a.py", 3)
    assert capsys.readouterr().err == "Warning: 2 files are left out\nWarning: half a line\n"


def test_help_tells_the_defaults_and_may_have_per_cent_signs():
    parser = make_parser("What it does, to 100 %.\n\n    an example")
    parser.add_argument("--num", type=int, default=3, help="of 95 %")
    parser.add_argument("--on", action="store_true", help="or off")
    parser.add_argument("--other", default=4, help="of it (default: a half)")
    said = parser.format_help()
    assert "What it does, to 100 %.\n\n    an example\n" in said
    assert "of 95 % (default: 3)" in said
    assert said.count("default") == 2


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", "", "--config NAME is needed"),
        ("train", "--confg=x", "unknown option --confg; did you mean --config?"),
        ("train", "--confg.seed 3", "unknown option --confg.seed; did you mean --config.seed?"),
        ("train", "--config=a --lr 1", "--lr; here it is --config.optimizer.learning_rate"),
        ("train", "--config=a --batch-size 1", "--batch-size; here it is --config.batch_size"),
        ("train", "--config=a --output_dir b", "--output_dir; here it is --workdir"),
        ("train", "--config=a --dry_run=yes", "--dry_run takes no value: 'yes'"),
        ("train", "--config=a --workdir", "--workdir needs a value"),
        ("train", "--config=a b", "unknown argument b"),
        ("pretrain_text", "--config=a --workdir=b --steps 0", "--steps: '0' must be at least 1"),
        ("embed_text", "--config=a", "--out DIR is needed"),
        ("plan", "--config=a", "--topology KIND:SHAPE is needed"),
        ("convert", "", "--model, --to, --out DIR are needed"),
        ("convert", "--model a --out b --to onnx", "--to is 'onnx'; it must be one of '?diffusers"),
        ("make_prompts", "--out a", "one of --annotations --tfds is needed"),
        ("make_prompts", "--out a --tfds --annotations b", "--annotations and --tfds do not go"),
        ("generate", "cat --num_inference_steps 3", "--num_inference_steps; here it is --steps"),
        ("generate", "cat --guidance_scale 3", "--guidance_scale; here it is --guidance"),
        ("generate", "--prompt cat", "--prompt; give prompts without an option before them"),
        ("generate", "--prompts a.txt", "--prompts; give prompts without an option before them"),
        ("generate", "cat --step 3", "unknown option --step; did you mean --steps?"),
        ("generate", "cat -steps 3", "unknown option -steps; here it is --steps"),
        ("generate", "cat --steps 3,x", "--steps: '3,x' must be a whole number, or one per stage"),
        ("generate", "cat --guidance 1,,2", "--guidance: '1,,2' has nothing before or after a c"),
        ("generate", "cat --num_images x", "--num_images: 'x' must be a whole number"),
        ("evaluate", "--dtype", "--dtype needs a value"),
        ("human_eval", "sheets --aa", "unknown option --aa"),
        ("human_eval", "sheet", "command is 'sheet'; it must be one of '?sheets"),
        ("scaling", "--x", "unknown option --x"),
    ],
)
def test_a_wrong_option_is_one_line(name, arguments, said, capsys):
    command = importlib.import_module(f"imagen_jax.commands.{name}")
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{said.replace('?', '.?')}.*; see --help$", line), line


def test_what_begins_with_a_dash_may_be_text():
    parser = make_parser("It reads text.")
    parser.add_argument("texts", nargs="*", type=str)
    parser.add_argument("--shift", type=float, help="a number")
    assert parser.parse_args(["a", "--", "--b", "-c"]).texts == ["a", "--b", "-c"]
    assert parser.parse_args(["-a cat", "--shift", "-1e-3"]).shift == -1e-3
    parser.add_argument("--levels", type=numbers(float), help="numbers")
    assert parser.parse_args(["--levels", "-1,-.5"]).levels == [-1, -0.5]


def test_names_of_others_lead_to_options_and_keys_that_are_there():
    options = {"config"}
    for name in COMMANDS:
        command = importlib.import_module(f"imagen_jax.commands.{name}")
        if hasattr(command, "parser"):
            options |= {action.dest for action in command.parser()._actions}
    config = load_config(ROOT / "configs" / "folder_64.py")
    for ours in SPELLINGS:
        first, _, key = ours.partition(".")
        assert first in {*options, *option_names.SPELLINGS}
        if key:
            apply_overrides(config, {key: "1"})
    with pytest.raises(
        ValueError, match=r"optimizer\.lr; here it is --config\.optimizer\.learning"
    ):
        apply_overrides(config, {"optimizer.lr": "1"})
    with pytest.raises(ValueError, match=r"unknown key --config\.epochs; .* --config\.num_steps"):
        apply_overrides(config, {"epochs": "1"})
    del config.stage.network["dtype"]  # what a config leaves to its default can be set
    apply_overrides(config, {"stage.network.dtype": "float32"})
    assert config.stage.network.dtype == "float32"


def test_a_key_of_the_config_without_a_value_takes_no_option_for_it():
    assert split_overrides(["--config.seed", "-1"]) == ([], {"seed": "-1"})
    for arguments in (["--config.seed"], ["--config.seed", "--workdir=a"]):
        with pytest.raises(ValueError, match=r"--config\.seed needs a value"):
            split_overrides(arguments)


def test_a_tokenizer_is_trained_on_any_list(tmp_path):
    lists = {"a.txt": "a cat\na dog\n", "a.csv": 'File,Caption\n1,"a cat"\n2,a dog\n'}
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        options = f"--input {tmp_path / name} --output {tmp_path / name}.model --vocab_size 300"
        train_tokenizer.main(options.split())
    models = [(tmp_path / f"{name}.model").read_bytes() for name in lists]
    assert models[0] == models[1]
    (tmp_path / "a.csv").write_text("caption\na cat, asleep\n")
    with pytest.raises(SystemExit, match=r"^error: \S+a\.csv, line 2: it has 2 columns"):
        train_tokenizer.main(options.split())


def test_a_command_tells_a_mistake_in_one_line(tmp_path):
    arguments = ["--input", str(tmp_path / "none.txt"), "--output", str(tmp_path / "out.model")]
    with pytest.raises(SystemExit, match=r"^error: there is no .*none.txt"):
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
    [
        ("grain", r"pip install 'imagen_jax[train]'"),
        ("seqio", r"pip install 'imagen_jax[seqio]'"),
        ("qwix", r"pip install 'imagen_jax[quantize]'"),
    ],
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


def test_no_text_ends_a_command_and_no_closed_output(monkeypatch, capsys):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    use_tolerant_output()
    for stream in (sys.stdout, sys.stderr):
        print("\udce9 红", file=stream, flush=True)
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_output_whose_reader_is_gone_is_dropped():
    reading, writing = os.pipe()
    os.close(reading)
    with Output(open(writing, "wb"), encoding="ascii", errors="backslashreplace") as output:
        for _ in range(3):
            print("红" * 10_000, file=output, flush=True)


def test_output_that_is_read_has_what_its_encoding_lacks_as_escapes(tmp_path):
    file = tmp_path / "log"
    with Output(file.open("wb"), encoding="cp1252", errors="backslashreplace") as output:
        print("café 红 \udce9", file=output)
    assert file.read_bytes().split() == [b"caf\xe9", rb"\u7ea2", rb"\udce9"]


def test_a_prompt_in_bytes_that_the_system_does_not_know_is_utf8():
    assert prompt("红苹果") == "红苹果"
    assert prompt("红 a".encode().decode("ascii", "surrogateescape")) == "红 a"
    for odd in ("caf\udce9", "\ud83d"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not text in UTF-8"):
            prompt(odd)


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

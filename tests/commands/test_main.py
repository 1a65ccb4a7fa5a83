"""The command `imagen-jax`: its verbs, its help, and the completion of shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax import __version__
from imagen_jax.commands import main

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"__init__", "command_line", "main", "other_names"}


@pytest.fixture(autouse=True)
def program(monkeypatch):
    """`main` names the program for argparse."""
    monkeypatch.setattr(sys, "argv", ["imagen-jax"])


def test_every_file_of_the_folder_is_a_verb_and_in_the_help(capsys):
    files = {path.stem for path in (ROOT / "imagen_jax" / "commands").glob("*.py")} - SHARED
    assert set(main.verbs()) == files
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        main.main(arguments)
        said = capsys.readouterr().out
        assert all(f"\n  {verb} " in said for verb in files)
        assert max(map(len, said.splitlines())) <= 80


def test_a_verb_is_called_by_its_name_with_underscores_or_dashes(capsys):
    for call in (["save_model", "--help"], ["SAVE-model", "-h"], ["help", "save_model"]):
        with pytest.raises(SystemExit) as ended:
            main.main(call)
        assert not ended.value.code
        assert capsys.readouterr().out.startswith("usage: imagen-jax save_model [-h]")


def test_what_is_no_verb_is_told_in_one_line():
    for wrong, said in (("generat", "did you mean 'generate'"), ("zzz", "known: generate,")):
        with pytest.raises(SystemExit, match=f"^error: there is no command '{wrong}'.*{said}"):
            main.main([wrong])
    with pytest.raises(SystemExit, match=r"^error: unknown option '-v'; see"):
        main.main(["-v"])


def test_the_version_is_the_packages(capsys):
    main.main(["--version"])
    assert capsys.readouterr().out == f"imagen_jax {__version__}\n"


@pytest.mark.parametrize("shell", main.SHELLS)
def test_every_shell_gets_a_script_of_all_options(shell, capsys):
    main.main(["completion", shell])
    said = capsys.readouterr().out
    assert all(verb in said for verb in main.verbs())
    assert "negative_prompt" in said
    assert "icons_base64_cpu" in said


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = (
        f'source "{script}"; complete -p imagen-jax >/dev/null; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); f=$(complete -p imagen-jax | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
        '$f imagen-jax "${COMP_WORDS[-1]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ["bash", "--norc", "-c", line, "bash", *words], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_options_and_configs(tmp_path, capsys):
    main.main(["completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "imagen-jax", "gen") == {"generate"}
    assert completed(script, "imagen-jax", "completion", "z") == {"zsh"}
    assert " -o default " in script.read_text()  # files, where none of ours fits
    assert "--negative_prompt" in completed(script, "imagen-jax", "generate", "--neg")
    offered = completed(script, "imagen-jax", "train", "--config", "icons_base64_")
    assert offered == {"icons_base64_cpu"}


def test_the_overview_and_a_mistake_need_no_jax():
    code = "import sys; sys.modules['jax'] = sys.modules['flax'] = None; "
    code += "from imagen_jax.commands.main import main; main(sys.argv[1:])"
    for arguments, said in (([], "Usage: imagen-jax VERB"), (["trian"], "did you mean 'train'")):
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert said in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr

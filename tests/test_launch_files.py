"""The launch files are sound, and give scripts/train.py only flags that it has."""

import re
import subprocess
from pathlib import Path

import pytest

from imagen_jax.commands.train import parser

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
FILES = sorted(LAUNCH.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_flags_exist(path: Path):
    lines = re.findall(r"train\.py .*|^ +- --.*", path.read_text(), re.M)
    found = re.findall(r"--([a-z_]+)", "\n".join(lines))
    assert lines
    assert {f"--{name}" for name in found} <= set(parser()._option_string_actions)


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch"])
def test_shell_scripts_parse(name: str):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_arguments_reach_the_hosts_as_they_are(tmp_path):
    """Through ssh's shell, quotes and all."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nfor last; do :; done\nprintf "%s" "$last"\n')
    gcloud.chmod(0o755)
    arguments = ["--config=a b.py", "--config.sample={'steps': 2}"]
    done = subprocess.run(
        ["bash", str(LAUNCH / "tpu_pod.sh"), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NAME": "pod", "ZONE": "here"},
        capture_output=True,
        text=True,
        check=True,
    )
    command = re.search(r"train\.py --distributed (.*)", done.stdout, re.S)[1]
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\n' {command}"], capture_output=True, text=True
    )
    assert told.stdout.splitlines() == arguments


def test_the_number_of_hosts_is_one_number():
    text = (LAUNCH / "jobset.yaml").read_text()
    numbers = re.findall(r"(?:parallelism|completions): (\d+)|--num_processes=(\d+)", text)
    assert {first or second for first, second in numbers} == {"4"}
    assert len(numbers) == 3

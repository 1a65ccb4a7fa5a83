"""The folder of a hosted space: what it asks for, and that it starts the page from its wheel."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "space"


def lines(path: Path) -> set[str]:
    return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}


def test_it_asks_for_what_the_package_needs():
    asked = lines(SPACE / "requirements.txt")
    (gradio,) = re.findall(
        r'^app = \["(gradio[^"]*)"\]', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert asked == lines(ROOT / "requirements.txt") | {gradio}
    _, header, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert (fields["sdk"], fields["app_file"]) == ("gradio", "app.py")
    assert fields["sdk_version"] == gradio.partition(">=")[2]


def test_it_starts_the_page_from_the_wheel_beside_it(tmp_path: Path):
    (tmp_path / "app.py").write_bytes((SPACE / "app.py").read_bytes())
    with zipfile.ZipFile(tmp_path / "imagen_jax-9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("imagen_jax/__init__.py", "")
        wheel.writestr("imagen_jax/commands/__init__.py", "")
        wheel.writestr("imagen_jax/commands/app.py", "def main(given): print(*given)")
    command = [sys.executable, "-I", "-S", "app.py"]  # without what is installed here
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--host 0.0.0.0 --port 7860 --fixed_models")
    from imagen_jax.commands import app

    options = app.parser().parse_args(done.stdout.split())
    assert options.fixed_models

"""A machine's accelerator that JAX does not see is told, with what to install."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest

from imagen_jax.devices import accelerators
from imagen_jax.devices.accelerators import unused_accelerator


@pytest.fixture(autouse=True)
def any_platform(monkeypatch):
    """As for a user who did not choose a platform, on a machine without a plug-in."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(accelerators, "_has_cuda", lambda: False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    yield
    jax.config.update("jax_platforms", before)


def make(machine: Path, *files: str, content: str = "") -> Path:
    for file in files:
        (machine / file).parent.mkdir(parents=True, exist_ok=True)
        (machine / file).write_text(content)
    return machine


@pytest.mark.parametrize(
    "file", ["dev/nvidia0", "proc/driver/nvidia/gpus/0000:01:00.0", "usr/lib/wsl/lib/nvidia-smi"]
)
def test_an_nvidia_gpu_without_cuda_names_the_extra(tmp_path, file):
    assert unused_accelerator(make(tmp_path, file)).endswith(
        "has an NVIDIA GPU, which JAX does not see: pip install 'imagen_jax[cuda]'"
    )


def test_a_tpu_without_libtpu_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators.importlib.util, "find_spec", lambda name: None)
    assert unused_accelerator(make(tmp_path, "dev/accel0")).endswith("'imagen_jax[tpu]'")


def test_with_the_plug_in_installed_jax_itself_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators, "_has_cuda", lambda: True)
    told = unused_accelerator(make(tmp_path, "dev/nvidia0"))
    assert "its own warning says why" in told
    assert "pip" not in told


def test_nothing_is_told_without_a_reason(tmp_path, monkeypatch):
    assert unused_accelerator(tmp_path) is None
    make(tmp_path, "dev/nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert unused_accelerator(tmp_path) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    jax.config.update("jax_platforms", "cpu")  # chosen
    assert unused_accelerator(tmp_path) is None
    jax.config.update("jax_platforms", "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert unused_accelerator(tmp_path) is None


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a machine with a GPU")
@pytest.mark.parametrize("platform", ["cuda", "rocm"])  # an assertion of jax's, and an error
def test_a_platform_that_jax_does_not_have_is_one_line(platform):
    # In a process of its own: JAX looks for its devices once.
    program = "from imagen_jax.devices.accelerators import check_backend as check; check()"
    given = f"import os; os.environ['JAX_PLATFORMS'] = '{platform}'; {program}"
    done = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ValueError: JAX_PLATFORMS is '{platform}': ")
    assert "pip install 'imagen_jax[cuda]'" in error


def test_devices_are_counted_by_kind():
    gpu = mock.Mock(spec=jax.Device, device_kind="NVIDIA L4")
    assert accelerators.describe([gpu, gpu]) == "2 x NVIDIA L4"
    assert accelerators.describe(jax.devices()).startswith("CPU, ")

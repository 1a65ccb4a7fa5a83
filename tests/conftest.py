"""Shared by every test: the CPU with eight simulated devices, checked array shapes, fixed seeds."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before jax is imported. `JAX_PLATFORMS=cuda pytest -m gpu` runs the GPU tests.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"imagen_jax_tests_{os.getuid()}"),
)
# Tests compile many tiny programs and run each for moments: two thirds of their time would go into
# optimizing. Through the environment, so that the processes that tests start do the same.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know it
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import jaxtyping
import numpy as np
import pytest

# Here and not in the environment: a process that a test starts sees one device, as a user's does.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

# The shapes in annotations are checked in tests alone: a user pays nothing for them.
SHAPES = jaxtyping.install_import_hook(["imagen_jax"], "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]):
    if any(device.platform in ("gpu", "cuda", "rocm") for device in jax.devices()):
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter):
    """Prints what tests count (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def fixed_numpy_seed():
    """Code under test takes keys; this holds for libraries that draw from numpy's global state."""
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Compiled programs of a module are let go after it: together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


ICON_SETS = ROOT / "tests" / "data" / "icon_sets"


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as scripts/prepare_icons.py makes it, of 19 icons: 15 train, 2 pair, 2 held out."""
    pytest.importorskip("resvg_py", reason="resvg_py is not installed (extra icons)")
    from imagen_jax.data import icon_files, icon_sets, unicode_names
    from imagen_jax.data.icons import list_icons

    if unicode_names.missing_tables():
        pytest.skip(f"the icons' names need apt: {unicode_names.DEBIAN_PACKAGES}")
    folder = tmp_path_factory.mktemp("data") / "icons"
    sets = icon_sets.read_sets(icon_sets.find_sets(ICON_SETS))
    icon_files.write_set(folder, sets, list_icons(sets), [32, 64, 256], threads=2)
    return folder

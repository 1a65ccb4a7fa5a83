"""A tiny random model and a tiny set of emoji for scripts/evaluate.py."""

import numpy as np
import pytest
import stand_in
from tiny_cascade import tiny_pipeline

from imagen_jax.evaluation import inputs, shards
from imagen_jax.evaluation import networks as network_files

COUNT, SIDE, LONELY = 12, 8, 3  # image LONELY has no Chinese name


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """12 images, eight of them to train on; the last two are identical, thus one class."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    image[-1] = image[-2]
    label = np.minimum(np.arange(COUNT, dtype=np.int32), COUNT - 2)
    path = tmp_path_factory.mktemp("data") / "emoji.npz"
    np.savez(
        path,
        image=image,
        label=label,
        split=np.where(np.arange(COUNT) < 8, "train", "heldout"),
        key=np.asarray([f"1F{i:03d}" for i in range(COUNT)]),
        name_en=np.asarray([f"thing {i}" for i in range(COUNT)]),
        name_zh=np.asarray(["" if i == LONELY else f"物{i}" for i in range(COUNT)]),
        variant=np.arange(COUNT) % 2 == 0,
    )
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True, scope="session")
def one_device():
    """Images are generated on one device: programs for eight take long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "all_devices", lambda: None)
        yield


@pytest.fixture
def networks(monkeypatch):
    """Stand-ins in place of what --features names; they remember what they have seen."""
    made = {
        "inception": stand_in.inception(seen=[]),
        "clip": stand_in.clip(seen=[]),
        "dinov2": stand_in.dinov2(seen=[]),
    }
    monkeypatch.setattr(
        inputs, "read_extractors", lambda features, resizes: tuple(made[name] for name in features)
    )
    monkeypatch.setattr(network_files, "find_network", made.__getitem__)
    monkeypatch.setattr(shards, "CHUNK", 4)
    return made

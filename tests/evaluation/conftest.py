"""A tiny random model, and small sets of images that look like nothing, for the evaluations."""

import itertools
import json

import numpy as np
import pytest
import stand_in
from tiny_cascade import tiny_pipeline

from imagen_jax.evaluation import inputs, shards
from imagen_jax.evaluation import networks as network_files

STYLES = ("noto", "flat", "outline")
THINGS = 60


@pytest.fixture(scope="session")
def icons(tmp_path_factory):
    """A folder with 60 things in three styles, blocks of color at 64 pixels.

    Of each style the last things are held out, some pairs are, and every fifth thing is a variant
    of the one before. The first two things look the same in flat, and every eleventh has no
    Chinese name.
    """
    rng = np.random.default_rng(0)
    rows = list(itertools.product(STYLES, range(THINGS)))
    style, thing = (np.array(column) for column in zip(*rows, strict=True))
    image = rng.integers(0, 256, (len(rows), 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    image[(style == "flat") & (thing == 1)] = image[(style == "flat") & (thing == 0)]
    split = np.where(thing >= 54, "heldout", "train")
    split[(thing % 6 == 2) & (style == np.array(STYLES)[thing // 6 % 3]) & (thing < 54)] = "pair"
    folder = tmp_path_factory.mktemp("icons")
    np.savez(
        folder / "icons64.npz",
        image=image,
        captions=np.frombuffer(
            json.dumps([[[f"thing {i}, {s} style", 1.0]] for s, i in rows]).encode(), np.uint8
        ),
        key=np.array([f"{s}/thing-{i}" for s, i in rows]),
        split=split,
        style=style,
        family=np.array([f"thing {i - (i % 5 == 4)}" for _, i in rows]),
        variant=thing % 5 == 4,
        name_en=np.array([f"thing {i}" for _, i in rows]),
        name_zh=np.array(["" if i % 11 == 3 else f"物{i}" for _, i in rows]),
    )
    return folder


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """An npz file of 12 noisy images of 8 pixels with captions, eight of them to train on."""
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    path = tmp_path_factory.mktemp("data") / "captioned.npz"
    split = np.where(np.arange(12) < 8, "train", "heldout")
    np.savez(path, image=image, captions=np.array([f"no {i}" for i in range(12)]), split=split)
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

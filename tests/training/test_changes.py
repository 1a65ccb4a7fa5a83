"""A resumed run says what it does otherwise than it began."""

import json

import numpy as np
import pytest

from imagen_jax.data.sources import ArraySource
from imagen_jax.storage.codec import to_dict
from imagen_jax.training.changes import say_changes
from imagen_jax.training.run_config import read_config
from tests.training import toy
from tests.training.test_config import tiny


def tiny_images(count):
    return np.zeros((count, 8, 8, 3), np.uint8)


def warnings(before, now, images=None, saved_images=None):
    """What is said where a run of the config `before` goes on with the config `now`."""
    said = []
    saved = json.loads(json.dumps({"config": to_dict(before)}))  # as a checkpoint keeps it
    if saved_images is not None:
        saved["images"] = saved_images
    say_changes(read_config(now), images, saved, said.append)
    return said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"num_steps": "100", "log_every": "1", "checkpoint__every": "9"}, []),
        ({"sample": "{'steps': 7, 'prompts': ['a']}", "stage__network__remat": "True"}, []),
        ({"batch_size": "4"}, ["batch_size was 8 and is 4 now: the images come in another order"]),
        ({"seed": "1"}, ["seed was 3 and is 1 now"]),
        (
            {"stage__prediction": "eps", "optimizer__learning_rate": "1e-5"},
            ["stage.prediction was 'v' and is 'eps', optimizer.learning_rate was 0.001 and is 1e-"],
        ),
        ({"ema_decay": "None"}, ["ema_decay was 0.9 and is None"]),
        ({"ema": "{}"}, ["ema.widths was None and is [0.05, 0.1]"]),
        # a key that neither config has
        ({"optimizer__clip_norm": "1.0"}, ["optimizer.clip_norm was None and is 1.0"]),
        ({"stage__schedule__kind": "linear_beta"}, ["schedule.kind was 'cosine' and is 'linear_"]),
        ({"data__flip": "True"}, ["data.flip was False and is True"]),
    ],
)
def test_what_has_changed_in_the_config_is_told(changes, told):
    said = warnings(tiny(), tiny(**changes))
    assert len(said) == len(told)
    assert all(part in line for part, line in zip(told, said, strict=True))


def test_when_snapshots_are_written_may_change():
    before = tiny(ema="{}")
    assert not warnings(before, tiny(ema="{'every': 7, 'dtype': 'float16'}"))
    (said,) = warnings(before, tiny(ema="{'widths': [0.05, 0.12]}"))
    assert "ema.widths was " in said


def test_another_number_of_images_is_told():
    images = ArraySource(tiny_images(5))
    assert not warnings(tiny(), tiny(), images, 5)
    assert not warnings(tiny(), tiny(), images)  # of an earlier version
    (said,) = warnings(tiny(), tiny(), images, 4)
    assert "the number of images was 4 and is 5 now" in said


@pytest.mark.parametrize("saved", [{}, {"config": {}}, {"config": {"batch_size": 16, "new": 1}}])
def test_what_another_version_saved_is_no_change(saved):
    said = []
    say_changes(toy.make_config(), None, saved, said.append)
    assert not said


def test_a_run_keeps_the_number_of_its_images(tmp_path):
    said = []
    for count in (5, 5, 6):
        toy.run(tmp_path, steps=2 * count, source=ArraySource(tiny_images(count)), say=said.append)
        toy.run(
            tmp_path, steps=2 * count + 1, source=ArraySource(tiny_images(count)), say=said.append
        )
    assert sum("number of images was 5 and is 6" in line for line in said) == 1

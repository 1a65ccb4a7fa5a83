"""Fingerprints: they change with what they stand for, and stay as files have them."""

import numpy as np
from tiny_cascade import CASCADE, random_params

from imagen_jax.storage import fingerprints


def test_the_fingerprint_of_parameters_changes_with_them():
    params = random_params(CASCADE)
    before = fingerprints.of_parameters(params)
    assert before == fingerprints.of_parameters(random_params(CASCADE))
    params["sr"]["conv_in"]["bias"][0] += 1e-6
    assert fingerprints.of_parameters(params) != before
    scalar = {"part": {"w": np.float32(1)}}
    assert len(fingerprints.of_parameters(scalar)) == 16


def test_they_stay_as_files_have_them(tmp_path):
    """Written down from version 0.1.0: references, models and reports hold such digits."""
    assert fingerprints.of_bytes(b"emoji") == "4030f0c0b99ba5e1"
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert fingerprints.of_files([tmp_path / "b", tmp_path / "a"]) == "e5a01fee14e0ed5c"
    params = {"part": {"w": np.arange(3, dtype=np.float32), "b": np.float32(2)}}
    assert fingerprints.of_parameters(params) == "3634557f21e2cf31"

"""FID's Inception against torch-fidelity's, on random weights."""

import jax
import numpy as np
import pytest
from feature_references import (
    photographs,
    random_state,
    reference_features,
    reference_inception,
    relative_error,
    save_pth,
)

from imagen_jax.convert.inception import params_from_pytorch
from imagen_jax.evaluation.resizing import legacy_tensorflow
from imagen_jax.models import inception


@pytest.fixture(scope="module")
def state():
    return random_state()


def test_features_and_logits_are_torch_fidelitys(state, tmp_path):
    images = list(photographs().values())
    reference = reference_inception(save_pth(tmp_path / "w.pth", state), "2048", "logits")
    pooled, logits = reference_features(reference, images)
    images = np.stack([legacy_tensorflow(one, inception.SIDE) for one in images])
    ours = jax.jit(inception.apply)(params_from_pytorch(state), (images - 128) / 128)
    assert relative_error(ours.pooled, pooled) < 1e-5
    assert relative_error(ours.logits, logits) < 1e-5
    # Random weights tell images apart: the agreement is not of constants.
    assert relative_error(pooled[:1], pooled[1:2]) > 0.01

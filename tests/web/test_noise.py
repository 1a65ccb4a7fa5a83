"""The page's noise is that of jax, for random seeds."""

import numpy as np
import pytest

from imagen_jax.cascade.cascade import stage_keys
from imagen_jax.cascade.sample import AUGMENTATION_INDEX
from imagen_jax.diffusion.samplers import noise_from_keys
from tests.web.node import WEB, needs_node, run_node

pytestmark = needs_node
RANDOM_SEED = int(np.random.default_rng().integers(2**32))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, RANDOM_SEED], ids=["0", "largest", "random"])
def test_noise_of_a_seed_is_that_of_jax(seed: int):
    rng = np.random.default_rng()
    index, stage, which = (int(n) for n in rng.integers([9, 3, AUGMENTATION_INDEX + 1]))
    keys = stage_keys(np.uint32(seed), np.array([index], np.uint32), np.uint32(stage))
    wanted = np.ravel(noise_from_keys(keys, (64, 32, 3))(which))
    found = run_node(
        "noise.js",
        "stageNoise",
        [seed, index, stage, which],
        "const [seed, index, stage, which] = given;"
        "return [...stageNoise(seed, index, stage)(which, 64 * 32 * 3)];",
    )
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)
    np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_the_low_resolution_inputs_noise_has_the_same_index():
    worker = (WEB / "worker.js").read_text(encoding="utf-8")
    assert f"const AUGMENTATION = {AUGMENTATION_INDEX};" in worker

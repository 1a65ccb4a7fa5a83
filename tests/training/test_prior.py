"""Prior preservation in the config and in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, ENCODER, random_params

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.text import encoder as text_room
from imagen_jax.training import batches, build
from imagen_jax.training.run_config import PriorConfig, read_config
from imagen_jax.training.state import NETWORK, TEXT_ENCODER, Frozen
from imagen_jax.training.step import mean_losses, sample_batch_times
from tests.training.test_config import tiny
from tests.training.whole_loss import make_loss

PRIOR = {"source": "folder", "path": "dogs", "prompt": "a dog", "split": "all"}


def settings(**changes):
    section = {"source": "folder", "path": "mine", "split": "all", "prompt": "a sks dog"}
    return {"data": repr(section | {"num_threads": 1, "prior": PRIOR | changes})}


def test_the_loss_is_the_weighted_sum_of_two_means():
    losses = jnp.asarray([1.0, 3.0, 10.0, 20.0, 30.0])
    parts = mean_losses(losses, PriorConfig("memory", share=0.6, weight=0.5))
    assert {name: float(value) for name, value in parts.items()} == {
        "loss": 12.0,
        "loss_instance": 2.0,
        "loss_prior": 20.0,
    }
    assert set(mean_losses(losses, None)) == {"loss"}


def test_both_sets_see_all_times(key):
    """Each set by itself has one time in each of as many equal parts as it has rows."""
    times = np.asarray(sample_batch_times(key, 24, BASE, PriorConfig("memory", share=1 / 3)))
    np.testing.assert_array_equal(np.sort((times[:16] * 16).astype(int)), np.arange(16))
    np.testing.assert_array_equal(np.sort((times[16:] * 8).astype(int)), np.arange(8))


def test_the_gradient_is_that_of_the_sum(rng):
    """Of the whole loss by autodiff, and of its parts by loss an example and weight."""
    cascade = Cascade((BASE,), (Sampling("ddpm", steps=4),), ENCODER)
    params = random_params(cascade)
    params = {NETWORK: params["base"], TEXT_ENCODER: params[TEXT_ENCODER]}
    ids, mask = text_room.tokenize(ENCODER, [f"dog {i}" for i in range(5)])
    batch = {"image": rng.integers(0, 256, (5, 4, 4, 3), np.uint8), "ids": ids, "mask": mask}
    batch = jax.tree.map(jnp.asarray, batch)
    prior = PriorConfig("memory", share=0.4, weight=0.3)
    loss, key = make_loss(BASE, ENCODER, 0.0, prior), jax.random.key(1)
    weights = jnp.asarray([1 / 3, 1 / 3, 1 / 3, 0.15, 0.15])

    @jax.jit
    def gradients(params):
        whole = jax.grad(lambda p: loss(p, batch, key, Frozen())[0])(params)
        parts = jax.grad(lambda p: weights @ loss(p, batch, key, Frozen())[1][0])(params)
        return whole, parts

    whole, parts = gradients(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max()),
        whole,
        parts,
    )


def folder(path, count: int, value: int):
    path.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path / f"{i}.png")
    return str(path)


def test_two_folders_without_captions_become_batches(tmp_path):
    mine, dogs = folder(tmp_path / "mine", 3, 10), folder(tmp_path / "dogs", 5, 200)
    config = read_config(tiny(**settings(path=dogs, share=0.25, weight=0.7), data__path=repr(mine)))
    assert config.data.prior.weight == 0.7
    encoder = build.make_text_encoder(config)
    batch = next(batches.make_batches(config, encoder)(0, None))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [10] * 6 + [200] * 2)
    ids, mask = text_room.tokenize(encoder, ["a sks dog"] * 6 + ["a dog"] * 2)
    np.testing.assert_array_equal(batch["ids"], ids)
    np.testing.assert_array_equal(batch["mask"], mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.01}, "data.prior.share 0.01 of batch_size 8 is 0 images"),
        ({"share": 1.0}, "share must be between 0 and 1, not 1.0"),
        ({"weight": 0.0}, "weight must be positive"),
        ({"source": "fodler"}, "config.data.prior: source is 'fodler'; did you mean 'folder'"),
        (
            {"wieght": 1.0},
            "config.data.prior: unknown key 'wieght' for source 'folder'; did you mean 'weight'",
        ),
    ],
)
def test_a_mistake_in_the_section_is_named(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_config(tiny(**settings(**changes)))
    assert message in str(caught.value)


def test_a_stream_has_no_prior():
    with pytest.raises(ValueError, match="is a stream"):
        read_config(tiny(**settings(), data__source="seqio"))

"""Feature extraction from files to figures: FID and KID of folders of images by torch-fidelity's
network, more devices, sizes and parts.
"""

from dataclasses import replace
from pathlib import Path

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
    torch_fidelity,
)
from jax.sharding import Mesh

from imagen_jax.convert.inception import params_from_pytorch
from imagen_jax.evaluation import features
from imagen_jax.evaluation.distances import frechet_distance, kernel_distance, statistics_of
from imagen_jax.evaluation.features import FeatureNetwork, make_extractor
from imagen_jax.models import clip

BATCH = 4
CLIP = clip.ClipConfig(
    clip.TowerConfig(16, 2, 1, 24), clip.TowerConfig(16, 2, 1, 24), 12, 32, 8, 50, 9, 49
)


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def params(state):
    return params_from_pytorch(state)


@pytest.fixture(scope="module")
def clip_params():
    return jax.jit(lambda key: clip.init(CLIP, key))(jax.random.key(0))


def one_device() -> Mesh:
    return Mesh(np.asarray(jax.devices()[:1]), ("data",))


def inception(params, mesh=None, **settings):
    mesh = one_device() if mesh is None else mesh
    network = FeatureNetwork("inception", None, params)
    return make_extractor(network, mesh=mesh, batch_size=BATCH, **settings)


def tiny_clip(params, mesh=None, **settings):
    mesh = one_device() if mesh is None else mesh
    network = FeatureNetwork("tiny", CLIP, params)
    return make_extractor(network, mesh=mesh, batch_size=BATCH, **settings)


def crops(count: int, side: int, seed: int) -> list[np.ndarray]:
    """Pieces of the photographs, as images of one distribution; a seed's have their own tint."""
    rng, sources = np.random.default_rng(seed), list(photographs().values())
    tint = rng.uniform(0.6, 1, 3)
    pieces = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (int(rng.integers(0, size - side)) for size in source.shape[:2])
        pieces.append((source[top : top + side, left : left + side] * tint).astype(np.uint8))
    return pieces


def compare(extractor, reference, count: int, dim: int = 2048):
    """FID and KID of two sets by both implementations, to 0.1 %; of the first `dim` features."""
    sets = [crops(count, 64, seed) for seed in (1, 2)]
    ours = [extractor.images(images) for images in sets]
    statistics = [statistics_of(features[:, :dim]) for features in ours]
    theirs = [reference_features(reference, images)[0] for images in sets]
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-5
    import torch

    fid, kid = torch_fidelity("metric_fid"), torch_fidelity("metric_kid")
    expected = [
        fid.fid_features_to_statistics(torch.tensor(each[:, :dim]).double()) for each in theirs
    ]
    expected = fid.fid_statistics_to_metric(*expected, False)[fid.KEY_METRIC_FID]
    np.testing.assert_allclose(frechet_distance(*statistics), expected, rtol=1e-3)
    size = count // 2
    expected = kid.kid_features_to_metric(
        *map(torch.tensor, theirs), kid_subsets=10, kid_subset_size=size, verbose=False
    )
    mean, std = kernel_distance(*ours, subsets=10, subset_size=size)
    np.testing.assert_allclose(mean, expected[kid.KEY_METRIC_KID_MEAN], rtol=1e-3)
    np.testing.assert_allclose(std, expected[kid.KEY_METRIC_KID_STD], rtol=1e-2)


def test_fid_and_kid_are_torch_fidelitys(state, params, tmp_path):
    reference = reference_inception(save_pth(tmp_path / "w.pth", state), "2048")
    compare(inception(params), reference, 6, dim=256)


@pytest.mark.slow
def test_fid_and_kid_of_500_images_are_torch_fidelitys(state, params, tmp_path):
    reference = reference_inception(save_pth(tmp_path / "w.pth", state), "2048")
    compare(inception(params), reference, 500)


def test_eight_devices_give_the_same(clip_params):
    images = crops(16, 48, 3)
    one = tiny_clip(clip_params).images(images)
    eight = tiny_clip(clip_params, Mesh(np.asarray(jax.devices()), ("data",))).images(images)
    assert relative_error(eight, one) < 1e-6
    a, b, other = statistics_of(one), statistics_of(eight), statistics_of(one[::2, ::-1])
    np.testing.assert_allclose(frechet_distance(a, other), frechet_distance(b, other), rtol=1e-6)


def test_sizes_batches_and_order_do_not_matter(clip_params):
    """Each image's features are its own, whatever it comes with."""
    images = [*list(photographs().values())[:2], *crops(3, 32, 5)]
    extractor = tiny_clip(clip_params)
    together = extractor.images(images)
    assert together.shape == (5, 12)
    assert together.dtype == np.float32
    alone = np.concatenate([extractor.images(images[:2]), extractor.images(images[2:])])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extractor.images(images[::-1])[::-1], together, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(extractor.images(np.stack(images[2:])), alone[2:])
    assert extractor.images([]).shape == (0, 12)


def test_resizes_differ_and_are_told(params):
    images = list(photographs().values())[:2]
    each = {
        name: inception(params, resize=name)
        for name in ("legacy_tensorflow", "pytorch_fid", "clean")
    }
    found = {name: extractor.images(images) for name, extractor in each.items()}
    assert relative_error(found["clean"], found["legacy_tensorflow"]) > 1e-3
    assert relative_error(found["pytorch_fid"], found["legacy_tensorflow"]) > 1e-3
    for name, extractor in each.items():
        assert extractor.describe() == {
            "kind": "inception", "name": "inception", "fingerprint": extractor.fingerprint,
            "resize": name,
            "side": 299, "dim": 2048,
        }  # fmt: skip


def test_clip_reads_images_and_texts(clip_params, rng, monkeypatch):
    def tokenize(texts):
        ids = np.full((len(texts), 9), 49, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = [ord(letter) - ord("a") for letter in text]
        return ids

    monkeypatch.setattr(features, "tokenize", lambda *sizes: tokenize(sizes[-1]))
    extractor = replace(tiny_clip(clip_params), directory=Path("tokenizer"))
    images = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(4)]
    shares = jax.numpy.asarray(np.stack(images), np.float32) / 255
    expected = jax.jit(clip.embed_images, static_argnums=0)(CLIP, clip_params, shares)
    assert relative_error(extractor.images(images), expected) < 1e-5
    texts = ["a", "abc", "dog", "cab", "a"]
    ids = jax.numpy.asarray(tokenize(texts))
    expected = jax.jit(clip.embed_texts, static_argnums=0)(CLIP, clip_params, ids)
    assert relative_error(extractor.texts(texts), expected) < 1e-5
    assert extractor.kind == "clip"
    assert extractor.dim == 12
    with pytest.raises(ValueError, match="give a list"):
        extractor.texts("abc")


def test_bad_values_are_named(params, rng):
    extractor = inception(params)
    sound = rng.integers(0, 256, (9, 9, 3), np.uint8)
    for wrong in (sound.astype(np.float32), sound[..., :1], sound[..., 0], sound[:0]):
        with pytest.raises(ValueError, match="Image 1 is"):
            extractor.images([sound, wrong])
    with pytest.raises(ValueError, match="reads no text"):
        extractor.texts(["a"])
    with pytest.raises(ValueError, match="no resize 'lanczos'; it has legacy_tensorflow"):
        inception(params, resize="lanczos")
    with pytest.raises(ValueError, match="batch_size is 0"):
        make_extractor(FeatureNetwork("inception", None, params), batch_size=0)

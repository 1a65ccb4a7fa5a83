"""Concepts in images: diffusers' safety checker and transformers' CLIP give the same."""

import json

import numpy as np
import pytest
from checkers import make_checker, make_clip, old_names, pixel_values

from imagen_jax.pipeline.image_filter import Concept, read_image_filter

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Of many looks, so that their embeddings differ: noise about random means."""
    rng = np.random.default_rng()
    means = rng.integers(0, 256, (21, 1, 1, 3))
    return np.clip(means + rng.normal(0, 60, (21, 40, 40, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def checker(tmp_path_factory, images):
    directory = tmp_path_factory.mktemp("checker")
    return directory, make_checker(directory, np.random.default_rng(), images)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_cosines_are_diffusers(checker, images):
    directory, theirs = checker
    ours, special = read_image_filter(directory, None, None).cosines(images)
    embeddings = theirs.visual_projection(theirs.vision_model(pixel_values(images))[1])
    cosine = torch.nn.functional.cosine_similarity
    for found, concepts in ((ours, theirs.concept_embeds), (special, theirs.special_care_embeds)):
        wanted = cosine(embeddings[:, None], concepts[None], dim=-1).detach().numpy()
        assert relative(found, wanted) < 1e-5


def test_decisions_are_diffusers(checker, images):
    """Which images are found at all, and by which concepts; special ones among them."""
    directory, theirs = checker
    ours = read_image_filter(directory, None, None).scores(images)
    blank = [np.ones((2, 2, 3)) for _ in images]
    _, found = theirs(clip_input=pixel_values(images), images=blank)
    assert [bool(scores.found) for scores in ours] == found
    assert [not image.any() for image in blank] == found
    special = [scores.special_found for scores in ours]
    assert any(special), "no special concept was found: the test says nothing of them"
    assert 0 < sum(found) < len(images)


def test_a_special_concept_makes_the_others_stricter(tmp_path, images, rng):
    """The same checker with special concepts that are always, and never, found."""
    make_checker(tmp_path, rng, images)
    names = [Concept(str(n)) for n in range(3)]
    always, never = (
        read_image_filter(tmp_path, None, [Concept(name.text, level) for name in names])
        for level in (-1.0, 1.0)
    )
    plain = read_image_filter(tmp_path, None, [Concept(n.text, 1.0) for n in names], 0.01)
    assert [scores.found for scores in always.scores(images)] == [
        scores.found for scores in plain.scores(images)
    ]
    assert not any(scores.special_found for scores in never.scores(images))
    assert all(len(scores.special_found) == 3 for scores in always.scores(images))


def test_an_image_is_judged_by_itself(checker, images):
    found = read_image_filter(checker[0], None, None)
    together = found.cosines(images)[0]
    alone = np.concatenate([found.cosines(images[n : n + 1])[0] for n in range(5)])
    np.testing.assert_allclose(together[:5], alone, atol=1e-6)


def test_older_names_of_the_tensors(tmp_path, images, rng):
    make_checker(tmp_path, rng, images)
    before = read_image_filter(tmp_path, None, None)
    old_names(tmp_path)
    after = read_image_filter(tmp_path, None, None)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.cosines(images[:3])[0], before.cosines(images[:3])[0])


def test_the_size_of_an_image_does_not_matter(checker, rng):
    """Others are brought to CLIP's size as transformers does it."""
    directory, theirs = checker
    wide = rng.integers(0, 256, (50, 90, 3), np.uint8)
    ours, _ = read_image_filter(directory, None, None).cosines([wide])
    embeddings = theirs.visual_projection(theirs.vision_model(pixel_values([wide]))[1])
    wanted = torch.nn.functional.cosine_similarity(embeddings, theirs.concept_embeds)
    assert relative(ours[0], wanted.detach().numpy()) < 1e-4


def test_concepts_that_are_texts(tmp_path, images):
    theirs = make_clip(tmp_path)
    transformers = pytest.importorskip("transformers")
    texts = ["a gun", "blood", "a child"]
    concepts = [Concept(text, 0.1) for text in texts]
    found = read_image_filter(tmp_path, concepts[:2], concepts[2:])
    ours, special = found.cosines(images)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        result = theirs(**ids, pixel_values=pixel_values(images))
    wanted = (result.image_embeds @ result.text_embeds.T).numpy()
    assert relative(np.concatenate([ours, special], axis=1), wanted) < 1e-5
    assert found.names == ("a gun", "blood")


def test_weights_and_concepts_that_do_not_fit(checker, tmp_path, images, rng):
    directory, _ = checker
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_image_filter(tmp_path / "none", None, None)
    with pytest.raises(FileNotFoundError, match="safetensors"):
        read_image_filter(tmp_path, None, None)
    with pytest.raises(ValueError, match="has 17 concepts, and 1 are named"):
        read_image_filter(directory, [Concept("gun")], None)
    with pytest.raises(ValueError, match=r"'gun' is 24.0; a cosine is in \[-1, 1\]"):
        Concept("gun", 24.0)
    with pytest.raises(ValueError, match="the same text"):
        read_image_filter(directory, [Concept("gun")] * 17, None)
    make_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="must say what to look for"):
        read_image_filter(tmp_path / "clip", None, None)
    with pytest.raises(ValueError, match="'gun' needs a threshold"):
        read_image_filter(tmp_path / "clip", [Concept("gun")], None)
    make_checker(tmp_path / "other", rng, images)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["projection_dim"] = 8
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="concept_embeds"):
        read_image_filter(tmp_path / "other", None, None)

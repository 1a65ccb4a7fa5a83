"""What moderation does with prompts and images of a pipeline, and where it says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkers import make_checker
from PIL import Image

from imagen_jax.app.limits import Limits
from imagen_jax.app.making import Studio
from imagen_jax.app.models import Models
from imagen_jax.commands import generate
from imagen_jax.images.image_file import read_settings
from imagen_jax.pipeline.moderation import Refused, finished_images, read_moderation
from imagen_jax.pipeline.pipeline import Pipeline
from tests.commands.in_process import call
from tests.tiny_cascade import tiny_pipeline

PROMPTS = ["a gun", "a heart", "a star"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def plain(pipeline) -> list[Image.Image]:
    return made(pipeline)


def made(pipeline: Pipeline, **options) -> list[Image.Image]:
    return pipeline.generate_images(PROMPTS, 2, 4, seed=1, progress=False, batch_size=3, **options)


@pytest.fixture(scope="module")
def checker(tmp_path_factory, plain) -> Path:
    directory = tmp_path_factory.mktemp("checker")
    make_checker(directory, np.random.default_rng(), np.stack([np.asarray(x) for x in plain]))
    return directory


def write(folder: Path, **sections) -> Path:
    (folder / "words.txt").write_text("gun\nred  Heart\n")
    (folder / "moderation.json").write_text(json.dumps(sections))
    return folder / "moderation.json"


@pytest.fixture
def moderated(pipeline, tmp_path):
    """Makes images under a file of these sections."""

    def run(**sections):
        pipeline.moderation = read_moderation(write(tmp_path, **sections))
        return made(pipeline)

    yield run
    pipeline.moderation = None


def same(first, second) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def test_a_flagged_prompt_changes_no_pixel_and_is_told(moderated, plain, capsys):
    images = moderated(prompts={"list": "words.txt"})
    assert all(same(*pair) for pair in zip(images, plain, strict=True))
    entries = [image.info["imagen_jax"]["moderation"] for image in images]
    assert [entry["done"] for entry in entries] == ["flag", "flag", None, None, None, None]
    assert entries[0]["prompt"]["found"] == ["gun"]
    assert entries[0]["prompt"]["action"] == "flag"
    assert entries[0]["file"] == entries[5]["file"]
    told = capsys.readouterr().err
    assert "Image 1 is flagged by moderation: its prompt has 'gun'." in told
    assert told.count("moderation") == 2


def test_images_of_a_blanked_prompt_are_black_and_the_others_as_they_were(moderated, plain, capsys):
    images = moderated(prompts={"list": "words.txt", "action": "blank"})
    assert not np.asarray(images[0]).any()
    assert not np.asarray(images[1]).any()
    assert all(same(*pair) for pair in zip(images[2:], plain[2:], strict=True))
    assert images[0].info["imagen_jax"]["moderation"]["done"] == "blank"
    assert images[0].info["imagen_jax"]["prompt"] == "a gun"
    assert "Image 0 is blanked" in capsys.readouterr().err
    assert plain[0].info["imagen_jax"].get("moderation") is None


def test_a_refused_prompt_is_refused_before_sampling(moderated, monkeypatch):
    sampled = []
    monkeypatch.setattr("imagen_jax.pipeline.pipeline.sample_cascade", sampled.append)
    with pytest.raises(Refused, match=r"The prompt 'a gun' is refused by moderation: 'gun'"):
        moderated(prompts={"list": "words.txt", "action": "refuse"})
    assert sampled == []


@pytest.mark.parametrize("action", ["flag", "blank"])
def test_images_are_judged_one_by_one(moderated, plain, checker, action, capsys):
    """The filter's own scores, of the images that the pipeline makes without it, say which."""
    images = moderated(images={"model": str(checker), "action": action})
    own = read_moderation_filter(checker)
    scores = own.scores([np.asarray(image) for image in plain])
    found = [bool(each.found) for each in scores]
    assert any(found)
    for image, before, score in zip(images, plain, scores, strict=True):
        entry = image.info["imagen_jax"]["moderation"]
        assert entry["image"]["found"] == list(score.found)
        assert entry["image"]["cosines"] == score.cosines
        assert entry["image"]["thresholds"].keys() == score.cosines.keys()
        assert entry["image"]["weights"] == own.fingerprint
        assert entry["done"] == (action if score.found else None)
        if score.found and action == "blank":
            assert not np.asarray(image).any()
        else:
            assert same(image, before)
    verb = {"flag": "flagged", "blank": "blanked"}[action]
    assert capsys.readouterr().err.count(verb) == sum(found)


def read_moderation_filter(checker: Path):
    from imagen_jax.pipeline.image_filter import read_image_filter

    return read_image_filter(checker, None, None)


def test_a_refused_image_ends_the_call_and_the_others_are_handed_out(
    pipeline, tmp_path, checker, plain, capsys
):
    thresholds = read_moderation_filter(checker).scores([np.asarray(x) for x in plain])
    file = write(tmp_path, images={"model": str(checker), "action": "refuse"})
    kept = []
    pipeline.moderation = read_moderation(file)
    try:
        with pytest.raises(Refused, match=r"is refused by moderation: it shows 'concept \d+'"):
            made(pipeline, finished=kept.extend)
    finally:
        pipeline.moderation = None
    first = next(n for n, each in enumerate(thresholds) if each.found)
    end = first // 3 * 3 + 3  # of the batch in which the first stands
    wanted = [n for n in range(end) if not thresholds[n].found]
    assert [image.info["imagen_jax"]["index"] for image in kept] == wanted
    assert capsys.readouterr().err == ""  # the error says it
    assert all(same(image, plain[n]) for image, n in zip(kept, wanted, strict=True))


def test_the_stricter_of_two_rules_holds(moderated, checker):
    names = [{"text": f"c{n}", "threshold": -1.0} for n in range(17)]
    images = moderated(
        prompts={"list": "words.txt", "action": "blank"},
        images={"model": str(checker), "concepts": names},
    )
    entries = [image.info["imagen_jax"]["moderation"] for image in images]
    assert [entry["done"] for entry in entries] == ["blank"] * 2 + ["flag"] * 4
    assert entries[0]["image"]["found"] == [f"c{n}" for n in range(17)]


@pytest.mark.slow
def test_super_resolution_is_judged_at_its_final_size(pipeline, tmp_path, checker, monkeypatch):
    seen = []
    pipeline.moderation = read_moderation(write(tmp_path, images={"model": str(checker)}))
    scores = type(pipeline.moderation.image_filter).scores
    monkeypatch.setattr(
        type(pipeline.moderation.image_filter),
        "scores",
        lambda self, images: seen.extend(x.shape for x in images) or scores(self, images),
    )
    try:
        pipeline.generate_images("a", 2, progress=False)
    finally:
        pipeline.moderation = None
    assert seen == [(8, 8, 3)] * 2


def test_a_watermark_of_the_users_own_is_applied_and_told(pipeline, plain, tmp_path):
    def inverted(pixels: np.ndarray) -> np.ndarray:
        return 255 - pixels

    pipeline.watermark = inverted
    try:
        images = made(pipeline)
    finally:
        pipeline.watermark = None
    assert all(same(255 - np.asarray(b), a) for a, b in zip(images, plain, strict=True))
    images[0].save(tmp_path / "x.png")
    assert read_settings(tmp_path / "x.png")["watermark"] == "inverted"
    with pytest.raises(ValueError, match=r"The watermark gives float64 \[4, 4, 3\]"):
        finished_images(None, lambda pixels: pixels / 2, images)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "neither 'prompts' nor 'images'"),
        ({"prompt": {"list": "words.txt"}}, "unknown key 'prompt'.*did you mean 'prompts'"),
        ({"prompts": {"list": "words.txt", "action": "black"}}, "must be one of 'flag', 'blank'"),
        ({"prompts": {"list": "none.txt"}}, "there is no .*none.txt"),
        ({"prompts": {}}, "there is no 'prompts.list'"),
        ({"images": {"model": "none"}}, "There is no folder .*none, where a safety checker"),
        ({"images": {"model": "."}}, "safetensors"),
        ({"images": {"model": ".", "concepts": [{"txt": "x"}]}}, "unknown key"),
        ({"images": {"model": ".", "special": [{"text": "x", "threshold": 24}]}}, "cosine is in"),
    ],
)
def test_wrong_files_are_told_in_a_line(tmp_path, sections, message):
    """By the command, before a model is loaded."""
    file = write(tmp_path, **sections)
    ended, _ = call(
        generate, "a", "--moderation", str(file), "--model", "none", "--out", str(tmp_path / "out")
    )
    assert ended.startswith("error: ")
    assert "\n" not in ended
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_moderation(file)


def test_the_command_blanks_and_the_file_says_so(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model", dtype="float32")
    file = write(tmp_path, prompts={"list": "words.txt", "action": "blank"})
    out = tmp_path / "out"
    arguments = ["--num_images", "1", "--size", "4", "--moderation", str(file), "--quiet"]
    arguments += ["--out", str(out), "--model", str(tmp_path / "model")]
    assert call(generate, "a gun", "a heart", *arguments)[0] is None
    blank, kept = sorted(out.glob("000*.png"))
    assert not np.asarray(Image.open(blank)).any()
    assert np.asarray(Image.open(kept)).any()
    assert read_settings(blank)["moderation"]["done"] == "blank"
    assert read_settings(kept)["moderation"]["prompt"]["found"] == []


def test_the_app_refuses_in_words_and_shows_nothing_half_made(tmp_path):
    file = write(tmp_path, prompts={"list": "words.txt", "action": "blank"})

    def load(source: object) -> Pipeline:
        loaded = tiny_pipeline()
        loaded.moderation = read_moderation(file)
        return loaded

    folder = tmp_path / "visitors"
    folder.mkdir()
    studio = Studio(Models(["icons"], load), Limits(), folder)
    asked = {"model": "icons", "prompt": "a gun", "size": 4, "num_images": 1, "seed": 1}
    shown = list(studio.make("generate", asked))
    assert "By moderation 1 image blanked." in shown[-1].note
    assert not list(folder.glob("*/unfinished_*/*.png"))
    assert not np.asarray(Image.open(shown[-1].files[0])).any()
    assert json.loads(studio.settings({"path": str(shown[-1].files[0])}))["moderation"]
    write(tmp_path, prompts={"list": "words.txt", "action": "refuse"})
    refusing = Studio(Models(["icons"], load), Limits(), folder)
    with pytest.raises(ValueError, match="is refused by moderation: 'gun'"):
        list(refusing.make("generate", asked))

"""The models that come with the package, listed without JAX."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from imagen_jax import load_model
from imagen_jax.cascade.cascade import TEXT_ENCODER
from imagen_jax.pipeline import shipped
from imagen_jax.pipeline.model_directory import Stored, write_model


def write(folder, name: str, card: str | None) -> None:
    (folder / name).mkdir()
    (folder / name / shipped.MODEL_FILE).write_text("{}")
    if card is not None:
        (folder / name / shipped.CARD).write_text(card, encoding="utf-8")


def test_each_name_comes_with_the_first_sentence_of_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path)
    (tmp_path / "empty").mkdir()
    write(
        tmp_path,
        "icons",
        "---\nlicense: mit\n---\n\n# Model card: icons\n\nText to\nicons. More.\n\nAnd",
    )
    write(tmp_path, "bare", None)
    write(tmp_path, "short", "# Short")
    assert shipped.list_models() == {"bare": "", "icons": "Text to icons", "short": ""}


def test_the_list_needs_no_jax(repository):
    code = "import sys, imagen_jax; imagen_jax.list_models(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0


def test_every_shipped_model_says_what_it_is():
    models = shipped.list_models()
    assert shipped.DEFAULT in models
    assert all(models.values())


def test_the_hub_reads_the_cards_metadata_and_every_set_is_attributed():
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = shipped.PRETRAINED / shipped.DEFAULT / shipped.CARD
    data = huggingface_hub.ModelCard.load(card).data
    assert (data.license, data.language) == ("apache-2.0", ["en", "zh"])
    assert (data.pipeline_tag, data.library_name) == ("text-to-image", "imagen_jax")
    attributed = card.with_name("LICENSES.md").read_text(encoding="utf-8")
    assert len(data.datasets) == 7
    assert all(f"`@{name}`" in attributed for name in data.datasets)
    assert "licensed under CC-BY 4.0" in attributed


def test_a_student_shares_what_it_has_in_common_with_its_teacher(tmp_path):
    """Written once more with its parts shared, it is the same model in few files."""
    student, teacher = load_model("icons-fast"), load_model("icons")
    assert student.cascade.stages[1:] == teacher.cascade.stages[1:]
    for name in ("sr256", TEXT_ENCODER):
        jax.tree.map(np.testing.assert_array_equal, student.params[name], teacher.params[name])
    stored = Stored("float16", shared="icons")
    write_model(tmp_path, student.cascade, student.params, stored)
    names = {path.name.split("-")[0].split(".")[0] for path in tmp_path.iterdir()}
    assert names == {"base64", "model", "spiece"}
    again = load_model(tmp_path)
    for name in student.params:
        jax.tree.map(np.testing.assert_array_equal, again.params[name], student.params[name])


def test_parts_are_shared_with_shipped_models_alone(tmp_path):
    student = load_model("icons-fast")
    write_model(tmp_path, student.cascade, student.params, Stored(shared="icons"))
    path = tmp_path / shipped.MODEL_FILE
    path.write_text(path.read_text().replace('"shared": "icons"', '"shared": "../icons"'))
    with pytest.raises(ValueError, match=r"shares parts with '\.\./icons', which is no shipped"):
        load_model(tmp_path)

"""~ is the user's home wherever a path is taken: in the library, in options, and in configs."""

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_cascade import CASCADE, tiny_pipeline

from imagen_jax import commands
from imagen_jax.commands.command_line import path, sources
from imagen_jax.data import coco, embeddings, read_folder, read_npz, read_tar
from imagen_jax.evaluation import captioned_set, feature_files, icon_set, image_folder, prompts
from imagen_jax.evaluation.inputs import EvaluationRequest
from imagen_jax.images.image_file import GeneratedImage, read_settings
from imagen_jax.images.image_list import ImageList
from imagen_jax.pipeline.encoder_files import read_encoder
from imagen_jax.pipeline.loading import export_lora, load_encoder, load_model
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.request import read_image
from imagen_jax.text.tokenizers import make_tokenizer, vocab_size
from imagen_jax.training.config import load_config, with_homes

COMMANDS = Path(commands.__file__).parent
# Options of several paths, or of a path or a name: what reads them expands each.
SEVERAL = {"--features", "--make_reference"}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


READERS: dict[str, Callable] = {
    "load_model": load_model,
    "load_model of several": lambda place: load_model([place]),
    "load_encoder": load_encoder,
    "read_encoder": read_encoder,
    "load_lora": lambda place: Pipeline(CASCADE, {}).load_lora(place),
    "export_lora": lambda place: export_lora(place, "x"),
    "edit": lambda place: Pipeline(CASCADE, {}).edit(place, "a cat"),
    "read_image": read_image,
    "read_settings": read_settings,
    "read_npz": read_npz,
    "read_folder": read_folder,
    "read_tar": read_tar,
    "read_annotations": coco.read_annotations,
    "read_manifest": embeddings.read_manifest,
    "tokenizer": lambda place: vocab_size(make_tokenizer(place)),
    "read_prompts": prompts.read_prompts,
    "read_icons": icon_set.read_icons,
    "read_captioned": lambda place: captioned_set.read_captioned(place, "all"),
    "load_extractor": feature_files.load_extractor,
    "list_images": image_folder.list_images,
    "load_config": load_config,
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_looks_in_the_home(home, monkeypatch, name):
    monkeypatch.chdir(home)
    with pytest.raises((OSError, ValueError), match=f"{home}/no/such"):
        READERS[name]("~/no/such")
    with pytest.raises(ValueError, match=r"~no_such_user/x: .*; give the whole path"):
        READERS[name]("~no_such_user/x")
    assert not list(home.iterdir())  # nothing named ~


def test_a_writer_writes_into_the_home(home):
    image = GeneratedImage.of(Image.new("RGB", (4, 4)))
    image.save("~/a/x.png")
    ImageList([image]).save("~/b")
    tiny_pipeline().save_pretrained("~/c")
    assert sorted(place.name for place in home.iterdir()) == ["a", "b", "c"]
    assert load_model("~/c").name == "tiny"


def test_an_evaluation_reads_and_writes_in_the_home(home):
    asked = EvaluationRequest(images=Path("~/a"), reference=Path("~/b"), out=Path("~/c"))
    assert (asked.images, asked.reference, asked.out) == (home / "a", home / "b", home / "c")


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for file in sorted(COMMANDS.glob("*.py")):
        command = importlib.import_module(f"imagen_jax.commands.{file.stem}")
        if hasattr(command, "parser"):
            yield file.stem, command.parser()


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        else:
            yield action


@pytest.mark.parametrize(("name", "parser"), list(parsers()), ids=lambda value: str(value)[:20])
def test_options_for_paths_are_in_the_home(home, name, parser):
    found = 0
    for action in options(parser):
        names = {*action.option_strings, action.dest}
        assert action.type is not Path, names
        of_path = any(word in (action.metavar or "") for word in ("FILE", "DIR"))
        if of_path and not names & SEVERAL:
            assert action.type("~/x") == home / "x", names
            found += 1
    assert found or name in ("app", "push"), name  # whose paths are models, which may be several


def test_paths_in_a_config_are_in_the_home(home):
    config = {
        "init_from": "~/base",
        "data": {"path": "~", "sets": [{"path": "~/b c"}], "bucket": "gs://~/x"},
        "sample": {"prompts": ("~ a wave ~", "~/ no: a path", 3, None)},
    }
    found = with_homes(config)
    assert found["init_from"] == f"{home}/base"
    assert found["data"] == {
        "path": str(home),
        "sets": [{"path": f"{home}/b c"}],
        "bucket": "gs://~/x",
    }
    assert found["sample"]["prompts"] == ["~ a wave ~", f"{home}/ no: a path", 3, None]


def test_models_are_told_apart_by_commas_that_no_folder_has(home, monkeypatch):
    assert sources("a,~/b") == ["a", "~/b"]
    (home / "a,b").mkdir()
    assert sources("~/a,b") == "~/a,b"
    with pytest.raises(argparse.ArgumentTypeError, match="give the whole path"):
        path("~no_such_user/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(argparse.ArgumentTypeError, match=r"~/x: .*; give the whole path"):
        path("~/x")

"""Class folders have numbers as people count them, in the workdir, the model and a resumed run."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import random_params

from imagen_jax.cascade import description
from imagen_jax.commands import generate, save_model
from imagen_jax.data import MixtureSource
from imagen_jax.data.classes import class_names, count_classes, mixed_classes, numbered_by
from imagen_jax.data.folder import read_folder
from imagen_jax.devices.sharding import MeshConfig, make_mesh
from imagen_jax.images.image_file import read_settings
from imagen_jax.pipeline.joining import join_pipelines
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.model_directory import Stored, read_model, write_model
from imagen_jax.pipeline.request import class_numbers
from imagen_jax.storage.checkpoint import MismatchError
from imagen_jax.training import batches, build, classes, loop, samples, start
from imagen_jax.training.run_config import read_config
from imagen_jax.training.state import Frozen
from tests.training.test_config import tiny

NAMES = tuple(map(str, range(12)))
LETTERS = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")


def write_classes(folder, names=NAMES, each=2):
    """A folder for each class, whose images have the shade of its place among these."""
    for shade, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (8, 8), (shade,) * 3).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes") / "set")


def configured(folder, classes=12, **overrides):
    return tiny(
        stage__conditioning="label",
        stage__text_width="None",
        stage__network__num_classes=repr(classes),
        text="None",
        data__source="folder",
        data__path=repr(str(folder)),
        data__split="all",
        **{"num_steps": "2", "batch_size": "4", **overrides},
    )


def numbered(folder, workdir, resumed=False, **overrides):
    """The source of a run, as `open_run` makes it."""
    config = read_config(configured(folder, **overrides))
    return classes.with_run_classes(config, batches.make_source(config), workdir, resumed)


def shades(source) -> dict[int, int]:
    """{label: the shade of its images}."""
    examples = [source[row] for row in range(len(source))]
    return {example["label"]: int(example["image"][0, 0, 0]) for example in examples}


def test_class_folders_are_numbered_as_people_count(folder):
    source = read_folder(folder, conditioning="label")
    assert source.class_names == NAMES
    assert shades(source) == {number: number for number in range(12)}


def test_every_split_has_the_table_of_all_images(tmp_path):
    write_classes(tmp_path, ["2", "10", "b", "a"], each=20)
    parts = [read_folder(tmp_path, split, "label") for split in ("train", "heldout", "all")]
    assert {part.class_names for part in parts} == {("2", "10", "a", "b")}
    assert count_classes(parts[2], parts[2].class_names) == [20] * 4
    for part in parts:
        assert shades(part).items() <= {0: 0, 1: 1, 2: 3, 3: 2}.items()


def test_the_table_is_printed_kept_and_described(folder, tmp_path, capsys):
    plan = _plan(configured(folder))
    run = start.open_run(plan, tmp_path)
    run.checkpoints.close()
    run.keep_model()
    said = capsys.readouterr().out
    assert "class  name  images\n    0  0          2\n    1  1          2\n" in said
    assert "   11  11         2\n" in said
    kept = json.loads((tmp_path / "classes.json").read_text())["classes"]
    assert kept[10] == {"number": 10, "name": "10", "images": 2}
    assert run.description["model"]["class_names"] == list(NAMES)
    classes.check_saved({"model": {}}, run.description)  # of version 0.1
    saved = {"model": {"class_names": list(LETTERS)}}
    with pytest.raises(
        MismatchError, match=r"as 0, 1, 10, .*; the images as 0, 1, 2.*classes\.json"
    ):
        classes.check_saved(saved, run.description)


@pytest.mark.slow  # trains, exports and generates
def test_the_model_of_a_run_knows_its_classes(folder, tmp_path):
    workdir, plan = tmp_path / "run", _plan(configured(folder))
    run = start.open_run(plan, workdir)
    loop.train(plan.config, run, say=lambda line: None)
    run.checkpoints.close()
    assert load_model(workdir).class_names == NAMES
    out, images = tmp_path / "model", tmp_path / "images"
    save_model.main(["--model", str(workdir), "--out", str(out), "--steps", "2"])
    assert json.loads((out / "model.json").read_text())["class_names"] == list(NAMES)
    asked = ["--label", "10", "2", "--num_images", "1", "--out", str(images), "--quiet"]
    generate.main(["--model", str(out), *asked])
    settings = [read_settings(path) for path in sorted(images.glob("0*.png"))]
    assert [entry["label"] for entry in settings] == [10, 2]

    # Without its table the run would go on in the order of letters: the checkpoint knows better.
    (workdir / "classes.json").unlink()
    again = start.open_run(_plan(configured(folder, num_steps="3")), workdir)
    with pytest.raises(MismatchError, match="numbers its classes as 0, 1, 2, "):
        loop.train(plan.config, again, say=lambda line: None)
    again.checkpoints.close()


def _plan(raw) -> start.Plan:
    config, mesh = read_config(raw), make_mesh(MeshConfig(1), jax.devices()[:1])
    return start.Plan(raw, config, None, mesh, *build.make_training(config, None, mesh))


def test_a_run_of_an_earlier_version_keeps_the_order_of_letters(folder, tmp_path, capsys):
    source = numbered(folder, tmp_path, resumed=True)
    assert source.class_names == LETTERS
    assert shades(source) == {number: int(name) for number, name in enumerate(LETTERS)}
    assert "the classes keep the order of letters" in capsys.readouterr().out
    classes.write_classes(tmp_path, source)
    assert numbered(folder, tmp_path, resumed=True).class_names == LETTERS


def test_a_resumed_run_goes_by_its_table_whatever_the_folders(folder, tmp_path):
    classes.write_classes(tmp_path / "run", numbered(folder, tmp_path))
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)
    shutil.rmtree(fewer / "3")
    source = numbered(fewer, tmp_path / "run", resumed=True)
    assert source.class_names == NAMES
    assert shades(source) == {number: number for number in range(12) if number != 3}
    (fewer / "3").mkdir()
    (fewer / "0").rename(fewer / "zero")
    with pytest.raises(ValueError, match="have the classes zero, which are not among those"):
        numbered(fewer, tmp_path / "run", resumed=True)


@pytest.mark.parametrize(
    "content",
    ['{"classes": 3}', "{}", '{"classes": [{"number": 1, "name": "a"}]}', '{"classes": ["a"]}'],
)
def test_a_table_that_is_none_is_named(folder, tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes\.json must list the classes by number"):
        numbered(folder, tmp_path, resumed=True)


@pytest.mark.parametrize("count", [10, 13])
def test_another_number_of_classes_is_refused_and_named(folder, tmp_path, count):
    match = rf"have 12 classes \(0, 1, 2.*num_classes is {count}: set it to 12"
    with pytest.raises(ValueError, match=match):
        numbered(folder, tmp_path, classes=count)


def save_stages(directory, names):
    cascade = build.make_cascade(read_config(configured("none", len(names))), None)
    cascade = description.from_dict(
        {**description.to_dict(cascade), "class_names": list(names)}, directory
    )
    write_model(directory, cascade, random_params(cascade), Stored("float32"))
    return load_model(directory)


def test_a_run_from_a_model_takes_the_numbers_of_its_classes(folder, tmp_path, capsys):
    save_stages(tmp_path / "model", LETTERS)
    init = {"init_from": repr(str(tmp_path / "model"))}
    assert numbered(folder, tmp_path, **init).class_names == LETTERS
    save_stages(tmp_path / "other", tuple("abcdefghijkl"))
    init = {"init_from": repr(str(tmp_path / "other"))}
    assert numbered(folder, tmp_path, **init).class_names == NAMES
    assert "has other class names (it knows a, b, c" in capsys.readouterr().out


def test_sets_of_a_mixture_have_one_number_for_a_name(tmp_path):
    first = read_folder(write_classes(tmp_path / "a", ["cat", "dog"]), conditioning="label")
    second = read_folder(write_classes(tmp_path / "b", ["ant", "dog"]), conditioning="label")
    mixed = MixtureSource(mixed_classes([first, second]), [1.0, 1.0])
    assert class_names(mixed) == ("ant", "cat", "dog")
    assert [mixed[row]["label"] for row in range(8)] == [1, 1, 2, 2, 0, 0, 2, 2]
    assert count_classes(mixed, class_names(mixed)) == [2, 2, 4]
    assert [part.class_names for part in mixed_classes([first, first])] == [("cat", "dog")] * 2
    with pytest.raises(ValueError, match="have the classes ant, which are not among"):
        numbered_by(second, first.class_names)


def test_classes_are_asked_for_by_name_or_number(tmp_path):
    pipeline = save_stages(tmp_path, ("3", "cat", "é", "dog"))
    numbers = functools.partial(class_numbers, pipeline.cascade)
    assert numbers("cat") == [1]
    # "3" is a name here, and 3 the number; a string of digits that is no name is a number
    asked = ["dog", 0, "3", 3, "2", "e\u0301"]
    assert numbers(asked) == [3, 0, 0, 3, 2, 2]
    assert numbers(np.array([1, 2])) == [1, 2]
    assert numbers(np.int64(2)) == [2]
    images = pipeline.generate_images(label=["dog", 0], num_images=1, steps=1, progress=False)
    assert [image.info["imagen_jax"]["label"] for image in images] == [3, 0]
    assert images.captions == ["dog", "3"]
    for wrong, match in [
        ("caat", "no class 'caat'; did you mean 'cat'"),
        ("horse", "no class 'horse'; known: 3, cat, é, dog"),
        (4, r"must lie in 0 \.\.\. 3: 4"),
        ("-1", "no class '-1'"),
        (np.array([1.5]), r"name or the number of a class, not 1\.5"),
        ([], "list of labels is empty"),
    ]:
        with pytest.raises(ValueError, match=match):
            numbers(wrong)
    with pytest.raises(ValueError, match="give a label: 3, cat, é, dog"):
        pipeline.generate_images()


def test_a_model_without_class_names_is_read_and_asks_for_numbers(tmp_path):
    save_stages(tmp_path, ("a", "b"))
    path = tmp_path / "model.json"
    values = json.loads(path.read_text())
    del values["class_names"]  # as version 0.1 wrote it
    path.write_text(json.dumps(values))
    pipeline = load_model(tmp_path)
    assert pipeline.class_names == ()
    with pytest.raises(ValueError, match="no class 'a'; it knows no names: give a number"):
        pipeline.generate_images(label="a")
    for names in (["a"], ["a", "a"], ["a", "b", "c"], [1, 2]):
        path.write_text(json.dumps({**values, "class_names": names}))
        with pytest.raises(ValueError, match=r"class.names"):
            read_model(tmp_path)


def test_chained_stages_must_know_the_same_classes(tmp_path):
    pipelines = [save_stages(tmp_path / name, (name, "b")) for name in "ac"]
    with pytest.raises(ValueError, match="trained on other classes"):
        join_pipelines(pipelines)


def test_samples_of_a_class_that_is_none_are_refused(folder):
    config = read_config(configured(folder, sample="{'labels': [0, 12]}"))
    with pytest.raises(ValueError, match=r"sample\.labels are \[0, 12\]; .* from 0 to 11"):
        samples.make_sample_fn(config, None, None, Frozen())

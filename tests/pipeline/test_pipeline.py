"""What a user holds: loading, generating, saving, and one clear error for each wrong wish."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_cascade import BASE, BASE_SETTINGS, CASCADE, SR, network, random_params, tiny_pipeline

import imagen_jax
from imagen_jax.cascade import description
from imagen_jax.cascade.cascade import TEXT_ENCODER, Cascade
from imagen_jax.devices import compilation_cache
from imagen_jax.images.image_file import read_settings
from imagen_jax.images.image_list import ImageList
from imagen_jax.models import EfficientLevel
from imagen_jax.pipeline import pipeline as pipeline_file
from imagen_jax.pipeline import shipped
from imagen_jax.pipeline.loading import load_model
from imagen_jax.pipeline.option_names import SPELLINGS
from imagen_jax.pipeline.pipeline import Pipeline
from imagen_jax.pipeline.shipped import MODEL_FILE
from imagen_jax.training.workdir import held

HEAVY = [
    "tensorflow",
    "torch",
    "orbax",
    "transformers",
    "matplotlib",
    "tensorstore",
    "seqio",
    "c2pa",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(directory) -> Pipeline:
    return load_model(directory)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image, np.int32) for image in images])


def generate(model: Pipeline, *args, **kwargs) -> ImageList:
    return model.generate_images(*args, **{"batch_size": 2, "progress": False, **kwargs})


def test_images_of_prompts(model):
    images = generate(model, ["a cat", "红苹果"], 2, seed=1)
    assert len(images) == 4
    assert all(isinstance(p, Image.Image) and p.size == (8, 8) for p in images)
    assert images.captions == ["a cat", "a cat", "红苹果", "红苹果"]
    assert generate(model, "a cat", 1, size=4)[0].size == (4, 4)
    assert model.sizes == (4, 8)


def test_an_image_is_its_prompt_seed_and_index(model):
    images = pixels(generate(model, ["a cat", "红苹果"], 2, seed=1))
    assert (pixels(generate(model, ["a cat", "红苹果"], 2, seed=1)) == images).all()
    alone = generate(model, "红苹果", 1, seed=1, first_index=3)
    assert np.abs(pixels(alone)[0] - images[3]).max() <= 1
    for seed, index in ((2, 3), (1, 0)):
        other = generate(model, "红苹果", 1, seed=seed, first_index=index)
        assert np.abs(pixels(other)[0] - images[3]).max() > 5


def test_without_a_seed_each_call_differs_and_tells_its_seed(model):
    first, second = generate(model, "a cat", 1), generate(model, "a cat", 1)
    assert np.abs(pixels(first) - pixels(second)).max() > 5
    seed = first[0].info["imagen_jax"]["seed"]
    assert (pixels(generate(model, "a cat", 1, seed=seed)) == pixels(first)).all()


def test_an_image_is_made_again_from_its_png(model, tmp_path):
    images = generate(
        model, ["a cat", "红苹果"], 2, seed=5, guidance=2.0, steps=(3, 2), negative_prompt="blue"
    )
    images[2].save(tmp_path / "image.png")
    settings = read_settings(tmp_path / "image.png")
    assert settings["prompt"] == "红苹果"
    assert [entry["steps"] for entry in settings["sampling"]] == [3, 2]
    again = model.generate_again(settings, progress=False)
    assert np.abs(pixels(again)[0] - pixels(images)[2]).max() <= 1
    assert read_settings(tmp_path / "image.png") == json.loads(
        json.dumps(again[0].info["imagen_jax"])
    )
    with pytest.raises(ValueError, match="not whole: KeyError"):
        model.generate_again({"prompt": "a cat"})


@pytest.mark.parametrize("convert", [float, np.int64, np.float32, jax.numpy.asarray])
def test_numbers_of_numpy_and_jax_are_as_good_as_pythons(model, tmp_path, convert):
    plain = {"num_images": 2, "size": 8, "steps": 3, "seed": 5, "first_index": 1, "batch_size": 2}
    plain |= {"every": 2}
    images = generate(
        model, "a cat", aspect_ratio=1.0, guidance=[2.0, 1.5], aug_level=0.25, **plain
    )
    other = {name: convert(value) for name, value in plain.items()}
    other |= {"aspect_ratio": np.float32(1), "aug_level": np.asarray(0.25)}
    again = generate(model, "a cat", guidance=jax.numpy.asarray([2.0, 1.5]), **other)
    assert (pixels(again) == pixels(images)).all()
    assert [image.info for image in again] == [image.info for image in images]
    again.save(tmp_path)
    assert read_settings(tmp_path / "0002_a_cat.png") == images[1].info["imagen_jax"]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("num_inference_steps", "steps"),
        ("guidance_scale", "guidance"),
        ("cond_scale", "guidance"),
        ("num_images_per_prompt", "num_images"),
        ("generator", "seed"),
        ("height", "size"),
        ("prompts", "prompt"),
        ("negative_prompts", "negative_prompt"),
        ("scheduler", "sampler"),
    ],
)
def test_an_option_by_anothers_name_is_refused_with_ours(model, given, ours):
    with pytest.raises(TypeError, match=rf"no option '{given}'; it is called {ours}\b.* here"):
        model.generate_images("a cat", **{given: 1})


def test_options_of_loading_and_inpainting_by_other_names(model, directory):
    with pytest.raises(TypeError, match=r"load_model\(\) .*'torch_dtype'; it is called dtype here"):
        load_model(directory, torch_dtype="float32")
    with pytest.raises(TypeError, match=r"'dtyp'; did you mean 'dtype'\?$"):
        load_model(directory, dtyp="float32")
    with pytest.raises(TypeError, match=r"inpaint\(\) .*'mask_image'; it is called mask here"):
        model.inpaint("x.png", "y.png", "a cat", mask_image="y.png")
    with pytest.raises(TypeError, match="'stepz'; did you mean 'steps'"):
        model.generate_images("a cat", stepz=3)
    with pytest.raises(TypeError, match="use generate_images, edit, inpaint or upscale"):
        model("a cat", num_inference_steps=3)
    known = {*signature(model.generate_images).parameters, *signature(load_model).parameters}
    known |= {*signature(model.inpaint).parameters}
    assert SPELLINGS.keys() <= known


def test_each_batch_is_handed_over_when_it_is_done(model, tmp_path):
    batches = []

    def finished(images):
        batches.append(images)
        images.save(tmp_path, grid=False)
        if len(batches) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, ["a cat", "a dog"], 3, seed=1, finished=finished)
    names = ["0000_a_cat.png", "0001_a_cat.png", "0002_a_cat.png", "0003_a_dog.png"]
    assert sorted(os.listdir(tmp_path)) == names
    whole = generate(model, ["a cat", "a dog"], 3, seed=1, low_memory=True, finished=batches.append)
    assert [len(batch) for batch in batches] == [2, 2, 6]  # low_memory: all at the end
    assert (pixels(whole)[:4] == pixels(batches[0] + batches[1])).all()


def test_a_negative_prompt_leads_away(model):
    plain = generate(model, "a cat", 1, seed=0)
    away = generate(model, "a cat", 1, seed=0, negative_prompt="a dog", guidance=9.0)
    unlike = generate(model, "a cat", 1, seed=0, guidance=9.0)
    assert np.abs(pixels(unlike) - pixels(away)).max() > 2
    assert (pixels(generate(model, "a cat", 1, seed=0, negative_prompt=" ")) == pixels(plain)).all()


def test_callback_and_bar(model, capsys):
    seen = []
    generate(model, "a cat", 3, progress=True, callback=seen.append, every=2)
    assert [(p.stage.name, p.first, p.step) for p in seen][:5] == [
        ("base", 0, 2),
        ("base", 0, 4),
        ("sr", 0, 2),
        ("sr", 0, 3),
        ("base", 2, 2),
    ]
    assert seen[0].x0.shape == (2, 4, 4, 3)
    assert "14/14" in capsys.readouterr().err


def test_a_long_prompt_is_cut_with_a_warning(model):
    with pytest.warns(UserWarning, match="Cut to 11 tokens: .*'a very long prompt' of 18"):
        images = generate(model, "a very long prompt", 1)
    assert len(images) == 1


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["a cat", "  "]}, "prompt is empty"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": None}, "give a prompt"),
        ({"size": 64}, "size 64; sizes: 4, 8"),
        ({"sampler": "plms"}, "'plms'; choose one of ddpm, ddim, euler, heun"),
        ({"steps": 0}, "steps"),
        ({"steps": (1, 2, 3)}, "3 entries; the model has 2 stages"),
        ({"guidance": float("inf")}, "guidance"),
        ({"num_images": 0}, "num_images"),
        ({"batch_size": -1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"label": 3}, "reads no classes"),
        ({"first_index": -1}, "first_index"),
        ({"batch_size": 2**27}, "batch_size must be 1,048,576 or less: 134,217,728"),
        ({"every": -1}, "every must be a whole number, at least 1: -1"),
        ({"spacing": "fast"}, "spacing 'fast'; choose one of"),
        ({"spacing": "fast27"}, "counts time steps, and Cosine has none"),
        ({"spacing": "fast27", "steps": 9}, "steps is 9, but spacing 'fast27' has 27 steps"),
        (
            {"aug_level": 250.0},
            r"must be in \[0, 1\]: 250.0; diffusers' noise_level 250 is 0.251",
        ),
        ({"aug_level": -1.0}, r"aug_level must be in \[0, 1\]: -1.0\.$"),
        ({"sampling": [BASE_SETTINGS]}, "1 entries; the model has 2"),
        ({"steps": True}, "steps must be a whole number from 1 to 1024: True"),
        ({"steps": 2.5}, r"steps must be a whole number from 1 to 1024: 2\.5"),
        ({"steps": [3, np.float32(2.5)]}, r"steps must be .*: 2\.5"),
        ({"guidance": np.nan}, r"guidance must be a finite number \(1 is none\): nan"),
        ({"guidance": True}, "guidance must be a finite number"),
        ({"num_images": True}, "num_images must be a whole number, at least 1: True"),
        ({"num_images": 1.5}, r"num_images must be .*: 1\.5"),
        ({"seed": True}, "seed must be .*: True"),
        ({"seed": np.float64(0.5)}, r"seed must be .*: .*0\.5"),
        ({"first_index": 0.5}, r"first_index must be .*: 0\.5"),
        (
            {"prompt": ["a cat", "caf\udce9"]},
            r"'caf\\udce9' is not whole text: character 4 is half",
        ),
        ({"negative_prompt": "\ud83d"}, r"'\\ud83d' is not whole text: character 1"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_computed(
    model, monkeypatch, wish: dict, message: str
):
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("expensive work began")

    monkeypatch.setattr(pipeline_file, "sample_cascade", never)
    monkeypatch.setattr(pipeline_file, "encode_request", never)
    with pytest.raises(ValueError, match=message) as caught:
        model.generate_images(**{"prompt": "a cat", "progress": False, **wish})
    assert "\n" not in str(caught.value)


def test_an_unknown_model_lists_the_known_ones(tmp_path, monkeypatch, directory):
    monkeypatch.setattr(shipped, "PRETRAINED", directory.parent)
    with pytest.raises(
        ValueError, match=r"no folder tinny, nor a shipped .*shipped: tiny\); did you mean tiny\?"
    ):
        load_model("tinny")
    assert load_model("tiny").name == "tiny"
    with pytest.raises(
        ValueError, match=r"neither a model .* \(no model_index.json\) nor the work"
    ):
        load_model(tmp_path)
    (tmp_path / "IF-I-XL.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has only pickles \(IF-I-XL.ckpt\)"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        load_model([])


def test_damaged_model_directories_are_refused(directory, tmp_path):
    def copy(name: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        for file in directory.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return target

    place = copy("json")
    (place / MODEL_FILE).write_text("{")
    with pytest.raises(ValueError, match="not the description of a model: it is not JSON"):
        load_model(place)
    (place / MODEL_FILE).write_text("[" * 10**5)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_model(place)

    place = copy("newer")
    values = json.loads((place / MODEL_FILE).read_text())
    (place / MODEL_FILE).write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_model(place)
    values["stages"][0]["stage"]["colour"] = "red"
    (place / MODEL_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="colour"):
        load_model(place)

    place = copy("cut")
    weights = place / "sr.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"sr\.safetensors is not a whole"):
        generate(load_model(place), "a cat", 1)

    place = copy("missing")
    (place / "base.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.safetensors"):
        generate(load_model(place), "a cat", 1)

    place = copy("other")
    (place / "base.safetensors").write_bytes((place / "sr.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit the model.*unused"):
        generate(load_model(place), "a cat", 1)


def test_images_that_are_not_finite_are_an_error():
    model = tiny_pipeline()
    model.params["base"]["conv_in"]["bias"][0] = np.nan
    with pytest.raises(ValueError, match="2 of 2 images of 'tiny' are not finite numbers"):
        generate(model, "a cat", 2, size=4)


def test_saving_and_loading_go_round(model, directory, tmp_path):
    again = tmp_path / "again"
    model.save_pretrained(again)
    loaded = load_model(again)
    assert loaded.cascade == model.cascade
    assert loaded.notes == {"steps": 0}
    assert loaded.fingerprint == model.fingerprint
    assert loaded.name == "tiny"
    jax.tree.map(np.testing.assert_array_equal, dict(loaded.params), dict(model.params))
    # bfloat16 on disk keeps eight bits of the mantissa.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8),
        dict(model.params),
        random_params(CASCADE),
    )
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(again / MODEL_FILE)


def test_a_failed_save_changes_nothing(directory, tmp_path):
    class Broken(dict):
        def __getitem__(self, name):
            if name == TEXT_ENCODER:
                raise OSError(28, "No space left on device")
            return super().__getitem__(name)

    broken = Pipeline(CASCADE, Broken(random_params(CASCADE, seed=1)))
    with pytest.raises(OSError, match="No space"):
        broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a model directory"):
        load_model(tmp_path)
    (tmp_path / "run" / "checkpoints" / "20").mkdir(parents=True)
    for part, step in (("checkpoints", ""), ("checkpoints/20", " and step=20")):
        with pytest.raises(ValueError, match=f"give its workdir, {tmp_path}/run{step}."):
            load_model(tmp_path / "run" / part)

    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in directory.iterdir()}

    before = contents()
    with pytest.raises(OSError, match="No space"):
        broken.save_pretrained(directory)
    assert contents() == before


def test_a_save_over_another_leaves_no_stale_file(tmp_path):
    model = tiny_pipeline()
    model.save_pretrained(tmp_path)
    wanted = {file.name for file in tmp_path.iterdir()}
    (tmp_path / "base-00001-of-00002.safetensors").write_bytes(b"old")
    (tmp_path / "base.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "README.md").write_text("the user's own")
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == wanted | {"README.md"}


class State(NamedTuple):
    step: Any
    params: Any
    ema: Any


def write_workdir(
    workdir: Path, cascade: Cascade, params: dict, text: dict | None, steps: tuple[int, ...] = (3,)
) -> None:
    """Checkpoints as training leaves them: one stage, the average of its parameters beside them."""
    from imagen_jax.storage.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints")
    run = {"model": description.to_dict(cascade), "config": {"text": text}}
    for step in steps:
        trained = jax.tree.map(lambda leaf, step=step: np.full_like(leaf, step), params)
        state = jax.tree.map(jax.numpy.asarray, State(np.int32(step), trained, params))
        checkpoints.save(step, state, run=run, loss=1.0)
    checkpoints.close()


def test_workdirs_of_training_are_put_in_a_row(model, tmp_path):
    params = dict(model.params)
    settings, encoder = CASCADE.sampling, CASCADE.encoder
    base, sr = tmp_path / "base", tmp_path / "sr"
    trained = {"network": params["base"], TEXT_ENCODER: params[TEXT_ENCODER]}
    write_workdir(base, Cascade((BASE,), settings[:1], encoder), trained, {"init_from": None})
    write_workdir(
        sr,
        Cascade((SR,), settings[1:], encoder),
        {"network": params["sr"]},
        {"init_from": str(base)},
    )
    both = load_model([base, sr])
    assert both.sizes == (4, 8)
    wanted = generate(model, "a cat", 2, seed=3)
    assert (pixels(generate(both, "a cat", 2, seed=3)) == pixels(wanted)).all()
    assert (
        pixels(generate(load_model(str(base)), "a cat", 2, seed=3))
        == pixels(generate(model, "a cat", 2, seed=3, size=4))
    ).all()
    alone = load_model(sr)
    jax.tree.map(np.testing.assert_array_equal, alone.params[TEXT_ENCODER], params[TEXT_ENCODER])
    with pytest.raises(ValueError, match="upsamples images of 4 pixels"):
        generate(alone, "a cat", 1)
    both.save_pretrained(tmp_path / "joined")
    joined = load_model(tmp_path / "joined")
    assert (pixels(generate(joined, "a cat", 2, seed=3)) == pixels(wanted)).all()
    assert joined.notes == {"base": {"step": 3}, "sr": {"step": 3}}
    student = load_model([base, tmp_path / "joined"])  # of a whole model, its larger stages
    assert student.cascade.stages == (BASE, SR)
    assert (pixels(generate(student, "a cat", 2, seed=3)) == pixels(wanted)).all()
    with pytest.raises(ValueError, match=r"'base' adds nothing .* images of 8 pixels"):
        load_model([tmp_path / "joined", base])


def test_a_checkpoint_and_the_raw_parameters_can_be_chosen(tmp_path, directory):
    plain = replace(network(), levels=(EfficientLevel(8, 1),))
    stage = replace(BASE, conditioning=None, text_width=None, network=plain)
    cascade = Cascade((stage,), (BASE_SETTINGS,))
    params = random_params(cascade)
    write_workdir(tmp_path, cascade, {"network": params["base"]}, None, steps=(10, 20))

    def first(**chosen: Any) -> float:
        return float(load_model(tmp_path, **chosen).params["base"]["conv_in"]["bias"][0])

    average = pytest.approx(float(params["base"]["conv_in"]["bias"][0]))
    assert [first(), first(step=10), first(step=np.int64(20))] == [average] * 3
    assert [first(ema=False), first(ema=False, step=10)] == [20, 10]
    assert load_model(tmp_path, step=10).notes == {"step": 10}
    with pytest.raises(ValueError, match=r"no checkpoint of step 15; it has 10, 20\."):
        load_model(tmp_path, step=15)
    with pytest.raises(ValueError, match="is the workdir of a training run"):
        load_model(tmp_path).save_pretrained(tmp_path)
    assert not (tmp_path / MODEL_FILE).exists()
    with pytest.raises(ValueError, match=r"holds a model .* give another folder"), held(directory):
        pass
    for chosen in ({"step": 10}, {"ema": False}):
        for other in (directory, "org/name-on-the-hub"):
            with pytest.raises(ValueError, match="a checkpoint of a training workdir, which"):
                load_model(other, **chosen)
        with pytest.raises(ValueError, match="There is no folder"):
            load_model(tmp_path / "none", **chosen)


@pytest.mark.parametrize("kind", ["label", None])
def test_models_of_classes_and_of_nothing(kind: str | None):
    classes = 5 if kind == "label" else None
    stage = replace(
        BASE,
        conditioning=kind,
        text_width=None,
        network=replace(network(num_classes=classes), levels=(EfficientLevel(8, 1),)),
    )
    cascade = Cascade((stage,), (BASE_SETTINGS,))
    model = Pipeline(cascade, random_params(cascade))
    if kind is None:
        assert len(generate(model, num_images=2)) == 2
    else:
        images = generate(model, label=[0, 4], num_images=1, seed=0)
        assert images.captions == ["0", "4"]
        other = generate(model, label=[0, 3], num_images=1, seed=0)
        assert (pixels(images)[0] == pixels(other)[0]).all()
        assert np.abs(pixels(images)[1] - pixels(other)[1]).max() > 2
        assert len(generate(model, label=np.arange(2), num_images=1)) == 2
        with pytest.raises(ValueError, match=r"0 \.\.\. 4: 5"):
            generate(model, label=5)
        for odd in (True, np.array([0, 1.5])):
            with pytest.raises(ValueError, match="the name or the number of a class"):
                generate(model, label=odd)
    with pytest.raises(ValueError, match="reads no text"):
        generate(model, "a cat", label=1)


def test_a_notebook_shows_a_grid(model):
    images = generate(model, "a cat", 3)
    assert images._repr_png_().startswith(b"\x89PNG")
    assert ImageList([])._repr_png_() is None
    assert images.grid(columns=3).width > images.grid(columns=1).width


def test_the_users_own_compilation_cache_stays(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.use_compilation_cache()
        wanted = tmp_path / "imagen_jax" / "compiled"
        assert jax.config.jax_compilation_cache_dir == str(wanted)
        assert wanted.is_dir()
        jax.config.update("jax_compilation_cache_dir", None)
        for place in ("/proc/none", "~nobody at all"):
            monkeypatch.setenv("XDG_CACHE_HOME", place)
            monkeypatch.chdir("/proc")
            compilation_cache.use_compilation_cache()
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def run_python(program: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(imagen_jax.__file__).parents[1])},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, imagen_jax; print([m for m in sys.argv[1:] if m in sys.modules])"
    assert run_python(program, *HEAVY, "jax", "flax", "numpy").strip() == "[]"


def test_generating_imports_nothing_it_does_not_need_and_stays_small(directory):
    program = """
import sys, imagen_jax
model = imagen_jax.load_model(sys.argv[1])
images = model.generate_images("a cat", num_images=2, batch_size=2, progress=False)
assert len(images) == 2
print([m for m in sys.argv[2:] if m in sys.modules])
# Not getrusage: that starts from the size of the process which started this one.
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(int(peak[0]) // 1024)
"""
    printed = run_python(program, str(directory), *HEAVY, "optax", "grain")
    modules, megabytes = printed.split("\n")[:2]
    assert modules == "[]"
    assert int(megabytes) < 2048


def test_the_version_is_that_of_what_is_installed():
    assert metadata.version("imagen_jax") == imagen_jax.__version__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = imagen_jax.no_such_name
    assert "load_model" in dir(imagen_jax)

"""The parts of a diffusers folder, as diffusers writes and names them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen_jax.convert.diffusers_directory import PIPELINES, read_directory
from imagen_jax.storage.safetensors import open_tensors

UNET = "diffusion_pytorch_model"
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}


def write_json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_pipeline(path: Path, pipeline: str = "IFPipeline", encoder: bool = True) -> Path:
    """A folder with tiny weights, laid out as save_pretrained does."""
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.35.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "text_encoder": ["transformers", "T5EncoderModel"] if encoder else [None, None],
        "tokenizer": ["transformers", "T5Tokenizer"] if encoder else [None, None],
    }
    write_json(path / "unet" / "config.json", {"sample_size": 64})
    save_file({"w": np.ones(2, np.float32)}, path / "unet" / f"{UNET}.safetensors")
    write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER)
    if PIPELINES.get(pipeline):
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
        write_json(path / "image_noising_scheduler" / "scheduler_config.json", SCHEDULER)
    if encoder:
        write_json(path / "text_encoder" / "config.json", {"model_type": "t5"})
        save_file({"w": np.ones(2, np.float32)}, path / "text_encoder" / "model.safetensors")
        (path / "tokenizer").mkdir()
        (path / "tokenizer" / "spiece.model").write_bytes(b"pieces")
    write_json(path / "model_index.json", index)
    return path


@pytest.mark.parametrize("pipeline", list(PIPELINES))
@pytest.mark.parametrize("encoder", [True, False])
def test_every_pipeline_is_read(pipeline, encoder, tmp_path):
    found = read_directory(write_pipeline(tmp_path / "m", pipeline, encoder))
    assert found.pipeline == pipeline
    assert found.super_resolution == ("SuperResolution" in pipeline)
    assert found.unet_config == {"sample_size": 64}
    assert found.scheduler == SCHEDULER
    assert found.low_res_scheduler == (SCHEDULER if found.super_resolution else None)
    assert (found.unet.directory, found.unet.name) == (tmp_path / "m" / "unet", UNET)
    if encoder:
        assert found.text_encoder_config == {"model_type": "t5"}
        assert found.text_encoder.name == "model"
        assert found.tokenizer == tmp_path / "m" / "tokenizer" / "spiece.model"
    else:
        assert (found.text_encoder_config, found.text_encoder, found.tokenizer) == (None,) * 3


def test_names_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="the pipelines' names are its")
    theirs = {name for name in dir(diffusers) if name.startswith("IF") and "Pipeline" in name}
    assert set(PIPELINES) == theirs


def test_a_variant_is_taken_where_there_is_one(tmp_path):
    path = write_pipeline(tmp_path / "m")
    save_file({"w": np.ones(2, np.float16)}, path / "unet" / f"{UNET}.fp16.safetensors")
    found = read_directory(path, variant="fp16")
    assert (found.unet.variant, found.text_encoder.variant) == ("fp16", None)
    assert open_tensors(*found.unet)["w"].dtype == np.float16
    shard = "model.fp16-00001-of-00001.safetensors"
    save_file({"w": np.ones(2, np.float16)}, path / "text_encoder" / shard)
    index = {"metadata": {}, "weight_map": {"w": shard}}
    write_json(path / "text_encoder" / "model.safetensors.index.fp16.json", index)
    found = read_directory(path, variant="fp16")
    assert found.text_encoder.variant == "fp16"
    assert read_directory(path).unet.variant is None
    with pytest.raises(FileNotFoundError, match=r"no weights of the variant 'fp15'.*\.fp16\."):
        read_directory(path, variant="fp15")


def test_only_the_variant_may_be_there(tmp_path):
    path = write_pipeline(tmp_path / "m")
    weights = path / "unet" / f"{UNET}.safetensors"
    weights.rename(path / "unet" / f"{UNET}.fp16.safetensors")
    assert read_directory(path, variant="fp16").unet.variant == "fp16"
    with pytest.warns(UserWarning, match="unet has the variant 'fp16' alone: it is read"):
        assert read_directory(path).unet.variant == "fp16"
    shutil.copyfile(
        path / "unet" / f"{UNET}.fp16.safetensors", path / "unet" / f"{UNET}.ema.safetensors"
    )
    with pytest.raises(FileNotFoundError, match=rf"no {UNET}\.safetensors.*{UNET}\.fp16\."):
        read_directory(path)


def test_original_checkpoints_are_refused(tmp_path):
    (tmp_path / "config.yml").write_text("model: if")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match=r"original DeepFloyd IF .*pytorch_model\.bin") as error:
        read_directory(tmp_path)
    assert f"unet/{UNET}.safetensors" in str(error.value)


@pytest.mark.parametrize("name", ["model.ckpt", "weights.pt", "x.pkl"])
def test_folders_of_pickles_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"only pickles .{name}.*converted form"):
        read_directory(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_parts_of_pickles_are_refused(part, tmp_path):
    path = write_pipeline(tmp_path / "m")
    (weights,) = (path / part).glob("*.safetensors")
    weights.rename(path / part / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{part} has its weights in pickles .pytorch_model\.bin"):
        read_directory(path)


@pytest.mark.parametrize("linked", ["unet", "scheduler/scheduler_config.json"])
def test_links_to_outside_are_refused(linked, tmp_path):
    path = write_pipeline(tmp_path / "m")
    (path / linked).rename(tmp_path / "elsewhere")
    (path / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"link to .*elsewhere, outside the model's directory"):
        read_directory(path)


def test_links_inside_the_hubs_cache_are_followed(tmp_path):
    cache = tmp_path / "models--org--name"
    path = write_pipeline(cache / "snapshots" / "abc")
    (cache / "blobs").mkdir()
    files = [file for file in path.rglob("*") if file.is_file()]
    for i, file in enumerate(files):
        file.rename(cache / "blobs" / str(i))
        file.symlink_to(cache / "blobs" / str(i))
    assert read_directory(path).unet_config == {"sample_size": 64}


def change_index(path: Path, **values) -> None:
    index = json.loads((path / "model_index.json").read_text())
    write_json(path / "model_index.json", index | values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "'StableDiffusionPipeline'; known are IF"),
        ({"_class_name": None}, "'None'; known are"),
        ({"_class_name": ["IFPipeline"]}, "known are"),
        ({"unet": [None, None]}, "names no 'unet'"),
        ({"unet": "diffusers"}, "'unet' as diffusers; it must be a pair"),
        ({"scheduler": ["a", "b", "c"]}, "'scheduler' as .* must be a pair"),
        ({"_class_name": "IFSuperResolutionPipeline"}, "names no 'image_noising_scheduler'"),
    ],
)
def test_a_wrong_index_is_named(values, said, tmp_path):
    path = write_pipeline(tmp_path / "m")
    change_index(path, **values)
    with pytest.raises(ValueError, match=rf"model_index\.json .*{said}"):
        read_directory(path)


@pytest.mark.parametrize(
    "lost",
    [
        "model_index.json",
        "unet/config.json",
        f"unet/{UNET}.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
    ],
)
def test_a_lost_file_is_named(lost, tmp_path):
    path = write_pipeline(tmp_path / "m")
    (path / lost).unlink()
    with pytest.raises(FileNotFoundError) as error:
        read_directory(path)
    assert lost.rpartition("/")[2] in str(error.value)
    assert lost.split("/")[0] in str(error.value)

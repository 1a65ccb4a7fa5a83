"""Weights of the real size stream to their devices: memory stays near what is placed."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from imagen_jax import models
from imagen_jax.convert.diffusers_unet import config_from_diffusers, unet_layout
from imagen_jax.convert.t5 import encoder_layout, encoder_shapes
from imagen_jax.models import t5
from tests.convert.test_diffusers_unet import XL
from tests.storage.large_weights import run_reader, tensor_shapes, write_shards

# T5-XXL has 24 layers, 9.5 GB in bf16; 6 of them show the same in 2.6 GB.
LAYERS = (6, 24)
ROOM = 1.5e9  # above the parameters: Python and JAX, one tensor, one tensor's share

T5_READER = """
import sys, time
import jax
from jax.sharding import SingleDeviceSharding
from imagen_jax.convert import t5
from imagen_jax.storage.safetensors import open_tensors
start = time.monotonic()
device = SingleDeviceSharding(jax.devices()[0])
config, params = t5.load_huggingface(sys.argv[1], dtype=None, sharding=lambda path, shape: device)
files, layout = open_tensors(sys.argv[1], "model"), t5.encoder_layout(config)
"""

UNET_READER = """
import json, pathlib, sys, time
import jax
from jax.sharding import SingleDeviceSharding
from imagen_jax import models
from imagen_jax.convert import diffusers_unet
from imagen_jax.storage.layout_files import read_layout
from imagen_jax.storage.safetensors import open_tensors
start = time.monotonic()
device = SingleDeviceSharding(jax.devices()[0])
values = json.loads((pathlib.Path(sys.argv[1]) / "config.json").read_text())
config = diffusers_unet.config_from_diffusers(values)
width = diffusers_unet.text_width_from_diffusers(values)
shapes = jax.eval_shape(
    lambda key: models.init(config, key, resolution=64, text_width=width), jax.random.key(0)
)
files = open_tensors(sys.argv[1], "diffusion_pytorch_model")
layout = diffusers_unet.unet_layout(config)
params = read_layout(
    layout, files, shapes, dtype="bfloat16", sharding=lambda path, shape: device
)
"""


def memory_gb() -> float:
    with open("/proc/meminfo") as file:
        found = dict(line.split(":") for line in file)
    return int(found["MemAvailable"].split()[0]) / 1e6


def read(program: str, directory: Path, written: int) -> dict:
    """What a process that reads the weights reports; skips where the memory has no room."""
    if memory_gb() < written / 1e9 + 3:
        pytest.skip(f"the weights take {written / 1e9:.1f} GB; {memory_gb():.1f} GB are free")
    report = run_reader(program, str(directory))
    print(
        f"\n{report['params'] / 1e9:.2f} GB in {report['seconds']:.0f} s, "
        f"peak {report['peak'] / 2**30:.2f} GiB"
    )
    assert report["params"] == written
    assert report["dtypes"] == ["bfloat16"]
    assert report["equal"]
    return report


@pytest.mark.slow
@pytest.mark.parametrize("layers", LAYERS)
def test_t5_xxl_streams_to_its_device(layers, tmp_path):
    config = dataclasses.replace(t5.T5_V1_1["xxl"], num_layers=layers)
    shapes = tensor_shapes(encoder_layout(config), encoder_shapes(config))
    values = {
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "num_layers": layers,
        "d_ff": config.d_ff,
        "feed_forward_proj": "gated-gelu",
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    written = write_shards(tmp_path, "model", shapes)
    report = read(T5_READER, tmp_path, written)
    assert report["peak"] < report["params"] + ROOM


@pytest.mark.slow
def test_the_largest_first_stage_streams_to_its_device(tmp_path):
    config = config_from_diffusers(XL)

    def init(key):
        return models.init(config, key, resolution=64, text_width=XL["encoder_hid_dim"])

    shapes = jax.eval_shape(init, jax.random.key(0))
    (tmp_path / "config.json").write_text(json.dumps(XL))
    tensors = tensor_shapes(unet_layout(config), shapes)
    written = write_shards(tmp_path, "diffusion_pytorch_model", tensors)
    assert 4.2e9 < written / 2 < 4.4e9  # parameters
    report = read(UNET_READER, tmp_path, written)
    assert report["peak"] < 12 * 2**30
    assert report["peak"] < report["params"] + ROOM

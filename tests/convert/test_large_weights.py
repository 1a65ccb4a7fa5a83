"""Weights of the real size stream to their devices: memory stays near what is placed."""

import dataclasses
import json

import pytest

from imagen_jax.convert.t5 import encoder_layout, encoder_shapes
from imagen_jax.models import t5
from tests.convert.large_weights import run_reader, tensor_shapes, write_shards

# T5-XXL has 24 layers, 9.5 GB in bf16; 6 of them show the same in 2.6 GB.
LAYERS = (6, 24)
ROOM = 1.5e9  # above the parameters: Python and JAX, one tensor, one tensor's share

T5_READER = """
import sys, time
import jax
from jax.sharding import SingleDeviceSharding
from imagen_jax.convert import t5
from imagen_jax.convert.safetensors import TensorFiles
start = time.monotonic()
device = SingleDeviceSharding(jax.devices()[0])
config, params = t5.load_huggingface(sys.argv[1], dtype=None, sharding=lambda path, shape: device)
files, layout = TensorFiles(sys.argv[1], "model"), t5.encoder_layout(config)
"""


def memory_gb() -> float:
    with open("/proc/meminfo") as file:
        found = dict(line.split(":") for line in file)
    return int(found["MemAvailable"].split()[0]) / 1e6


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
    if memory_gb() < written / 1e9 + 3:
        pytest.skip(f"the weights take {written / 1e9:.1f} GB; {memory_gb():.1f} GB are free")
    report = run_reader(T5_READER, str(tmp_path))
    print(
        f"\n{layers} layers: {report['params'] / 1e9:.2f} GB in {report['seconds']:.0f} s, "
        f"peak {report['peak'] / 1e9:.2f} GB"
    )
    assert report["params"] == written
    assert report["dtypes"] == ["bfloat16"]
    assert report["equal"]
    assert report["peak"] < report["params"] + ROOM

"""Every number in the description of a model, changed to ones that no model has: taken or refused
at once, and refused by name.
"""

import copy
import json
import resource
import time

import pytest

from imagen_jax.convert.diffusers_unet import config_from_diffusers
from imagen_jax.convert.t5 import config_from_huggingface
from imagen_jax.pipeline.model_directory import read_model

ODD = (-1, 0, 1.5, 10**6, 10**12, 1e308, None, "x", [])
T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "num_heads": 64, "d_kv": 64,
    "num_layers": 24, "d_ff": 10240, "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}  # fmt: skip
# DeepFloyd IF's first stage.
IF = {
    "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64, "block_out_channels": [704, 1408, 2112, 2816],
    "cross_attention_dim": 2816, "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "encoder_hid_dim": 4096, "in_channels": 3, "layers_per_block": 3,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 6, "resnet_out_scale_factor": 1,
    "resnet_time_scale_shift": "scale_shift", "sample_size": 64, "time_embedding_dim": 2816,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}  # fmt: skip


def numbers_in(values, path=()):
    """The paths of all numbers in JSON values."""
    entries = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in entries:
        if isinstance(value, dict | list):
            yield from numbers_in(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


def changed(values, path, value):
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def refusals(read, values, paths, odd=ODD):
    """{(path, value): message} of what is refused; `read` raises nothing else, and is quick."""
    found = {}
    for path in paths:
        for value in odd:
            start = time.process_time()
            try:
                read(changed(values, path, value))
            except ValueError as error:
                found[path, str(value)] = str(error)
            assert time.process_time() - start < 1, (path, value)
    for (path, value), message in found.items():
        name = next(key for key in reversed(path) if isinstance(key, str))
        assert name in message, (path, value, message)
        assert len(message) < 600
    return found


@pytest.fixture
def model(repository):
    """model.json of the shipped model, and what reads another in its place."""
    folder = repository / "imagen_jax" / "pretrained" / "icons"
    return json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_of_the_shipped_model(whole, model, tmp_path):
    def read(values):
        (tmp_path / "model.json").write_text(json.dumps(values))
        return read_model(tmp_path)

    read(model)
    network = ("stages", 0, "stage", "network")
    paths = [path for path in numbers_in(model) if path[0] in ("stages", "text_encoder")]
    assert len(paths) > 60
    odd = ODD
    if not whole:
        paths = [path for path in paths if path[:3] == network[:3] or path[0] == "text_encoder"]
        odd = (-1, 1.5, 10**6, 10**12)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = refusals(read, model, paths, odd)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3  # kB
    for path in (p for p in paths if p[:4] == network):
        for value in (10**12, -1):
            assert (path, str(value)) in found, path
    level = (*network, "levels", 1)
    assert found[(*level, "num_res_blocks"), "1000000"].endswith(
        "stages.0.stage.network.levels.1: EfficientLevel.num_res_blocks is 1000000; it must be a "
        "whole number from 1 to 64."
    )
    assert "'stages.0.stage.network.levels.1.channels' is 1.5" in found[(*level, "channels"), "1.5"]
    assert "resolution 1000000" in found[(*network[:3], "resolution"), "1000000"]


@pytest.mark.parametrize(
    ("read", "values"), [(config_from_diffusers, IF), (config_from_huggingface, T5)]
)
def test_of_foreign_configs(read, values):
    read(values)
    paths = [path for path in numbers_in(values) if path != ("sample_size",)]
    found = refusals(read, values, paths)
    for path in paths:
        for value in (10**12, 1e308, "x", -1, []):
            assert (path, str(value)) in found, path

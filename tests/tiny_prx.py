"""PRXPixel pipelines of diffusers with tiny random networks, written as it writes them."""

import json
from pathlib import Path

import numpy as np
import pytest

REASON = "the reference implementation is in the extra 'parity'"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

torch.set_num_threads(1)
TINY = {
    "patch_size": 2,
    "in_channels": 3,
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "axes_dim": [4, 4],
    "bottleneck_size": 8,
    "resolution_embeds": True,
}


def relative_error(ours, theirs) -> float:
    """Of all values together, in L2."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def randomize(network, seed: int):
    """Random parameters throughout, also where initialization leaves ones and zeros."""
    rng = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        noise = rng.standard_normal(parameter.shape)
        if parameter.ndim > 1:
            value = noise / np.sqrt(noise[0].size)
        else:
            value = 0.3 * noise + ("norm" in name and name.endswith("weight"))
        parameter.data = torch.from_numpy(value.astype(np.float32))
    return network.eval()


def pipeline(seed: int, shift: float = 3.0, **network):
    """Without a text encoder: it is given embeddings."""
    transformer = randomize(diffusers.PRXTransformer2DModel(**{**TINY, **network}), seed)
    made = diffusers.PRXPixelPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=None,
        tokenizer=None,
        default_sample_size=8,
    )
    made.set_progress_bar_config(disable=True)
    return made


def save(made, directory: Path) -> Path:
    """Writes a pipeline; its index names a text encoder as that of the public weights does."""
    made.save_pretrained(directory)
    change_json(
        directory / "model_index.json",
        text_encoder=["transformers", "Qwen3VLTextModel"],
        tokenizer=["transformers", "Qwen2TokenizerFast"],
    )
    return directory


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

"""DeepFloyd IF pipelines of diffusers with tiny random networks, written as it writes them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

REASON = "the reference implementation is in the extra 'parity'"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

torch.set_num_threads(1)
TEXT_WIDTH = 24
WORDS = [
    "a photo of a red cat",
    "two dogs on the beach, oil on canvas",
    "the quick brown fox jumps over a lazy dog",
    "blue sunglasses and seven balloons",
]
BASE_SIZE, SR_SIZE = 8, 32
UNET = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 3,
    "attention_head_dim": 8,
    "block_out_channels": [32, 64],
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "encoder_hid_dim": TEXT_WIDTH,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": BASE_SIZE,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
# Stages II and III have these, and this repository's tests/pipelines/deepfloyd_if only some.
SR_UNET = UNET | {
    "class_embed_type": "timestep",
    "in_channels": 6,
    "layers_per_block": [1, 2],
    "mid_block_scale_factor": 1.4142271248762552,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "resnet_skip_time_act": True,
    "sample_size": SR_SIZE,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 32,
}
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
    "thresholding": True,
    "variance_type": "learned_range",
}


def write_tokenizer(path: Path) -> Path:
    """A SentencePiece model of T5's kind, trained on WORDS."""
    import sentencepiece

    path.mkdir(parents=True, exist_ok=True)
    with open(path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS * 4), model_writer=file, vocab_size=90,
            hard_vocab_limit=False, minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        )  # fmt: skip
    return path


def randomize(network, seed: int):
    """Random parameters throughout, also where initialization leaves ones and zeros.

    The last layer's are small: otherwise guided sampling is so chaotic that diffusers in float32
    and in float64 differ by 3e-3.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        noise = rng.standard_normal(parameter.shape)
        if name.endswith("weight") and parameter.ndim > 1:
            value = noise / np.sqrt(noise[0].size)
        else:
            value = 0.3 * noise + ("norm" in name and name.endswith("weight"))
        value = value * (0.1 if name.startswith("conv_out") else 1.0)
        parameter.data = torch.from_numpy(value.astype(np.float32))
    return network.eval()


def text_components(place: Path, seed: int = 0) -> dict:
    tokenizer = transformers.T5Tokenizer.from_pretrained(write_tokenizer(place), extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer) + 5, d_model=TEXT_WIDTH, d_kv=8, num_heads=3, num_layers=2,
        d_ff=32, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    encoder = randomize(transformers.T5EncoderModel(config), seed)
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def components(text: dict, super_resolution: bool, seed: int = 1, **scheduler) -> dict:
    """The arguments of a pipeline."""
    unet = diffusers.UNet2DConditionModel(**(SR_UNET if super_resolution else UNET))
    scheduler = SCHEDULER | ({"sample_max_value": 1.0} if super_resolution else {}) | scheduler
    parts = {
        **text,
        "unet": randomize(unet, seed),
        "scheduler": diffusers.DDPMScheduler(**scheduler),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    if super_resolution:
        noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        parts["image_noising_scheduler"] = noising
    return parts


def save(pipeline, directory: Path, tokenizer: Path | None = None) -> Path:
    """Writes a pipeline; transformers no longer writes the SentencePiece model, which IF's has."""
    pipeline.save_pretrained(directory)
    if tokenizer is not None:
        shutil.copyfile(tokenizer / "spiece.model", directory / "tokenizer" / "spiece.model")
    return directory

"""The base model of the shipped emoji cascade: text in English or Chinese to 32x32 images.

    python scripts/prepare_emoji.py --out data/emoji
    python scripts/pretrain_text.py --config configs/emoji_base32.py --workdir runs/text \
        --steps=21000
    python scripts/train.py --config configs/emoji_base32.py --workdir runs/base32

Made for a machine without an accelerator: patches of 4x4 pixels are folded into channels, so that
all work is done at 8x8 and 4x4, where a CPU's matrix units are busy. As in the paper, the text
encoder is trained beforehand and frozen. Since none is pretrained on a vocabulary this small, it
learns to predict the images from their captions, and that prediction (`draft`) is an input beside
the noisy image. The paper's own networks are `imagen_jax.models.UNetConfig`, and
`EfficientUNetConfig` without `patch_size`, `upsample_kernel` and `draft`. Hardware, time and
result: the model's card, imagen_jax/pretrained/emoji/README.md. --config.init_from=emoji continues
from the shipped weights instead; the second command is then not needed.
"""

from pathlib import Path

from ml_collections import ConfigDict

SHIPPED = Path(__file__).parent.parent / "imagen_jax" / "pretrained" / "emoji"


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 16,
            "num_steps": 5000,
            "log_every": 100,
            "ema_decay": 0.998,
            "init_from": "runs/text",
        }
    )
    config.stage = {
        "name": "base32",
        "resolution": 32,
        "conditioning": "text",
        "text_width": 192,
        "prediction": "v",  # the paper predicts eps; v is stable where patches are large
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "time_power": 0.7,  # most of what the text decides is decided at high noise
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 128, "num_res_blocks": 1, "stride": 1, "attention": None},
                {"channels": 256, "num_res_blocks": 2, "stride": 2, "attention": "self"},
            ],
            "patch_size": 4,
            "upsample_kernel": 1,
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 512,
            "draft": True,
            "input_skip": True,
        },
    }
    config.text = {
        "tokenizer": str(SHIPPED / "spiece.model"),
        "max_length": 20,
        "trainable": False,
        "dropout": 0.1,
        "init_from": None,  # where config.init_from has it
        "encoder": {
            "vocab_size": 6000,
            "d_model": 192,
            "num_heads": 3,
            "head_dim": 64,
            "num_layers": 1,
            "d_ff": 384,
            # Words are learned twenty times as fast as the rest; the size at the start is T5's, 1.
            "embedding_init_scale": 0.05,
            "embedding_multiplier": 20.0,
        },
    }
    config.data = {"source": "npz", "path": "data/emoji/emoji.npz", "split": "train"}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 200,
        "decay_steps": 5000,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 500, "keep": 2, "keep_best": 0}
    config.sample = {
        "every": 1000,
        "prompts": [
            "grinning face",
            "red heart",
            "dog face",
            "pizza",
            "flag: Japan",
            "woman firefighter: medium skin tone",
            "红心",
            "猫脸",
        ],
        "sampler": "dpmpp_2m",
        "steps": 12,
        "guidance": 2.0,
        "threshold": "static",
    }
    return config

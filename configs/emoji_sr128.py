"""The super-resolution model of the shipped emoji cascade: 32x32 images to 128x128.

    python scripts/train.py --config configs/emoji_sr128.py --workdir runs/sr128
    python scripts/export.py --model runs/base32,runs/sr128 --out models/mine

The second command puts it behind a base model (configs/emoji_base32.py) in a model directory. Reads
the text with the base model's encoder, frozen. Like the base, it folds 4x4 patches into channels to
suit a CPU. --config.init_from=emoji --config.text.init_from=None goes on from the shipped weights,
encoder and all. Hardware, time and expected result: imagen_jax/pretrained/emoji/README.md.
"""

from pathlib import Path

from ml_collections import ConfigDict

SHIPPED = Path(__file__).parent.parent / "imagen_jax" / "pretrained" / "emoji"


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.num_steps = 5000
    config.log_every = 100
    config.ema_decay = 0.998
    config.init_from = None
    config.stage = {
        "name": "sr128",
        "resolution": 128,
        "low_resolution": 32,
        "conditioning": "text",
        "text_width": 192,
        "prediction": "v",
        "loss": {"weight": "v"},
        # The 32x32 image says nearly all; the highest noise, where it decides, comes most often.
        "time_power": 0.5,
        "schedule": {"kind": "cosine", "shift": -1.3863},  # 2 log(64 / 128): more noise
        # Half of the paper's range: the base model's images are clean, and training is short.
        "aug_levels": [0.0, 0.5],
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 64, "num_res_blocks": 1, "stride": 1, "attention": None},
                {"channels": 96, "num_res_blocks": 1, "stride": 2, "attention": None},
                {"channels": 128, "num_res_blocks": 1, "stride": 2, "attention": "cross"},
            ],
            "low_res_channels": 3,
            "patch_size": 4,
            "upsample_kernel": 1,
            "input_skip": True,
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 256,
        },
    }
    config.text = {
        "tokenizer": str(SHIPPED / "spiece.model"),
        "max_length": 20,
        "trainable": False,
        "dropout": 0.1,
        "init_from": "runs/text",
        "encoder": {
            "vocab_size": 6000,
            "d_model": 192,
            "num_heads": 3,
            "head_dim": 64,
            "num_layers": 1,
            "d_ff": 384,
            "embedding_init_scale": 0.05,
            "embedding_multiplier": 20.0,
        },
    }
    config.data = {"source": "npz", "path": "data/emoji/emoji.npz", "split": "train"}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "decay_steps": 5000,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 500, "keep": 2, "keep_best": 0}
    config.sample = {
        "every": None,
        "prompts": ["grinning face", "red heart", "dog face", "pizza", "flag: Japan", "红心"],
        "sampler": "dpmpp_2m",
        "steps": 2,
        "guidance": 1.0,
        "threshold": "static",
        "aug_level": 0.2,
    }
    return config

"""The super-resolution model of the shipped emoji cascade: 32x32 images to 128x128.

    python scripts/train.py --config configs/emoji_sr128.py --workdir runs/sr128
    python scripts/export.py --model runs/base32,runs/sr128 --out models/mine

The second command joins it with a base model (configs/emoji_base32.py) in one model directory. It
reads the text with the base model's frozen encoder and, like the base, folds 4x4 patches into
channels to suit a CPU. --config.init_from=emoji --config.text.init_from=None continues from the
shipped weights, the encoder's included. Hardware, time and expected result:
imagen_jax/pretrained/emoji/README.md. What is not set here is as in emoji_base32.
"""

from ml_collections import ConfigDict

from configs import emoji_base32


def get_config() -> ConfigDict:
    config = emoji_base32.get_config()
    config.batch_size = 8
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
    config.text.init_from = "runs/text"
    config.optimizer.warmup_steps = 100
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

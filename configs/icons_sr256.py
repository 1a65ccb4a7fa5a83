"""The super-resolution model of the icon cascade, on one GPU: 64x64 icons to 256x256.

    imagen-jax train --config icons_sr256 --workdir runs/sr256
    imagen-jax save_model --model runs/base64,runs/sr256 --out models/icons

The second command joins it with a base model (icons_base64.py), whose frozen text encoder it reads
the captions with. Like the base it folds patches into channels. Meant for one H100 or H200;
it has not been trained to the end here. icons_sr256_cpu.py has the smaller network that ships.
"""

from ml_collections import ConfigDict

from . import icons_base64


def get_config() -> ConfigDict:
    config = icons_base64.get_config()
    config.batch_size = 128
    config.num_steps = config.optimizer.decay_steps = 5000
    config.stage = {
        "name": "sr256",
        "resolution": 256,
        "low_resolution": 64,
        "conditioning": "text",
        "text_width": 192,
        "prediction": "v",
        "loss": {"weight": "v"},
        # The 64x64 image says nearly all; the highest noise, where it decides, comes most often.
        "time_power": 0.5,
        "schedule": {"kind": "cosine", "shift": -2.7726},  # 2 log(64 / 256): more noise
        # Half of the paper's range: the base model's images are clean, and training is short.
        "aug_levels": [0.0, 0.5],
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 64, "num_res_blocks": 1, "stride": 1, "attention": None},
                {"channels": 96, "num_res_blocks": 2, "stride": 2, "attention": None},
                {"channels": 144, "num_res_blocks": 2, "stride": 2, "attention": "cross"},
            ],
            "low_res_channels": 3,
            "patch_size": 4,
            "upsample_kernel": 1,
            "input_skip": True,
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 256,
            "dtype": "bfloat16",
        },
    }
    config.text.trainable = False
    config.text.init_from = "runs/base64"
    config.data = {
        "source": "tar",
        "path": "data/icons/256",
        "split": "train",
        "text": "json.captions",
        "weights": True,
    }
    config.sample = {
        "every": None,
        "prompts": ["grinning face, flat style", "red heart, 3d style", "红心，线条风格"],
        "sampler": "dpmpp_2m",
        "steps": 4,
        "guidance": 1.0,
        "threshold": "static",
        "aug_level": 0.1,
    }
    return config

"""A super-resolution model of your own on two CPU cores: 32x32 images with captions to 128x128.

    imagen-jax train --config folder_sr128_cpu --workdir runs/sr --config.data.path=IMAGES
    imagen-jax generate "a prompt" --model runs/base,runs/sr

It reads captions with the text encoder of runs/base, which folder_32_cpu has trained; with another
workdir --config.text.init_from=WORKDIR. Trained on crops of 64x64, as the paper trains its largest
stage on crops: nothing in it attends beyond the text, so that it upsamples whole images. 2.4M
parameters. Time and result: docs/tutorial.md.
"""

from ml_collections import ConfigDict

from . import folder_32_cpu


def get_config() -> ConfigDict:
    config = folder_32_cpu.get_config()
    config.num_steps = config.optimizer.decay_steps = 1000
    config.ema_decay = 0.98
    config.stage = {
        "name": "sr128",
        "resolution": 128,
        "low_resolution": 32,
        "crop": 64,
        "conditioning": "text",
        "text_width": 128,
        "prediction": "v",
        "loss": {"weight": "v"},
        # The 32x32 image says nearly all; the highest noise, where it decides, comes most often.
        "time_power": 0.5,
        "schedule": {"kind": "cosine", "shift": -1.3863},  # 2 log(64 / 128): more noise
        # A part of the paper's range: the base model's images are clean, and training is short.
        "aug_levels": [0.0, 0.3],
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
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 256,
            "input_skip": True,
            "dtype": "float32",
        },
    }
    config.text.trainable = False
    config.text.init_from = "runs/base"
    config.checkpoint.every = 500
    config.sample = {
        "every": None,
        "prompts": config.sample.prompts,  # as many images of the set are upsampled
        "sampler": "dpmpp_2m",
        "steps": 2,
        "guidance": 1.0,
        "threshold": "static",
        "aug_level": 0.1,
    }
    return config

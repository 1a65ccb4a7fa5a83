"""The base model of the icon cascade, on one GPU: text in English or Chinese to 64x64 icons.

    imagen-jax prepare_icons --out data/icons
    imagen-jax pretrain_text --config icons_base64 --workdir runs/text \
        --steps 3000 --batch_size 512
    imagen-jax train --config icons_base64 --workdir runs/base64

For one H100 or H200 in bfloat16: 17M parameters, 1.5M images or 90 passes over the set, two and a
half minutes at 10,000 images/s. The network that ships was trained so; its card,
imagen_jax/pretrained/icons/README.md, says what differed. --init_from icons goes on from it. On
CPUs use icons_base64_cpu.py.

The text encoder learns to guess the images from their captions first, and is trained along with the
network then: diffusion teaches words slowly. `data.weights` shows a thing with many variants (skin
tones, genders) less often than all of them together would come, by the square root of their number.
"""

from ml_collections import ConfigDict

from imagen_jax.pipeline.shipped import PRETRAINED


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 512,
            "num_steps": 3000,
            "log_every": 100,
            "ema_decay": 0.999,
            "init_from": None,
        }
    )
    config.stage = {
        "name": "base64",
        "resolution": 64,
        "conditioning": "text",
        "text_width": 192,
        "prediction": "v",
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "time_power": 0.7,  # most of what the text decides is decided at high noise
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 96, "num_res_blocks": 2, "stride": 1, "attention": None},
                {"channels": 192, "num_res_blocks": 2, "stride": 2, "attention": "self"},
                {"channels": 288, "num_res_blocks": 2, "stride": 2, "attention": "self"},
            ],
            "patch_size": 2,
            "upsample_kernel": 1,
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 512,
            "input_skip": True,
            "dtype": "bfloat16",
        },
    }
    config.text = {
        "tokenizer": str(PRETRAINED / "icons" / "spiece.model"),
        "max_length": 32,
        "trainable": True,
        "dropout": 0.1,
        "init_from": "runs/text",
        "encoder": {
            "vocab_size": 6000,
            "d_model": 192,
            "num_heads": 3,
            "head_dim": 64,
            "num_layers": 2,
            "d_ff": 512,
            # Words are learned twenty times as fast as the rest; the size at the start is T5's, 1.
            "embedding_init_scale": 0.05,
            "embedding_multiplier": 20.0,
        },
    }
    config.data = {
        "source": "npz",
        "path": "data/icons/icons64.npz",
        "split": "train",
        "weights": True,
        "on_device": True,  # 0.2 GB: a step is sent captions and numbers, no images
    }
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1.2e-3,
        "warmup_steps": 90,
        "decay_steps": 3000,
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
            "grinning face, flat style",
            "red heart, 3d style",
            "dog face, twemoji style",
            "pizza, outline style",
            "flag: Japan, classic style",
            "firefighter, noto style",
            "红心，立体风格",
            "猫脸，扁平风格",
        ],
        "sampler": "dpmpp_2m",
        "steps": 16,
        "guidance": 3.0,
        "threshold": "static",
    }
    return config

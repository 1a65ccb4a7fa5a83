"""A base model of your own on two CPU cores: a folder of images with captions to 32x32 images.

    imagen-jax train --config folder_32_cpu --workdir runs/base --config.data.path=IMAGES

IMAGES holds cat.png beside cat.txt, or one captions.jsonl or captions.csv, as the forty icons of
docs/tutorial.md do; folder_sr128_cpu upsamples what it makes. 7M parameters with the encoder, which
reads captions as bytes, in any language, and is trained along. The forty icons come back from their
captions, 40 of 40; the tutorial has the time.

For small sets, which it learns by heart: `draft` is a guess of the image from the text alone, which
the network improves on. More images want more steps, and --config.ema_decay=0.999 from 3,000 on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 16,
            "num_steps": 700,
            "log_every": 50,
            "ema_decay": 0.99,
            "init_from": None,
        }
    )
    config.stage = {
        "name": "base32",
        "resolution": 32,
        "conditioning": "text",
        "text_width": 128,
        "prediction": "v",
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "time_power": 0.7,  # most of what the text decides is decided at high noise
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 64, "num_res_blocks": 1, "stride": 1, "attention": None},
                {"channels": 128, "num_res_blocks": 2, "stride": 2, "attention": "cross"},
                {"channels": 192, "num_res_blocks": 1, "stride": 2, "attention": "cross"},
            ],
            "patch_size": 2,
            "upsample_kernel": 1,
            "num_heads": 4,
            "attention_hidden_ratio": 1.0,
            "embedding_width": 256,
            "draft": True,
            "input_skip": True,
            "dtype": "float32",
        },
    }
    config.text = {
        "tokenizer": "bytes",
        "max_length": 96,
        "trainable": True,
        "dropout": 0.1,
        "init_from": None,
        "encoder": {
            "vocab_size": 384,
            "d_model": 128,
            "num_heads": 2,
            "head_dim": 64,
            "num_layers": 2,
            "d_ff": 256,
            "embedding_init_scale": 0.05,
        },
    }
    config.data = {"source": "folder", "path": None, "split": "all", "flip": False}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 50,
        "decay_steps": 700,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 350, "keep": 1, "keep_best": 0}
    config.sample = {
        "every": 175,
        "prompts": ["a penguin", "a green apple", "a rocket", "a red heart"],
        "sampler": "dpmpp_2m",
        "steps": 16,
        "guidance": 2.0,
        "threshold": "static",
    }
    return config

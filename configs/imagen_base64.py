"""The paper's base model: text to 64x64 pictures, 2B parameters (arXiv 2205.11487, F.1)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 2048
    config.num_steps = 2_500_000
    config.log_every = 100
    config.ema_decay = 0.9999
    config.init_from = None
    config.frozen_dtype = "bfloat16"
    config.stage = {
        "name": "base64",
        "resolution": 64,
        "conditioning": "text",
        "text_width": 4096,
        "prediction": "eps",
        "loss": {"weight": "eps"},
        "schedule": {"kind": "cosine"},
        "network": {
            "kind": "unet",
            "levels": [
                {"channels": 512, "num_res_blocks": 3, "attention": None},
                {"channels": 1024, "num_res_blocks": 3, "attention": "self"},
                {"channels": 1536, "num_res_blocks": 3, "attention": "self"},
                {"channels": 2048, "num_res_blocks": 3, "attention": "self"},
            ],
            "head_channels": 64,
            "dtype": "bfloat16",
            "remat": "products",
        },
    }
    config.text = {
        "tokenizer": "bytes",
        "max_length": 128,
        "trainable": False,
        "dropout": 0.1,
        "init_from": "models/t5_v1_1_xxl",
        "encoder": {
            "vocab_size": 32128,
            "d_model": 4096,
            "num_heads": 64,
            "head_dim": 64,
            "num_layers": 24,
            "d_ff": 10240,
            "dtype": "bfloat16",
        },
    }
    config.data = {"source": "folder", "path": None, "split": "all", "flip": False}
    config.optimizer = {
        "kind": "adafactor",
        "learning_rate": 1e-4,
        "warmup_steps": 10_000,
        "decay_steps": 2_500_000,
        "clip_norm": 1.0,
        "accumulation": 1,
    }
    config.mesh = {"data": 1, "fsdp": None, "tensor": 1}
    config.checkpoint = {"every": 5000, "keep": 3, "keep_best": 0}
    config.sample = None
    return config

"""A base model of 8x8 images with a byte-level text encoder, as small as it goes."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 3
    config.batch_size = 8
    config.num_steps = 12
    config.log_every = 4
    config.ema_decay = 0.9
    config.init_from = None
    config.stage = {
        "name": "tiny",
        "resolution": 8,
        "conditioning": "text",
        "text_width": 8,
        "prediction": "v",
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 8, "num_res_blocks": 1, "stride": 1},
                {"channels": 16, "num_res_blocks": 1, "stride": 2, "attention": "self"},
            ],
            "num_heads": 2,
            "embedding_width": 16,
        },
    }
    config.text = {
        "tokenizer": "bytes",
        "max_length": 8,
        "trainable": True,
        "encoder": {
            "vocab_size": 259,
            "d_model": 8,
            "num_heads": 2,
            "head_dim": 4,
            "num_layers": 1,
            "d_ff": 8,
        },
    }
    config.data = {"source": "npz", "path": None, "num_threads": 1}
    config.optimizer = {"kind": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "eps": 1e-6}
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 4, "keep": 2, "keep_best": 1}
    config.sample = None
    return config

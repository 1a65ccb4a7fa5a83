"""A base model of your own: a folder of images with captions to 64x64 images.

    imagen-jax train --config folder_64 --workdir runs/mine \
        --config.data.path=IMAGES

IMAGES holds cat.png beside cat.txt, or one captions.jsonl or captions.csv. The network is the
paper's base U-Net (arXiv 2205.11487, F.1) at a quarter of its width, 157M parameters with the
encoder: one GPU with 40 GB, computing in bfloat16. Captions are read as bytes by an encoder that is
trained along with the network, so any language works; a set with few captions is memorized. Expect
recognizable images after some tens of epochs. Not run to the end here.

Webdataset shards, as img2dataset writes them, in place of the folder, without small or badly
described images:

        --config.data.source=tar --config.data.path='shards/{00000..00099}.tar' \
        --config.data.filters='{"min_size": 64, "scores": {"similarity": [0.3, 1]}}'
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            "num_steps": 200_000,
            "log_every": 100,
            "ema_decay": 0.9999,
            "init_from": None,
        }
    )
    config.stage = {
        "name": "base64",
        "resolution": 64,
        "conditioning": "text",
        "text_width": 512,
        "prediction": "v",
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "network": {
            "kind": "unet",
            "levels": [
                {"channels": 128, "num_res_blocks": 3, "attention": None},
                {"channels": 256, "num_res_blocks": 3, "attention": "self"},
                {"channels": 384, "num_res_blocks": 3, "attention": "self"},
                {"channels": 512, "num_res_blocks": 3, "attention": "self"},
            ],
            "head_channels": 64,
            "pooling_heads": 8,
            "dtype": "bfloat16",
            "remat": False,
        },
    }
    config.text = {
        "tokenizer": "bytes",
        "max_length": 128,
        "trainable": True,
        "dropout": 0.1,
        "init_from": None,
        "encoder": {
            "vocab_size": 384,
            "d_model": 512,
            "num_heads": 8,
            "head_dim": 64,
            "num_layers": 6,
            "d_ff": 1024,
            "embedding_init_scale": 0.05,
        },
    }
    config.data = {"source": "folder", "path": None, "split": "all", "flip": False}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-4,
        "warmup_steps": 2000,
        "decay_steps": 200_000,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "accumulation": 1,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 2000, "keep": 3, "keep_best": 1}
    config.sample = {
        "every": 5000,
        "prompts": ["a photo of a cat", "a red flower"],
        "sampler": "dpmpp_2m",
        "steps": 25,
        "guidance": 3.0,
    }
    return config

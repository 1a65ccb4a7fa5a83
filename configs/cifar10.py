"""CIFAR-10 by class label, 32x32; `--config.stage.conditioning=None` and
`--config.stage.network.num_classes=None` make it unconditional.

    pip install 'imagen_jax[train,tfds]'
    imagen-jax train --config cifar10 --workdir runs/cifar10

The network has the shape of improved DDPM's CIFAR-10 model (arXiv 2102.09672), 43M parameters: one
GPU, about a day for 500,000 steps in float32. Not run to the end here; published models of this
size reach an FID of about 3.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 128,
            "num_steps": 500_000,
            "log_every": 100,
            "ema_decay": 0.9999,
            "label_dropout": 0.1,
            "init_from": None,
        }
    )
    config.stage = {
        "name": "cifar10",
        "resolution": 32,
        "conditioning": "label",
        "prediction": "eps",
        "loss": {"weight": "eps"},
        "schedule": {"kind": "cosine"},
        "network": {
            "kind": "unet",
            "levels": [
                {"channels": 128, "num_res_blocks": 2, "attention": None},
                {"channels": 256, "num_res_blocks": 2, "attention": "self"},
                {"channels": 256, "num_res_blocks": 2, "attention": None},
                {"channels": 256, "num_res_blocks": 2, "attention": None},
            ],
            "head_channels": 64,
            "num_classes": 10,
            "dtype": "float32",
        },
    }
    config.text = None
    config.data = {"source": "tfds", "path": "cifar10", "split": "train", "flip": True}
    config.optimizer = {
        "kind": "adam",
        "learning_rate": 2e-4,
        "warmup_steps": 5000,
        "decay_steps": None,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 5000, "keep": 3, "keep_best": 1}
    config.sample = {
        "every": 10_000,
        "labels": list(range(10)),
        "sampler": "ddpm",
        "steps": 250,
        "guidance": 1.0,
        "threshold": "static",
    }
    return config

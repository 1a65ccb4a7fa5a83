r"""A stage of any trained model, trained further on images of your own.

    imagen-jax train --config fine_tune --workdir runs/mine \
        --config.data.path=IMAGES
    imagen-jax generate "a prompt" --model runs/mine

The base of the shipped model, or with --config.stage.name=sr256 its super-resolution; with
--init_from another shipped model, a model directory or a workdir. Network, schedule, text encoder
and sampler are the model's own, and the encoder stays as it is. IMAGES holds cat.png beside
cat.txt, or captions.jsonl or captions.csv. The rate is a tenth of that of training from nothing;
few images are memorized after some hundred passes. Hardware: two CPU cores for the shipped model.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 16,
            "num_steps": 1000,
            "log_every": 20,
            "ema_decay": 0.99,
            "init_from": "icons",
        }
    )
    config.stage = {"name": "base64"}
    config.text = {"trainable": False, "dropout": 0.1}
    config.data = {"source": "folder", "path": None, "split": "all", "prompt": None}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-4,
        "warmup_steps": 50,
        "decay_steps": 1000,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 200, "keep": 2, "keep_best": 0}
    config.sample = {"every": None, "prompts": []}
    return config

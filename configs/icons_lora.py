r"""An adapter to the shipped model, on a laptop: new images for a prompt of your own.

    imagen-jax generate "dog face, 3d style" --num_images 64 --size 64 --no_grid \
        --out runs/dogs
    imagen-jax train --config icons_lora --workdir runs/icons_lora \
        --config.data.path=IMAGES --config.data.prompt="sks dog face, 3d style"
    imagen-jax generate "sks dog face, 3d style" --lora runs/icons_lora/lora.safetensors

IMAGES is a folder with some images of one subject on white. The first command generates the prior
of DreamBooth (arXiv 2208.12242): dog faces that are to stay as they are. The adapter changes the
base model's attention; the super-resolution stage and the text encoder are used as they are.
Hardware: two CPU cores, some minutes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 16,
            "num_steps": 300,
            "log_every": 20,
            "ema_decay": None,
            "init_from": "icons",
        }
    )
    config.lora = {"rank": 16, "alpha": None}
    config.stage = {"name": "base64"}
    config.text = {"trainable": False, "dropout": 0.0}
    config.data = {
        "source": "folder",
        "path": None,
        "split": "all",
        "prompt": None,
        "prior": {
            "source": "folder",
            "path": "runs/dogs",
            "split": "all",
            "prompt": "dog face, 3d style",
            "share": 0.5,
            "weight": 1.0,
        },
    }
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-3,
        "warmup_steps": 20,
        "decay_steps": 300,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 100, "keep": 1, "keep_best": 0}
    prompts = ["sks dog face, 3d style", "dog face, 3d style", "cat face, flat style"]
    config.sample = {"every": 100, "prompts": prompts}
    return config

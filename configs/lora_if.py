"""An adapter (LoRA, arXiv 2106.09685) for DeepFloyd IF or any other trained stage, from a folder of
images with captions.

    imagen-jax train --config lora_if --workdir runs/lora \
        --init_from DIRECTORY --config.data.path=IMAGES
    imagen-jax generate "a prompt" --model DIRECTORY --lora runs/lora/lora.safetensors \
        --dtype bfloat16 --low_memory

DIRECTORY is IF's stage I as diffusers saves it, a model directory or a workdir; of several stages
--config.stage.name chooses one. The network, its schedule, the text encoder and the sampler are the
model's own. IMAGES holds cat.png beside cat.txt, or captions.jsonl or captions.csv. The loss is
the hybrid one (arXiv 2102.09672, eq. 16), so that the learned variance is trained too; for a stage
without one, set --config.stage.loss.vlb_weight=0.

Hardware: the encoder and the network are frozen and kept in bfloat16, and the state holds only the
adapter. IF-I-XL (4.3B parameters) with T5-XXL needs about 18 GB for both and as much again for the
activations of 8 images: one GPU of 80 GB; --config.mesh.fsdp=4 spreads it over four of 24 GB.
Expect the style of the images after some hundred steps, and memorized subjects after some thousand.
Not run to the end here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 8,
            "num_steps": 1000,
            "log_every": 20,
            # The final adapter is used: the run is short, and its rate falls to 0.
            "ema_decay": None,
            "init_from": None,
            "frozen_dtype": "bfloat16",
        }
    )
    config.lora = {"rank": 8, "alpha": None}
    config.stage = {
        "name": None,
        "network": {"dtype": "bfloat16", "remat": True},
        "loss": {"vlb_weight": 0.001},
    }
    # The model already knows the null text of guidance; an adapter need not learn it.
    config.text = {"trainable": False, "dropout": 0.0}
    config.data = {
        "source": "folder",
        "path": None,
        "split": "all",
        "prompt": None,
        "flip": False,
    }
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-4,
        "warmup_steps": 50,
        "decay_steps": 1000,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 250, "keep": 2, "keep_best": 0}
    config.sample = {"every": 250, "prompts": ["a photo of a cat", "a red flower"]}
    return config

"""Networks, predictions and schedules beside each other: text to 32x32 icons at equal compute.

    imagen-jax compare_recipes --config compare_icons32 --out runs/compare \
        --flops 4e13 --seeds 0,1 --splits heldout,pair --prompts 200 --points 5 --jobs 2 \
        --cells transformer-x0-flow,transformer-v-flow,transformer-v-cosine,efficient_unet-v-cosine

Networks of about 4M parameters, with the text encoder of the shipped model, frozen: all cells read
the same embeddings. (The table in docs/recipes.md was made with the encoder of an earlier shipped
model, trained on one of the seven styles, held-out things among them.) Hardware: two CPU cores; a
cell of 4e13 FLOPs, 26,000 images of a transformer, takes about ten minutes of one core when nothing
else runs. Data and result: docs/recipes.md; of the 27 cells those that are not in its table have
not been run to the end.

    imagen-jax train --config compare_icons32 --workdir runs/icons32

trains the network below by itself.
"""

from ml_collections import ConfigDict

from . import icons_base64

NETWORKS = {
    "unet": {
        "kind": "unet",
        "levels": [
            {"channels": 32, "num_res_blocks": 1, "attention": None},
            {"channels": 64, "num_res_blocks": 1, "attention": None},
            {"channels": 108, "num_res_blocks": 2, "attention": "self"},
        ],
        "head_channels": 32,
        "pooling_heads": 3,
        "embedding_width": 256,
        "dtype": "float32",
    },
    "efficient_unet": {
        "kind": "efficient_unet",
        "levels": [
            {"channels": 80, "num_res_blocks": 1, "stride": 1, "attention": None},
            {"channels": 160, "num_res_blocks": 2, "stride": 2, "attention": "self"},
        ],
        "patch_size": 2,
        "num_heads": 4,
        "attention_hidden_ratio": 1.0,
        "embedding_width": 256,
    },
    "transformer": {
        "kind": "transformer",
        "width": 192,
        "depth": 6,
        "heads": 3,
        "patch_size": 4,
        "bottleneck": None,
    },
}


def get_axes() -> dict:
    """What each choice sets in the section `stage`: a cell is one of each."""
    return {
        "network": {name: {"network": network} for name, network in NETWORKS.items()},
        "prediction": {
            "eps": {"prediction": "eps", "loss": {"weight": "eps"}},
            "v": {"prediction": "v", "loss": {"weight": "v"}},
            "x0": {"prediction": "x0", "loss": {"weight": "v", "min_scale": 0.05}},
        },
        "schedule": {
            "cosine": {"schedule": {"kind": "cosine"}},
            "flow": {"schedule": {"kind": "flow"}, "time_logit_normal": (0.0, 1.0)},
            "flow_uniform": {"schedule": {"kind": "flow"}},
        },
    }


def get_config() -> ConfigDict:
    config = ConfigDict(
        {"seed": 0, "batch_size": 16, "num_steps": 2000, "log_every": 50, "ema_decay": 0.995}
    )
    config.stage = {
        "name": "icons32",
        "resolution": 32,
        "conditioning": "text",
        "text_width": 192,
        "prediction": "v",
        "loss": {"weight": "v"},
        "schedule": {"kind": "cosine"},
        "network": NETWORKS["efficient_unet"],
    }
    config.text = icons_base64.get_config().text
    config.text.update(max_length=24, trainable=False, init_from="icons")
    config.data = {"source": "npz", "path": "data/icons/icons32.npz", "split": "train"}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 8e-4,
        "warmup_steps": 100,
        "decay_steps": 2000,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 250, "keep": 1, "keep_best": 0}
    config.sample = {
        "prompts": ["dog face, flat style", "red heart, 3d style"],
        "sampler": "dpmpp_2m",
        "steps": 10,
        "guidance": 2.0,
        "threshold": "static",
    }
    return config

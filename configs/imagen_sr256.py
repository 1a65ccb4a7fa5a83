"""The paper's first super-resolution model: 64x64 to 256x256, 0.7B parameters (arXiv 2205.11487,
F.2).

    imagen-jax plan --config imagen_sr256 --topology v5p:4x4x4
    imagen-jax train --config imagen_sr256 --workdir runs/sr256 \
        --config.text.init_from=T5 --config.text.tokenizer=T5/spiece.model \
        --config.data.path=SHARDS

Text encoder, data, batch, schedule and dropout are those of imagen_base64, with the same notes. The
optimizer is Adam, as in the paper, because Adafactor made these models worse. Hardware: the paper's
128 TPU v4. Not run here.

Where the paper gives no value, we chose a cosine schedule for the augmentation's noise, 128
sampling steps, and augmentation level 0.1 in sampling. It gives 600M parameters, but its printed
configuration, used here, has 0.7B.
"""

from ml_collections import ConfigDict

from . import imagen_base64


def get_config() -> ConfigDict:
    config = imagen_base64.get_config()
    config.stage = {
        "name": "sr256",
        "resolution": 256,
        "low_resolution": 64,
        "conditioning": "text",
        "text_width": 4096,
        "prediction": "eps",
        "loss": {"weight": "eps"},
        "schedule": {"kind": "cosine"},
        "aug_levels": [0.0, 1.0],
        "network": {
            "kind": "efficient_unet",
            "levels": [
                {"channels": 128, "num_res_blocks": 2, "stride": 2, "attention": None},
                {"channels": 256, "num_res_blocks": 4, "stride": 2, "attention": None},
                {"channels": 512, "num_res_blocks": 8, "stride": 2, "attention": None},
                {"channels": 1024, "num_res_blocks": 8, "stride": 2, "attention": "self"},
            ],
            "low_res_channels": 3,
            "num_heads": 8,
            "dtype": "bfloat16",
            "remat": "products",
        },
    }
    config.optimizer.update({"kind": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8})
    config.sample.update({"steps": 128, "guidance": 8.0, "aug_level": 0.1})
    return config

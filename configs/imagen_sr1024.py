"""The paper's second super-resolution model: 256x256 to 1024x1024 (arXiv 2205.11487, F.3).

    imagen-jax plan --config imagen_sr1024 --topology v5p:4x4x4
    imagen-jax train --config imagen_sr1024 --workdir runs/sr1024 \
        --config.text.init_from=T5 --config.text.tokenizer=T5/spiece.model \
        --config.data.path=SHARDS

Trained on 256x256 crops of 1024x1024 images, upsampled from 64x64; sampled at the full 1024x1024.
No self-attention, cross-attention to the text in the last block, linear betas in continuous time.
Everything else is as in imagen_sr256, with the same notes. Hardware: the paper's 128 TPU v4. Not
run here.

The paper says 400M parameters, but its printed configuration, used here, has 0.66B.
"""

from ml_collections import ConfigDict

from . import imagen_sr256


def get_config() -> ConfigDict:
    config = imagen_sr256.get_config()
    config.stage.update({"name": "sr1024", "resolution": 1024, "low_resolution": 256, "crop": 256})
    config.stage.schedule = {"kind": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}
    config.stage.network.levels[-1]["attention"] = "cross"
    return config

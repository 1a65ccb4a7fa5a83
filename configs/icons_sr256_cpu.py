"""The network of the shipped super-resolution model, on two CPU cores: 64x64 to 256x256.

    imagen-jax train --config icons_sr256_cpu --workdir runs/sr256
    imagen-jax save_model --model runs/base64,runs/sr256 --out models/icons

Smaller than icons_sr256.py, and trained on crops of 128x128, as the paper trains its largest stage
on crops: nothing in it attends beyond the text, so that it upsamples whole images. Hardware, time
and result: the model's card, imagen_jax/pretrained/icons/README.md. --init_from icons
--config.text.init_from=None continues from the shipped weights, the encoder's included.
"""

from ml_collections import ConfigDict

from . import icons_sr256


def get_config() -> ConfigDict:
    config = icons_sr256.get_config()
    config.batch_size = 16
    config.num_steps = config.optimizer.decay_steps = 2500
    config.stage.crop = 128
    for level, channels in zip(config.stage.network.levels, (64, 96, 128), strict=True):
        level.update(channels=channels, num_res_blocks=1)
    config.stage.network.dtype = "float32"
    config.text.init_from = "runs/text"
    config.optimizer.learning_rate = 1e-3
    return config

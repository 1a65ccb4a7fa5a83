"""A base model of icons on two CPU cores: text to 64x64 icons, in about an hour and a half.

    imagen-jax prepare_icons --out data/icons
    imagen-jax pretrain_text --config icons_base64_cpu --workdir runs/text \
        --steps 20000 --batch_size 32
    imagen-jax train --config icons_base64_cpu --workdir runs/base64

What differs from icons_base64.py suits a machine without an accelerator: patches of 4x4 pixels are
folded into channels, so that all work is done at 16x16 and below, and the guess of the image that
the text encoder was trained with (`draft`) stays, as an input beside the noisy image. 160,000
images gave a top-1 retrieval of 20.8 % on trained things and 10.1 % on held-out pairs, where the
shipped base, icons_base64.py, has 28 % and 19 % (imagen-jax benchmark_icons). With
--config.init_from=None --config.text.init_from=icons it reads the shipped text encoder, and the
second command is not needed.
"""

from ml_collections import ConfigDict

from . import icons_base64


def get_config() -> ConfigDict:
    config = icons_base64.get_config()
    config.batch_size = 16
    config.num_steps = config.optimizer.decay_steps = 8500
    config.init_from = "runs/text"
    config.text.trainable = False  # so that the super-resolution model can be trained meanwhile
    config.text.init_from = None  # where config.init_from has it
    config.stage.network = {
        "kind": "efficient_unet",
        "levels": [
            {"channels": 96, "num_res_blocks": 1, "stride": 1, "attention": None},
            {"channels": 192, "num_res_blocks": 1, "stride": 2, "attention": "self"},
            {"channels": 256, "num_res_blocks": 2, "stride": 2, "attention": "self"},
        ],
        "patch_size": 4,
        "upsample_kernel": 1,
        "num_heads": 4,
        "attention_hidden_ratio": 1.0,
        "embedding_width": 512,
        "draft": True,
        "input_skip": True,
    }
    config.data.on_device = False  # whose memory is the host's
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    return config

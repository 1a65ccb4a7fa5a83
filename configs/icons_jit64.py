"""Text to 64x64 icons by today's recipe: the plain transformer (JiT, arXiv 2511.13720) predicts x0
on the flow, its loss is taken in v, and times are logit-normal (arXiv 2403.03206).

    imagen-jax train --config icons_jit64 --workdir runs/icons_jit64

Data: data/icons/icons64.npz of imagen-jax prepare_icons. 22M parameters. The text encoder starts as
that of the shipped model and is trained along.

Meant for one GPU in bfloat16. On CPUs: --config.stage.network.dtype=float32
--config.batch_size=16. It has not been trained to the end, so no result is promised: what is known
is the comparison of a network of 4M of this kind at 32x32 in docs/recipes.md, and that 30,000
images, which is what two cores of a CPU do in an hour or less, give the asked style and colours,
but no clear shapes yet.
"""

from ml_collections import ConfigDict

from . import icons_base64


def get_config() -> ConfigDict:
    config = icons_base64.get_config()
    config.batch_size = 256
    config.num_steps = 40_000  # each image about 600 times
    config.ema_decay = 0.9995
    config.stage = {
        "name": "icons64",
        "resolution": 64,
        "conditioning": "text",
        "text_width": 192,
        "schedule": {"kind": "flow"},
        # Section 4.1 and table 9: an x0-prediction with the error of v, divided by no sigma below
        # 0.05.
        "prediction": "x0",
        "loss": {"weight": "v", "min_scale": 0.05},
        # Table 9's (-0.8, 0.8), whose t is 1 at clean data. With (0, 1) too few images are so noisy
        # that the caption decides (docs/recipes.md).
        "time_logit_normal": (0.8, 0.8),
        "network": {
            "kind": "transformer",
            "width": 384,
            "depth": 8,
            "heads": 6,
            "patch_size": 8,
            "bottleneck": 64,  # a third of a patch's values
            "dtype": "bfloat16",
        },
    }
    config.text.init_from = "icons"
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 4e-4,
        "warmup_steps": 1000,
        "decay_steps": 40_000,
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.checkpoint.every = config.sample.every = 2000
    config.sample.update(
        sampler="heun", steps=25, guidance=2.5, guidance_interval=(0.1, 1.0), threshold="none"
    )
    return config

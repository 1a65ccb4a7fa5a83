r"""A student of the shipped model, in one to four steps and without guidance, on one GPU.

    imagen-jax prepare_icons --out data/icons
    launch/icons_fast.sh data/icons runs/icons_fast

The script stops after eight minutes and makes a model directory: on an H200, 2,000 steps took four
and a half. The "icons-fast" that ships was trained on two CPU cores by icons_fast_cpu.py, and is as
good; its card says what it can do.
"""

from ml_collections import ConfigDict

from . import distill, icons_base64


def get_config() -> ConfigDict:
    config, teacher = distill.get_config(), icons_base64.get_config()
    config.batch_size = 512
    config.num_steps = config.optimizer.decay_steps = 3000
    config.optimizer.learning_rate = 3e-4
    config.distill.teacher_steps = 8
    config.stage = {"name": "base64", "network": {"dtype": "bfloat16"}}
    config.data = teacher.data
    config.sample = {"every": 500, "prompts": teacher.sample.prompts}
    return config

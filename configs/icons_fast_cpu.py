"""The student of the shipped model that ships as "icons-fast", on two CPU cores.

    imagen-jax prepare_icons --out data/icons
    imagen-jax train --config icons_fast_cpu --workdir runs/icons_fast

The teacher needs 32 evaluations of the network for an image (16 steps with guidance), the student
one to four. 6,720 images take half an hour on quiet cores, and took 56 minutes beside other work.
At a rate of 2e-4 with batches of 8 the loss rose again.
"""

from ml_collections import ConfigDict

from . import icons_fast


def get_config() -> ConfigDict:
    config = icons_fast.get_config()
    config.batch_size = 16
    config.num_steps = config.optimizer.decay_steps = 420
    config.ema_decay = 0.985
    config.optimizer.learning_rate = 6e-5
    config.optimizer.warmup_steps = 20
    config.stage.network.dtype = "float32"
    config.data.on_device = False  # whose memory is the host's
    config.checkpoint.every = 50
    config.sample.every = config.log_every = 20
    return config

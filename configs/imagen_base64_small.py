"""The paper's base model at 0.3B parameters, for one host of 8 chips: imagen_base64 with a width of
192 instead of 512.

    imagen-jax plan --config imagen_base64_small --topology v5e:2x4
    imagen-jax train --config imagen_base64_small --workdir runs/base64_small \
        --config.text.init_from=T5 --config.text.tokenizer=T5/spiece.model \
        --config.data.path=SHARDS

It differs from the paper's in width, in the batch (256: at 2048 the schedule would take eight times
as long), and in the text encoder: T5 v1.1 large (google/t5-v1_1-large), because XXL would need more
of the chips than the network does. The parameters are split over all 8 chips. Hardware: 8 v5e
chips, or 8 GPUs of 24 GB. Not run here.
"""

from ml_collections import ConfigDict

from . import imagen_base64

T5_LARGE = "models/t5_v1_1_large"


def get_config() -> ConfigDict:
    return smaller(imagen_base64.get_config(), [192, 384, 576, 768])


def smaller(config: ConfigDict, widths: list[int]) -> ConfigDict:
    """The stage with these widths and T5 v1.1 large instead of XXL, for one host."""
    for level, channels in zip(config.stage.network.levels, widths, strict=True):
        level["channels"] = channels
    config.batch_size = 256
    config.mesh = {"data": 1, "fsdp": None, "tensor": 1}
    config.stage.text_width = 1024
    config.text.tokenizer = f"{T5_LARGE}/spiece.model"
    config.text.init_from = T5_LARGE
    config.text.encoder.update({"d_model": 1024, "num_heads": 16, "d_ff": 2816})
    return config

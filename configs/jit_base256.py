"""Text to 256x256 images in one stage: today's recipe (arXiv 2511.13720), the paper's text encoder.

    pip install 'imagen_jax[tpu]'
    imagen-jax plan --config jit_base256 --topology v5p:4x4x4
    imagen-jax train --config jit_base256 --workdir runs/jit256 \
        --config.text.init_from=T5 --config.text.tokenizer=T5/spiece.model \
        --config.data.path=SHARDS

A plain transformer of 1.0B parameters on 16x16 patches predicts the clean image on the flow, with
the error of the velocity as its loss. No super-resolution model follows. T5 is google/t5-v1_1-xl,
as Hugging Face or T5X have it; SHARDS are webdataset tars (docs/data.md). Hardware: 64 TPU v5p, for
which docs/scaling.md has what the compiler expects; `--config.batch_size` and `--config.mesh` fit
it to others. Not run here, and there is no published result of just this model: text-to-image
models of 1.1B to 1.3B parameters by this recipe (DeCo, PixelGen, PixelDiT) publish GenEval 0.74 to
0.86, on data that they do not all name.

Where that paper, which has classes and no text, gives no value, we chose:
- The text's tokens join the sequence, and their mean is added to the time's embedding.
- Width 1536 with 24 layers, and 12 heads of 128 channels: a TPU multiplies 128 at a time. The
  published size of as many parameters, JiT-H, has 16 heads of 80 channels.
- No shift: at 256 pixels the distribution of times is the published one. For 512 pixels take
  patch_size 32 and schedule.shift = 2 log(256 / 512) = -1.39.
- Samples end at the network's own x0: `min_scale` of the stage, which the published code has in
  sampling too, is left at 0.
"""

from ml_collections import ConfigDict

T5_XL = "models/t5_v1_1_xl"


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 4096,
            "num_steps": 250_000,
            "log_every": 100,
            "ema_decay": 0.9999,
            "init_from": None,
            "frozen_dtype": "bfloat16",
        }
    )
    config.stage = {
        "name": "base256",
        "resolution": 256,
        "conditioning": "text",
        "text_width": 2048,
        "prediction": "x0",
        "loss": {"weight": "v", "min_scale": 0.05},
        "schedule": {"kind": "flow", "shift": 0.0},
        "time_logit_normal": (0.8, 0.8),
        "network": {
            "kind": "transformer",
            "width": 1536,
            "depth": 24,
            "heads": 12,
            "patch_size": 16,
            "bottleneck": 128,
            "dtype": "bfloat16",
            "remat": False,
            # A loop would stack what the backward pass reads, and gather a layer's parameters only
            # when it begins: a step takes longer, though it compiles sooner.
            "scan_layers": False,
        },
    }
    config.text = {
        "tokenizer": f"{T5_XL}/spiece.model",
        "max_length": 128,
        "trainable": False,
        "dropout": 0.1,
        "init_from": T5_XL,
        "encoder": {
            "vocab_size": 32128,
            "d_model": 2048,
            "num_heads": 32,
            "head_dim": 64,
            "num_layers": 24,
            "d_ff": 5120,
            "dtype": "bfloat16",
        },
    }
    config.data = {"source": "tar", "path": None, "split": "all", "flip": False}
    config.optimizer = {
        "kind": "adam",
        "learning_rate": 2e-4,
        "warmup_steps": 10_000,
        "decay_steps": None,
        "b1": 0.9,
        "b2": 0.95,
        "clip_norm": 1.0,
        "accumulation": 1,
    }
    config.mesh = {"data": None, "fsdp": 16, "tensor": 1}
    config.checkpoint = {"every": 5000, "keep": 3, "keep_best": 0}
    config.sample = {
        "every": 10_000,
        "prompts": [
            "a photo of a corgi riding a bike in Times Square",
            "a red cube on top of a blue cube",
            "an oil painting of a lighthouse in a storm",
            "a bowl of soup that looks like a monster",
        ],
        "sampler": "heun",
        "steps": 50,
        "guidance": 4.0,
        "guidance_interval": (0.0, 0.9),
        "threshold": "none",
    }
    return config

"""The paper's base model: text to 64x64 images, 2.4B parameters (arXiv 2205.11487, F.1).

    imagen-jax plan --config imagen_base64 --topology v5p:4x4x4
    imagen-jax train --config imagen_base64 --workdir runs/base64 \
        --config.text.init_from=T5 --config.text.tokenizer=T5/spiece.model \
        --config.data.path=SHARDS

T5 is google/t5-v1_1-xxl, as Hugging Face or T5X have it; only its encoder is read. SHARDS is a
folder of webdataset tars, or a pattern such as gs://bucket/{00000..00099}.tar; docs/data.md lists
other sources of images. Hardware: the paper's 256 TPU v4; docs/scaling.md has what the compiler
expects of the step on other chips. Not run here. With its two super-resolution models, the
published model reached a zero-shot FID-30K of 7.27 on COCO, after training on data that is not
public.

Where the paper gives no value, we chose:
- 128 tokens; EMA of 0.9999; clipping of the gradient's norm at 1; samples of 256 steps at guidance
  5 while it trains.
- Adafactor at the rate as it stands, where optax would scale it by each parameter's size
  (training/optimizer.py says why).
- The pooled text is a class token's, as in DeepFloyd IF.
Where this differs from the paper: it gives 2B parameters, but its printed widths, used here, make
2.4B. Its t is uniform and independent for each image; here each t is uniform too, but a batch has
one in each of 2048 equal parts of [0, 1), which makes the loss less noisy (arXiv 2107.00630, I.1).
To save time and memory, convolutions, dense layers and the frozen encoder compute in bfloat16;
parameters, norms, softmax, EMA and the optimizer stay float32.
"""

from ml_collections import ConfigDict

T5_XXL = "models/t5_v1_1_xxl"


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 2048,
            "num_steps": 2_500_000,
            "log_every": 100,
            "ema_decay": 0.9999,
            "init_from": None,
            "frozen_dtype": "bfloat16",
            # T5-XXL whole on each chip: 9.5 GB. Chips of 16 GB must share it.
            "frozen_split": False,
        }
    )
    config.stage = {
        "name": "base64",
        "resolution": 64,
        "conditioning": "text",
        "text_width": 4096,
        "prediction": "eps",
        "loss": {"weight": "eps"},
        "schedule": {"kind": "cosine"},
        "network": {
            "kind": "unet",
            "levels": [
                {"channels": 512, "num_res_blocks": 3, "attention": None},
                {"channels": 1024, "num_res_blocks": 3, "attention": "self"},
                {"channels": 1536, "num_res_blocks": 3, "attention": "self"},
                {"channels": 2048, "num_res_blocks": 3, "attention": "self"},
            ],
            "head_channels": 64,
            "dtype": "bfloat16",
            "remat": "products",
        },
    }
    config.text = {
        "tokenizer": f"{T5_XXL}/spiece.model",
        "max_length": 128,
        "trainable": False,
        "dropout": 0.1,
        "init_from": T5_XXL,
        "encoder": {
            "vocab_size": 32128,
            "d_model": 4096,
            "num_heads": 64,
            "head_dim": 64,
            "num_layers": 24,
            "d_ff": 10240,
            "dtype": "bfloat16",
        },
    }
    config.data = {"source": "tar", "path": None, "split": "all", "flip": False}
    config.optimizer = {
        "kind": "adafactor",
        "learning_rate": 1e-4,
        "warmup_steps": 10_000,
        "decay_steps": 2_500_000,
        "clip_norm": 1.0,
        "accumulation": 1,
    }
    # A plane of a 4x4x4 torus: over all 64 chips XLA would gather a kernel by adding up zeros.
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
        "sampler": "ddpm",
        "steps": 256,
        "guidance": 5.0,
        "threshold": "dynamic",
    }
    return config

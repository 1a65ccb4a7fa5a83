r"""A student of a trained model: guidance in one evaluation, and few steps (docs/distillation.md).

One student for one, two and four steps, a flow map (arXiv 2410.12557, 2505.18825):

    imagen-jax train --config distill --workdir runs/student \
        --config.distill.teacher=MODEL --config.data.path=IMAGES
    imagen-jax generate "a prompt" --model runs/student --steps 2

Guidance alone, for the teacher's own number of steps (arXiv 2210.03142), and after it half the
steps, and half of these (progressive distillation, arXiv 2202.00512):

    imagen-jax train --config distill --workdir runs/guided ... \
        --config.distill.teacher=MODEL --config.distill.kind=guidance --config.distill.steps=[]
    imagen-jax train --config distill --workdir runs/eight ... \
        --config.distill.teacher=runs/guided --config.distill.kind=progressive \
        --config.distill.steps=[8]
    imagen-jax train --config distill --workdir runs/four ... \
        --config.distill.teacher=runs/eight --config.distill.kind=progressive \
        --config.distill.steps=[4]

MODEL is a shipped model, a model directory or a workdir; with --config.stage.name=NAME another
stage than the first, of a network of kind unet, efficient_unet or transformer. The student has its
network, text encoder and weights. IMAGES are those that
the teacher was trained on, or others like them: they only say where on its way the student looks.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            "num_steps": 10000,
            "log_every": 20,
            "ema_decay": 0.999,
            "init_from": None,  # the teacher
        }
    )
    config.distill = {
        "teacher": "icons",
        "kind": "flow_map",
        "guidance": None,  # the teacher's own
        "steps": (1, 2, 4),
        "teacher_steps": None,  # twice as many as the student's most
    }
    config.stage = {"name": None, "loss": {"weight": "v"}, "network": {}}
    config.text = {"trainable": False, "dropout": 0.0}
    config.data = {"source": "folder", "path": None, "split": "all", "prompt": None}
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 1e-4,
        "warmup_steps": 100,
        "decay_steps": 10000,
        "b1": 0.9,
        "b2": 0.99,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 500, "keep": 2, "keep_best": 0}
    config.sample = {"every": None, "prompts": []}
    return config

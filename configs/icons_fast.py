r"""A student of the shipped model that needs no guidance and few steps: "icons-fast".

    python scripts/prepare_icons.py --out data/icons
    python scripts/train.py --config configs/icons_fast.py --workdir runs/icons_fast

Its base stage takes one, two or four steps of one evaluation each, where the teacher, "icons", has
16 of two. For one H100 or H200 add --config.batch_size=512; this is for two CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict(
        {"seed": 0, "batch_size": 16, "num_steps": 900, "log_every": 20, "ema_decay": 0.998}
    )
    config.stage = {"name": "base64"}
    config.distill = {
        "teacher": "icons",
        "kind": "flow_map",
        "guidance": None,  # the teacher's own, 3
        "steps": [1, 2, 4],
        "teacher_steps": 8,
    }
    config.text = {"dropout": 0.0}
    config.data = {
        "source": "npz",
        "path": "data/icons/icons64.npz",
        "split": "train",
        "weights": True,
    }
    config.optimizer = {
        "kind": "adamw",
        "learning_rate": 3e-4,
        "warmup_steps": 50,
        "decay_steps": 900,
        "b1": 0.9,
        "b2": 0.99,
        "clip_norm": 1.0,
    }
    config.mesh = {"data": None, "fsdp": 1, "tensor": 1}
    config.checkpoint = {"every": 100, "keep": 2, "keep_best": 0}
    config.sample = {
        "every": 100,
        "prompts": [
            "grinning face, flat style",
            "red heart, 3d style",
            "dog face, twemoji style",
            "pizza, outline style",
            "flag: Japan, classic style",
            "firefighter, noto style",
            "红心，立体风格",
            "猫脸，扁平风格",
        ],
    }
    return config

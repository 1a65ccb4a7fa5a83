"""What options are called elsewhere (diffusers, kohya, ADM, imagen-pytorch), and here."""

import difflib
from collections.abc import Collection

from imagen_jax.pipeline import option_names
from imagen_jax.training.config import OTHER_KEYS

# Ours, and others' for the same. "config.KEY" is for commands that take a config.
SPELLINGS = option_names.SPELLINGS | {
    "lora": "lora_path lora_weights lora_model",
    "lora_scale": "lora_weight network_mul",
    "prompts": "prompt prompt_file from_file text",
    "model": "model_id model_path ckpt checkpoint pretrained_model_name_or_path pretrained",
    "init_from": "pretrained_model_name_or_path pretrained ckpt checkpoint model",
    "out": "output_dir outdir output output_path save_dir results_dir dir_out",
    "output": "out outdir output_dir model_prefix",
    "input": "input_file",
    "workdir": "output_dir outdir out log_dir logdir save_dir resume resume_from_checkpoint",
    "config": "config_file config_path cfg",
    "reference": "ref real real_path gt",
    "num": "num_prompts limit max_samples",
    "batch_size": "bs batch train_batch_size",
    **{f"config.{key}": f"{others} {key}" for key, others in OTHER_KEYS.items()},
    "config.seed": "seed",
}


def suggestion(name: str, known: Collection[str], unnamed: Collection[str] = ()) -> str:
    """What follows the message about an unknown option: its name here, or one like it; or "".

    Args:
        name: of the option, without the dashes before it.
        known: options of the command; those of a command with "config" include config.KEY.
        unnamed: arguments that have no option before them.
    """
    name = name.replace("-", "_")
    names = (ours for ours, others in SPELLINGS.items() if name.lower() in [ours, *others.split()])
    for ours in names:
        if ours in known or (ours.startswith("config.") and "config" in known):
            return f"; here it is --{ours}"
        if ours in unnamed:
            return f"; give {ours} without an option before them"
    first, dot, rest = name.partition(".")  # --confg.KEY
    close = difflib.get_close_matches(first, known, n=1)
    return f"; did you mean --{close[0]}{dot}{rest}?" if close else ""

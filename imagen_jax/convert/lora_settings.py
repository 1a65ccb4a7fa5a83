"""How strong an adapter is: peft's LoraConfig, as it stands in a file's header or beside it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
# Fields of LoraConfig that make another adapter of it, and what they are.
OTHERS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "modules_to_save": "LoRA with whole layers beside it",
    "trainable_token_indices": "LoRA with trained tokens",
    "layer_replication": "LoRA of repeated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Initializations that change the base weights as well: without that, the factors mean nothing.
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What a pattern must match of a module's name, peft's `get_pattern_key`: all, or from a dot on.
FULL = r"(.*\.)?({})$"
# Regexes come from outside, and a hostile one takes forever: no repeated groups, few repetitions.
MAX_PATTERN, MAX_REPEATS = 512, 3


@dataclass(frozen=True)
class Strength:
    """alpha and rank by module, as peft finds them: the first pattern that fits, else the default.

    None: the file does not say; then the scale is 1, and any rank will do.
    """

    alpha: float | None
    rank: float | None
    alphas: Mapping[str, float | None]
    ranks: Mapping[str, float | None]
    rslora: bool

    def scale(self, module: str, rank: int) -> float:
        """What a module's `up @ down` is multiplied with.

        Raises:
            ValueError: the settings say another rank than its tensors.
        """
        wanted = _first_match(self.ranks, module, self.rank)
        if wanted not in (None, rank):
            raise ValueError(f"{module} has rank {rank}, but its settings say {wanted:g}")
        alpha = _first_match(self.alphas, module, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / rank ** (0.5 if self.rslora else 1)


def _first_match(
    patterns: Mapping[str, float | None], module: str, default: float | None
) -> float | None:
    for pattern, value in patterns.items():
        if re.match(FULL.format(pattern), module):
            return value
    return default


def read_strength(settings: Mapping[str, Any]) -> Strength:
    """A LoraConfig's strength; ValueError names what is damaged, and adapters of other kinds."""
    kind = settings.get("peft_type") or "LORA"
    if kind != "LORA":
        raise ValueError(f"it is {str(kind)[:40]} of peft, which is not supported")
    for field, name in OTHERS.items():
        if settings.get(field):
            raise ValueError(f"{field} is set: it is {name}, which is not supported")
    if settings.get("bias") not in (None, "none"):
        raise ValueError(f"bias is {str(settings['bias'])[:40]!r}: trained biases are not read")
    initial = str(settings.get("init_lora_weights")).lower()
    if initial.startswith(RESIDUAL):
        raise ValueError(
            f"init_lora_weights is {initial[:40]!r}, which changes the base weights too; save it "
            "with peft's path_initial_model_for_weight_conversion"
        )
    rslora = settings.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise ValueError(f"use_rslora is {str(rslora)[:40]!r}, not true or false")
    return Strength(
        alpha=_number("an alpha", settings.get("lora_alpha"), -LARGEST),
        rank=_number("a rank", settings.get("r"), 1),
        alphas=_patterns(settings, "alpha_pattern", "an alpha", -LARGEST),
        ranks=_patterns(settings, "rank_pattern", "a rank", 1),
        rslora=rslora,
    )


def _number(name: str, value: Any, least: float | int) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not least <= value <= LARGEST:
        limits = f"from {least:g} to {LARGEST:g}"
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be a number {limits}")
    return float(value)


def _patterns(
    settings: Mapping[str, Any], field: str, name: str, least: float | int
) -> dict[str, float | None]:
    patterns = settings.get(field) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{field} is {str(patterns)[:40]!r}, not an object")
    for pattern in patterns:
        repeats = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise ValueError(
                f"{field} has {pattern[:80]!r}: no regex of more than {MAX_REPEATS} repetitions, "
                "or that repeats a group, is taken from a file"
            )
        try:
            re.compile(FULL.format(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{field} has {pattern[:80]!r}, not a regex: {error}") from None
    return {pattern: _number(name, value, least) for pattern, value in patterns.items()}

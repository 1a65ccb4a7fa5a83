"""What the names of an adapter's tensors say: the forms of peft, diffusers and kohya's scripts.

    MODULE.lora_A.weight, lora_B                 peft, diffusers since 2024
    MODULE.lora.down.weight, up                  diffusers, late 2023 (also lora_linear_layer)
    ATTENTION.processor.to_q_lora.down.weight    diffusers, 2023: attention processors
    lora_unet_MODULE.lora_down.weight, .alpha    kohya's sd-scripts; MODULE with "_" for "."

peft's own files put `base_model.model.` before, diffusers' `unet.`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from imagen_jax.models.lora import DOWN, UP
from imagen_jax.storage.trees import name_some

ALPHA = "alpha"
PEFT_PREFIX = "base_model.model."
PARTS = {"A": DOWN, "down": DOWN, "B": UP, "up": UP, ALPHA: ALPHA}
PREFIX = rf"(?:{re.escape(PEFT_PREFIX)})?(?:unet\.)?"
FORMS = [
    re.compile(form)
    for form in (
        rf"{PREFIX}(?P<module>.+)\.lora_(?P<part>[AB])\.weight",
        rf"{PREFIX}(?P<module>.+)\.(?:lora|lora_linear_layer)\.(?P<part>down|up)\.weight",
        rf"{PREFIX}(?P<module>.+\.(?:to_[qkv]|to_out|add_[kv]_proj))(?P<processor>_lora)\."
        r"(?P<part>down|up)\.weight",
        r"lora_unet_(?P<module>[^.]+)\.(?:lora_(?P<part>down|up)\.weight|(?P<alpha>alpha))",
    )
]
# Adapters of other kinds, by their tensors' names, and what they are.
OTHERS = (
    (r"lora_magnitude_vector|dora_scale", "DoRA"),
    (r"\.hada_", "LoHa of LyCORIS"),
    (r"\.lokr_", "LoKr of LyCORIS"),
    (r"\.b?oft_", "OFT or BOFT"),
    (r"vera_lambda", "VeRA"),
    (r"\.ia3_l", "IA3"),
    (r"\.lora_E$|\.ranknum", "AdaLoRA"),
    (r"\.lora_mid\.|\.lora_embedding_", "LoRA of convolutions' middles or of embeddings"),
    (r"\.lora_(B|up)\.bias$", "LoRA with biases (lora_bias)"),
    (r"\.diff(_b)?$", "LyCORIS's full differences"),
    (r"^lora_te\d?_|^(base_model\.model\.)?text_encoder", "an adapter of the text encoder"),
    (r"^(transformer|lora_transformer)[._]", "an adapter of a diffusion transformer"),
)
ADVICE = (
    "What is read is LoRA of the network's linear layers; others must be merged into their model "
    "with the program that trained them"
)


class Name(NamedTuple):
    """What a tensor is: a part (DOWN, UP, ALPHA) of a module. `processor`: in the form of 2023."""

    module: str
    part: str
    processor: bool = False


def parse_name(name: str) -> Name | None:
    """The module of a tensor by its name in files; None where it is in no form that is known."""
    name = name.replace(".processor.", ".")
    for form in FORMS:
        if match := form.fullmatch(name):
            found = match.groupdict()
            processor = found.get("processor") is not None
            # The layer's own name: a list of the projection and a dropout.
            ending = ".0" if processor and found["module"].endswith(".to_out") else ""
            part = PARTS[found["part"] or found["alpha"]]
            return Name(found["module"] + ending, part, processor)
    return None


def other_kind(names: Iterable[str]) -> str | None:
    """What an adapter with tensors of these names is, if it is of a known kind that is not read."""
    names = list(names)
    for pattern, kind in OTHERS:
        odd = [name for name in names if re.search(pattern, name)]
        if odd:
            return f"{kind} ({name_some(odd[:2])}), which is not supported. {ADVICE}"
    return None

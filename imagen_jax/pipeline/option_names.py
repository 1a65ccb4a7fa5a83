"""Options by other libraries' names: an error says what each is called here."""

from collections.abc import Callable, Iterable
from inspect import Parameter, signature
from typing import Any

from imagen_jax.storage.codec import nearest

# As diffusers, imagen-pytorch and transformers call them, and what to write here.
OTHER_NAMES = {
    "num_inference_steps": "steps",
    "timesteps": "steps",
    "guidance_scale": "guidance",
    "cond_scale": "guidance",
    "cfg_scale": "guidance",
    "num_images_per_prompt": "num_images",
    "num_samples": "num_images",
    "generator": "seed",
    "prompts": "prompt",
    "text": "prompt",
    "texts": "prompt",
    "negative_prompts": "negative_prompt",
    "scheduler": "sampler",
    "noise_level": "aug_level",
    "labels": "label",
    "class_labels": "label",
    "height": "size, or aspect_ratio for other shapes than squares",
    "width": "size, or aspect_ratio for other shapes than squares",
    "callback_steps": "every",
    "use_tqdm": "progress",
    "init_image": "image",
    "mask_image": "mask",
    "inpaint_images": "image",
    "inpaint_masks": "mask",
    "torch_dtype": "dtype",
    "device_map": "mesh",
    "use_ema": "ema",
}
OF_SQUARES = "aspect_ratio"  # what is made of an image has its shape, or is square


def refuse_unknown(
    call: Callable[..., Any], given: Iterable[str], also: Callable[..., Any] | None = None
) -> None:
    """TypeError, as Python has it, names the first option that a call does not have, and ours.

    also: whose keyword-only options the call passes on.
    """
    known = [each.name for each in _parameters(call) if each.kind is not Parameter.VAR_KEYWORD]
    if also is not None:
        shared = [each for each in _parameters(also) if each.kind is Parameter.KEYWORD_ONLY]
        known += [each.name for each in shared if each.name != OF_SQUARES]
    for name in given:
        if name not in known:
            ours = OTHER_NAMES.get(name, "")
            called = ours.partition(",")[0] in known
            hint = f"; it is called {ours} here" if called else nearest(name, known)
            raise TypeError(f"{call.__name__}() has no option {name!r}{hint}.")


def _parameters(call: Callable[..., Any]) -> list[Parameter]:
    return list(signature(call).parameters.values())

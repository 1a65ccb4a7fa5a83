"""Options by other libraries' names: an error says what each is called here."""

from collections.abc import Callable, Collection, Iterable
from inspect import Parameter, signature
from typing import Any

from imagen_jax.storage.codec import nearest

# Ours, and those of diffusers, imagen-pytorch, ADM, kohya and transformers for the same.
SPELLINGS = {
    "steps": "num_inference_steps sampling_steps sample_steps ddim_steps timesteps num_steps",
    "guidance": "guidance_scale cfg_scale cfg cond_scale unconditional_guidance_scale scale",
    "guidance_kind": "guider guidance_type guidance_method",
    "guide": "guide_model gnet autoguidance weak_model",
    "size": "height width resolution image_size img_size",
    "num_images": "num_images_per_prompt num_samples n_samples n_iter",
    "sampler": "scheduler sample_method sampling_method",
    "seed": "generator random_seed manual_seed",
    "prompt": "prompts text texts",
    "negative_prompt": "negative_prompts",
    "aug_level": "noise_level lowres_sample_noise_level",
    "strength": "denoising_strength",
    "image": "init_image init_img input_image inpaint_images",
    "mask": "mask_image mask_img inpaint_masks",
    "label": "labels class_labels class_cond classes",
    "every": "callback_steps",
    "progress": "use_tqdm",
    "quantize": "quantization_config quantization load_in_8bit load_in_4bit",
    "dtype": "torch_dtype precision",
    "mesh": "device_map",
    "ema": "use_ema",
    "low_memory": "lowvram medvram cpu_offload enable_model_cpu_offload",
}
OF_SQUARES = "aspect_ratio"  # what is made of an image has its shape, or is square


def refuse_unknown(
    call: Callable[..., Any],
    given: Iterable[str],
    also: Callable[..., Any] | None = None,
    fields: Collection[str] = (),
) -> None:
    """TypeError, as Python has it, names the first option that a call does not have, and ours.

    also: whose keyword-only options the call passes on. fields: those of Sampling, for a call that
    takes it (this file is also read where there is no time for jax).
    """
    own, shared = (signature(each).parameters.values() for each in (call, also or call))
    known = [each.name for each in own if each.kind is not Parameter.VAR_KEYWORD]
    known += [each.name for each in shared if each.kind is Parameter.KEYWORD_ONLY]
    if also is not None:
        known.remove(OF_SQUARES)
    for name in given:
        if name not in known:
            ours = next((ours for ours in known if name in SPELLINGS.get(ours, "").split()), None)
            hint = f"; it is called {ours} here" if ours else nearest(name, known)
            if name in fields:
                hint = "; it is a field of Sampling: give sampling=, one a stage"
            message = f"{call.__name__}() has no option {name!r}{hint}"
            raise TypeError(message if message.endswith("?") else f"{message}.")

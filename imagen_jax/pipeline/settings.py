"""The settings that an image carries: written when it is made, read to make it again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax import __version__
from imagen_jax.diffusion.overrides import sampling_from_dict, sampling_to_dict
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.images.image_file import GeneratedImage
from imagen_jax.images.image_list import ImageList
from imagen_jax.images.pixels import to_pil, to_uint8
from imagen_jax.images.provenance import OF_OTHER_IMAGES, SETTINGS_KEY
from imagen_jax.pipeline.request import Request


def with_settings(
    arrays: np.ndarray,
    first: int,
    request: Request,
    sampling: Sequence[Sampling],
    size: int,
    class_names: Sequence[str] = (),
) -> ImageList:
    """Images that carry what makes each of them again, JSON values alone; `first`: the place of the
    first of them in the request; `size`: that asked for.
    """
    common = {
        "version": __version__,
        "size": size,
        "seed": request.seed,
        "negative_prompt": request.negative_prompt,
        "batch_size": request.batch_size,
        "sampling": [sampling_to_dict(entry) for entry in sampling],
        **{name: value for name, value in request.notes.items() if value is not None},
    }
    common = json.loads(json.dumps(common, default=lambda array: array.tolist()))
    prompts, labels, images = request.prompt, request.label, ImageList()
    for position, array in enumerate(arrays, start=first):
        image, row = GeneratedImage.of(to_pil(to_uint8(array))), request.rows[position]
        image.info[SETTINGS_KEY] = {
            "prompt": prompts[row] if prompts else None,
            "label": labels[row] if labels else None,
            **({"class_name": class_names[labels[row]]} if labels and class_names else {}),
            "index": request.first_index + position,
            **common,
        }
        images.append(image)
    return images


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `generate_images` that make an image again.

    Raises:
        ValueError: the settings lack something; or the image was made of another one, which they do
            not hold.
    """
    for kind in OF_OTHER_IMAGES:
        if kind in settings:
            raise ValueError(
                f"The image was made by {kind}(...) of another image, which its settings do not "
                "hold."
            )
    try:
        needed = {
            "prompt": settings["prompt"],
            "size": settings["size"],
            "seed": settings["seed"],
            "first_index": settings["index"],
            "sampling": [sampling_from_dict(entry) for entry in settings["sampling"]],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"The settings of the image are not whole: {error!r}.") from None
    more = ("negative_prompt", "label", "batch_size", "aspect_ratio")
    return needed | {"num_images": 1} | {name: settings.get(name) for name in more}

"""The folder of a DeepFloyd IF pipeline as diffusers saves it: its parts found, its JSON read.

Weights are read elsewhere, by `TensorFiles(directory, name, variant)`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.safetensors import check_inside, lone_variant, weight_files

INDEX = "model_index.json"
UNET_WEIGHTS = "diffusion_pytorch_model"
TEXT_ENCODER_WEIGHTS = "model"
TOKENIZER_FILE = "spiece.model"
# Class name of a pipeline, and whether it starts from images of a lower resolution.
PIPELINES = {
    "IFPipeline": False,
    "IFImg2ImgPipeline": False,
    "IFInpaintingPipeline": False,
    "IFSuperResolutionPipeline": True,
    "IFImg2ImgSuperResolutionPipeline": True,
    "IFInpaintingSuperResolutionPipeline": True,
}
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")


@dataclass(frozen=True)
class Weights:
    """Where a network's tensors are: the arguments of `TensorFiles`."""

    directory: Path
    name: str
    variant: str | None


@dataclass(frozen=True)
class DiffusersDirectory:
    """The parts of a pipeline. A second or third stage may lack encoder and tokenizer."""

    path: Path
    pipeline: str  # one of PIPELINES
    unet_config: Mapping[str, Any]
    unet: Weights
    scheduler: Mapping[str, Any]
    low_res_scheduler: Mapping[str, Any] | None  # of the noise on a low-resolution input
    text_encoder_config: Mapping[str, Any] | None
    text_encoder: Weights | None
    tokenizer: Path | None  # a SentencePiece model

    @property
    def super_resolution(self) -> bool:
        return PIPELINES[self.pipeline]


def _pickles(directory: Path) -> list[str]:
    return sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))


def find_weights(directory: Path, name: str, variant: str | None = None) -> Weights:
    """A network's safetensors in a folder; where the variant is missing, those without one; where
    there are none without, those of the only variant, with a warning.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there are pickles alone.
    """
    for choice in dict.fromkeys((variant, None)):
        single, indices = weight_files(name, choice)
        if any((directory / file).is_file() for file in (single, *indices)):
            return Weights(directory, name, choice)
    if variant is None and (only := lone_variant(directory, name)) is not None:
        return Weights(directory, name, only)
    pickles = _pickles(directory)
    if pickles:
        raise ValueError(
            f"{directory} has its weights in pickles ({pickles[0]}), which are not read: running a "
            f"pickle is running its author's code. The converted form is {name}.safetensors, as "
            "save_pretrained of diffusers and transformers writes it."
        )
    others = sorted(path.name for path in directory.glob("*.safetensors*"))
    beside = f"; it has {', '.join(others[:4])}" if others else ""
    raise FileNotFoundError(
        f"{directory} has no {name}.safetensors and no index of shards{beside}."
    )


def _refuse_other_forms(path: Path) -> None:
    if (path / "config.yml").is_file() or (path / "config.yaml").is_file():
        raise ValueError(
            f"{path} holds an original DeepFloyd IF checkpoint (config.yml beside "
            f"{(_pickles(path) or ['pickles'])[0]}), which is a pickle and is not read. The "
            f"converted form is a diffusers folder, with {INDEX} and unet/{UNET_WEIGHTS}"
            ".safetensors; the public weights come in it too."
        )
    pickles = _pickles(path)
    if pickles:
        raise ValueError(
            f"{path} has pickles alone ({pickles[0]}), which are not read. The converted form is a "
            f"diffusers folder, with {INDEX} and unet/{UNET_WEIGHTS}.safetensors."
        )
    raise FileNotFoundError(f"{path} is no folder of a diffusers pipeline: it has no {INDEX}.")


def _folder(path: Path, index: Mapping[str, Any], part: str, *, optional: bool) -> Path | None:
    """The folder of a part; None if the pipeline does without it."""
    entry = index.get(part)
    if entry is not None and (
        not isinstance(entry, list)
        or len(entry) != 2
        or not all(value is None or isinstance(value, str) for value in entry)
    ):
        raise ValueError(
            f"{path / INDEX} has {part!r} as {str(entry)[:80]}; it must be a pair [library, class]."
        )
    if entry is None or entry[1] is None:
        if optional:
            return None
        raise ValueError(f"{path / INDEX} names no {part!r}, which the pipeline needs.")
    folder = path / part
    if not folder.is_dir():
        if optional and not folder.exists():
            return None
        raise FileNotFoundError(f"{path / INDEX} names the part {part!r}, but {folder} is missing.")
    for place in (folder, *folder.iterdir()):
        check_inside(place, path)
    return folder


def read_directory(
    directory: str | os.PathLike, variant: str | None = None, encoder_weights: bool = True
) -> DiffusersDirectory:
    """The parts of an IF pipeline's folder.

    Args:
        variant: of the weights, such as "fp16"; a part that lacks it is read without.
        encoder_weights: whether to look for the text encoder's; its config is read all the same.

    Raises:
        FileNotFoundError: the folder, or a part that model_index.json names, is missing; no part
            has the variant.
        ValueError: a file is damaged, the pipeline is none of IF's, or the weights are pickles.
    """
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no directory {path}.")
    if not (path / INDEX).is_file():
        _refuse_other_forms(path)
    index = read_object(path / INDEX, "the index of a pipeline")
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise ValueError(
            f"{path / INDEX} is of the pipeline {str(pipeline)[:80]!r}; known are "
            f"{', '.join(PIPELINES)}."
        )
    unet = _folder(path, index, "unet", optional=False)
    scheduler = _folder(path, index, "scheduler", optional=False)
    noising = _folder(path, index, "image_noising_scheduler", optional=not PIPELINES[pipeline])
    encoder = _folder(path, index, "text_encoder", optional=True)
    tokenizer = _folder(path, index, "tokenizer", optional=True)
    if encoder is not None and tokenizer is None:
        raise FileNotFoundError(f"{path} has a text encoder, but no tokenizer/{TOKENIZER_FILE}.")
    if tokenizer is not None:
        tokenizer = tokenizer / TOKENIZER_FILE
        if not tokenizer.is_file():
            raise FileNotFoundError(
                f"{path} has a tokenizer, but {tokenizer} is missing (recent transformers do not "
                "save it): copy it from where the model came from."
            )
        check_inside(tokenizer, path)
    scheduler_kind, config_kind = "the config of a scheduler", "the config of a model"
    found = DiffusersDirectory(
        path=path,
        pipeline=pipeline,
        unet_config=read_object(unet / "config.json", config_kind),
        unet=find_weights(unet, UNET_WEIGHTS, variant),
        scheduler=read_object(scheduler / "scheduler_config.json", scheduler_kind),
        low_res_scheduler=noising
        and read_object(noising / "scheduler_config.json", scheduler_kind),
        text_encoder_config=encoder and read_object(encoder / "config.json", config_kind),
        text_encoder=find_weights(encoder, TEXT_ENCODER_WEIGHTS, variant)
        if encoder and encoder_weights
        else None,
        tokenizer=tokenizer,
    )
    parts = [part for part in (found.unet, found.text_encoder) if part is not None]
    if variant is not None and all(part.variant != variant for part in parts):
        raise FileNotFoundError(
            f"{path} has no weights of the variant {variant!r}; {unet} has "
            f"{', '.join(sorted(file.name for file in unet.glob('*.safetensors')))}."
        )
    return found

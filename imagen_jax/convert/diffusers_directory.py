"""The folder of a pipeline as diffusers saves it: its parts found, its JSON read.

Pipelines are DeepFloyd IF's and PRXPixel's. Weights are read elsewhere, by
`open_tensors(directory, name, variant)`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.safetensors import check_inside, find_variant, pickles_in
from imagen_jax.text.tokenizers import SENTENCEPIECE_FILE

INDEX = "model_index.json"
UNET_WEIGHTS = "diffusion_pytorch_model"
TEXT_ENCODER_WEIGHTS = "model"
# Class name of a pipeline, and whether it starts from images of a lower resolution.
PIPELINES = {
    "IFPipeline": False,
    "IFImg2ImgPipeline": False,
    "IFInpaintingPipeline": False,
    "IFSuperResolutionPipeline": True,
    "IFImg2ImgSuperResolutionPipeline": True,
    "IFInpaintingSuperResolutionPipeline": True,
}
PRX_PIXEL = "PRXPixelPipeline"
MODEL, SCHEDULER = "the config of a model", "the config of a scheduler"


class Weights(NamedTuple):
    """Where a network's tensors are: the arguments of `open_tensors`."""

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
        """Whether the pipeline upsamples images."""
        return PIPELINES[self.pipeline]


@dataclass(frozen=True)
class PRXDirectory:
    """The parts of a PRXPixel pipeline that are read: not its text encoder, a Qwen3-VL."""

    path: Path
    index: Mapping[str, Any]  # holds the resolution and the scale of the noise, too
    network_config: Mapping[str, Any]
    network: Weights
    scheduler: Mapping[str, Any]


def find_weights(directory: Path, name: str, variant: str | None) -> Weights:
    """A network's safetensors in a folder: without a variant where the asked one is missing.

    Errors as of `find_variant`.
    """
    return Weights(directory, name, find_variant(directory, name, variant, fall_back=True))


def _refuse_other_forms(path: Path) -> NoReturn:
    pickles = pickles_in(path)
    converted = (
        f"The converted form is a diffusers folder, with {INDEX} and unet/{UNET_WEIGHTS}"
        ".safetensors"
    )
    if (path / "config.yml").is_file() or (path / "config.yaml").is_file():
        raise ValueError(
            f"{path} holds an original DeepFloyd IF checkpoint (config.yml beside "
            f"{(pickles or ['pickles'])[0]}), which is a pickle and is not read. {converted}; the "
            "public weights come in it too."
        )
    if pickles:
        raise ValueError(
            f"{path} has only pickles ({pickles[0]}), which are not read. {converted}."
        )
    raise FileNotFoundError(f"{path} is not a folder of a diffusers pipeline: it has no {INDEX}.")


def _folder(path: Path, index: Mapping[str, Any], part: str, *, optional: bool) -> Path | None:
    """The folder of a part; None if the pipeline does without it."""
    match index.get(part):
        case None | [_, None]:
            if optional:
                return None
            raise ValueError(f"{path / INDEX} names no {part!r}, which the pipeline needs.")
        case [None | str(), str()]:
            folder = path / part
        case entry:
            raise ValueError(
                f"{path / INDEX} has {part!r} as {str(entry)[:80]}; it must be a pair "
                "[library, class]."
            )
    if optional and not folder.exists():
        return None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path / INDEX} names the part {part!r}; {folder} is missing.")
    for place in (folder, *folder.iterdir()):
        check_inside(place, path)
    return folder


def _find_tokenizer(path: Path, folder: Path) -> Path:
    tokenizer = folder / SENTENCEPIECE_FILE
    if not tokenizer.is_file():
        raise FileNotFoundError(
            f"{path} has a tokenizer, but {tokenizer} is missing (recent transformers do not "
            "save it): copy it from where the model came from."
        )
    check_inside(tokenizer, path)
    return tokenizer


def read_index(directory: str | os.PathLike) -> tuple[str, Mapping[str, Any]]:
    """(class of the pipeline, model_index.json); errors as of `read_directory`."""
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no directory {path}.")
    if not (path / INDEX).is_file():
        _refuse_other_forms(path)
    index = read_object(path / INDEX, "the index of a pipeline")
    pipeline = str(index.get("_class_name"))
    known = (*PIPELINES, PRX_PIXEL)
    if pipeline not in known:
        raise ValueError(
            f"{path / INDEX} is of the pipeline {pipeline[:80]!r}; known are {', '.join(known)}."
        )
    return pipeline, index


def read_prx(directory: str | os.PathLike, variant: str | None = None) -> PRXDirectory:
    """The parts of a PRXPixel pipeline's folder; arguments and errors as of `read_directory`."""
    path, (_, index) = Path(directory), read_index(directory)
    network = _folder(path, index, "transformer", optional=False)
    scheduler = _folder(path, index, "scheduler", optional=False)
    return PRXDirectory(
        path=path,
        index=index,
        network_config=read_object(network / "config.json", MODEL),
        network=Weights(network, UNET_WEIGHTS, find_variant(network, UNET_WEIGHTS, variant)),
        scheduler=read_object(scheduler / "scheduler_config.json", SCHEDULER),
    )


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
    path, (pipeline, index) = Path(directory), read_index(directory)
    unet = _folder(path, index, "unet", optional=False)
    scheduler = _folder(path, index, "scheduler", optional=False)
    noising = _folder(path, index, "image_noising_scheduler", optional=not PIPELINES[pipeline])
    encoder = _folder(path, index, "text_encoder", optional=True)
    tokenizer = _folder(path, index, "tokenizer", optional=True)
    if encoder is not None and tokenizer is None:
        raise FileNotFoundError(
            f"{path} has a text encoder, but no tokenizer/{SENTENCEPIECE_FILE}."
        )
    weights = encoder and encoder_weights and find_weights(encoder, TEXT_ENCODER_WEIGHTS, variant)
    found = DiffusersDirectory(
        path=path,
        pipeline=pipeline,
        unet_config=read_object(unet / "config.json", MODEL),
        unet=find_weights(unet, UNET_WEIGHTS, variant),
        scheduler=read_object(scheduler / "scheduler_config.json", SCHEDULER),
        low_res_scheduler=noising and read_object(noising / "scheduler_config.json", SCHEDULER),
        text_encoder_config=encoder and read_object(encoder / "config.json", MODEL),
        text_encoder=weights or None,
        tokenizer=tokenizer and _find_tokenizer(path, tokenizer),
    )
    if variant is not None and variant not in (found.unet.variant, weights and weights.variant):
        raise FileNotFoundError(
            f"{path} has no weights of the variant {variant!r}; {unet} has "
            f"{', '.join(sorted(file.name for file in unet.glob('*.safetensors')))}."
        )
    return found

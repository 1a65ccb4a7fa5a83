"""Adapters as safetensors, named as peft and diffusers name them.

A module's factors are `unet.MODULE.lora_A.weight` [rank, in] and `unet.MODULE.lora_B.weight`
[out, rank]; rank and alpha stand as JSON under "lora_adapter_metadata" in the file's header. MODULE
is diffusers' name where diffusers can express the network, else the path of our kernel, joined by
".". What diffusers writes is read with the prefix `unet.` and without it.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from imagen_jax.cascade.stage import Stage
from imagen_jax.convert.diffusers_unet import unet_layout
from imagen_jax.models import UNetConfig
from imagen_jax.models.lora import DOWN, UP, LoraConfig
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.json_file import parse_object
from imagen_jax.storage.layout import LINEAR, Layout
from imagen_jax.storage.tensor_file import StoredTensor, open_file
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.typing import Params

METADATA_KEY = "lora_adapter_metadata"
STAGE_KEY = "imagen_jax_stage"
PREFIX = "unet."
FACTOR = re.compile(r"(?:unet\.)?(.+)\.lora_([AB])\.weight")
FACTORS = {"A": DOWN, "B": UP}


def module_names(stage: Stage, paths: list[str]) -> dict[str, str]:
    """The module of each matrix ("mid_attention/query"): diffusers' name if it has one, or ours."""
    layout: Layout = {}
    if isinstance(stage.network, UNetConfig):
        with contextlib.suppress(ValueError):  # diffusers cannot express it
            layout = unet_layout(stage.network)
    names = {path: path.replace("/", ".") for path in paths}
    for path in paths:
        tensors = layout.get(f"{path}/kernel")
        if tensors is not None and tensors.axes == LINEAR:
            names[path] = tensors.names[0].removesuffix(".weight")
    return names


def save_lora(path: str | os.PathLike, stage: Stage, lora: Params, config: LoraConfig) -> None:
    """Writes an adapter; the file is put in place when it is whole."""
    factors = flatten(lora)
    names = module_names(stage, sorted({name.rsplit("/", 1)[0] for name in factors}))
    tensors = {
        f"{PREFIX}{theirs}.lora_{letter}.weight": np.ascontiguousarray(
            np.asarray(factors[f"{ours}/{part}"], np.float32).T
        )
        for letter, part in FACTORS.items()
        for ours, theirs in names.items()
    }
    # The fields of peft's LoraConfig that an adapter of this kind needs.
    values = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.rank * config.scale,
        "target_modules": sorted(names.values()),
    }
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps({f"{PREFIX}{k}": v for k, v in values.items()}, indent=1),
        STAGE_KEY: stage.name,
    }
    with written_whole(path) as file:
        save_file(tensors, file, metadata=metadata)


class LoraFile:
    """An adapter on disk, its factors by the module names of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else than a LoRA of linear layers.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no {self.path}.")
        tensors, metadata = open_file(self.path)
        self.stage_name = metadata.get(STAGE_KEY)
        self.settings = self._read_settings(metadata.get(METADATA_KEY, "{}"))
        self.modules: dict[str, dict[str, StoredTensor]] = {}
        odd = []
        for name, tensor in tensors.items():
            match = FACTOR.fullmatch(name)
            if match is None:
                odd.append(name)
                continue
            same = self.modules.setdefault(match[1], {}).setdefault(FACTORS[match[2]], tensor)
            if same is not tensor:
                raise ValueError(f"{self.path} has the same factor twice: {same.name} and {name}.")
        odd += [f"{name} without its other half" for name, m in self.modules.items() if len(m) < 2]
        if odd or not self.modules:
            raise ValueError(
                f"{self.path} is not a LoRA of linear layers: every tensor must be a pair of "
                f"MODULE.lora_A.weight and MODULE.lora_B.weight, not {name_some(odd) or 'nothing'}."
            )

    def _read_settings(self, text: str) -> dict[str, Any]:
        try:
            values = parse_object(text.encode())
        except ValueError as error:
            raise ValueError(f"{self.path}: in its {METADATA_KEY}, {error}.") from None
        settings = {name.removeprefix(PREFIX): value for name, value in values.items()}
        patterns = settings.get("alpha_pattern") or {}
        alphas = [*patterns.values()] if isinstance(patterns, dict) else [None]
        alphas += [] if settings.get("lora_alpha") is None else [settings["lora_alpha"]]
        largest = float(np.finfo(np.float32).max)
        if not all(isinstance(alpha, int | float) and abs(alpha) <= largest for alpha in alphas):
            raise ValueError(
                f"{self.path}: in its {METADATA_KEY}, an alpha is not a number of float32."
            )
        return settings | {"alpha_pattern": patterns}

    def read(self, module: str) -> dict[str, np.ndarray]:
        """down [in, rank] and up [rank, out] in float32; `up` has the adapter's scale in it.

        Raises:
            ValueError: they are not finite numbers.
        """
        factors = {}
        for part, tensor in self.modules[module].items():
            scale = np.float32(self.scale(module) if part == UP else 1)
            factors[part] = scale * np.asarray(tensor[()], np.float32).T
            if not np.isfinite(factors[part]).all():
                raise ValueError(f"{self.path}: {tensor.name} is not finite.")
        return factors

    def scale(self, module: str) -> float:
        """alpha / rank, as the file's settings have it; 1 where it has none."""
        rank = self.modules[module][UP].shape[1]
        alpha = self.settings["alpha_pattern"].get(module, self.settings.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return alpha / rank ** (0.5 if self.settings.get("use_rslora") else 1)


def misfits(file: LoraFile, stage: Stage, params: Params) -> list[str]:
    """How an adapter does not fit a stage's network (parameters or their shapes), one line each."""
    kernels = _kernels(stage, params)
    lines = []
    for module, factors in sorted(file.modules.items()):
        down, up = factors[DOWN].shape, factors[UP].shape
        if module not in kernels:
            lines.append(f"{module} is not a linear layer of the network")
        elif (len(down), len(up)) != (2, 2):
            lines.append(f"{module} has tensors of {down} and {up}, not matrices")
        elif down[0] == 0 or down[0] != up[1]:
            lines.append(f"{module} has rank {down[0]} in lora_A and {up[1]} in lora_B")
        elif (down[1], up[0]) != kernels[module][1]:
            wanted = " to ".join(map(str, kernels[module][1]))
            lines.append(f"{module} is for {down[1]} to {up[0]} channels, not {wanted}")
    return lines


def _kernels(stage: Stage, params: Params) -> dict[str, tuple[str, tuple[int, int]]]:
    """Our path and the shape of each linear layer, by its name in files: diffusers' and our own."""
    shapes = {
        path.removesuffix("/kernel"): tuple(leaf.shape)
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel") and len(leaf.shape) == 2
    }
    theirs = module_names(stage, list(shapes))
    named = {path.replace("/", "."): (path, shape) for path, shape in shapes.items()}
    return named | {theirs[path]: (path, shape) for path, shape in shapes.items()}


def read_lora(file: LoraFile, stage: Stage, params: Params) -> Params:
    """The adapter as `imagen_jax.models.lora.merge_lora` takes it, with a scale of 1.

    Raises:
        ValueError: it does not fit the stage's network; the message lists where.
    """
    lines = misfits(file, stage, params)
    if lines:
        raise ValueError(f"{file.path} does not fit stage {stage.name!r}: {name_some(lines)}.")
    kernels = _kernels(stage, params)
    return unflatten(
        {
            f"{kernels[module][0]}/{part}": factor
            for module in file.modules
            for part, factor in file.read(module).items()
        }
    )

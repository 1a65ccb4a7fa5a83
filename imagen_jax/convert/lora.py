"""Adapters as safetensors, named as peft and diffusers name them.

A module's factors are `unet.MODULE.lora_A.weight` [rank, in] and `unet.MODULE.lora_B.weight`
[out, rank]; rank and alpha stand as JSON under "lora_adapter_metadata" in the file's header. MODULE
is diffusers' name where diffusers can express the network, else the path of our kernel, joined by
"." and, where layers are stacked, with a number for each: "layers.3.attention.query". Read are also
peft's folders, diffusers' earlier names and kohya's (`lora_names`).
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from imagen_jax.cascade.stage import Stage
from imagen_jax.convert.diffusers_unet import unet_layout
from imagen_jax.convert.lora_names import ALPHA, PEFT_PREFIX, other_kind, parse_name
from imagen_jax.convert.lora_settings import read_strength
from imagen_jax.devices.sharding import STACKED
from imagen_jax.models import UNetConfig
from imagen_jax.models.lora import DOWN, UP, LoraConfig
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import parse_object, read_object
from imagen_jax.storage.layout import LINEAR, Layout
from imagen_jax.storage.safetensors import pickles_in
from imagen_jax.storage.tensor_file import StoredTensor, open_file
from imagen_jax.storage.trees import flatten, name_some, unflatten
from imagen_jax.storage.wrong_files import absent
from imagen_jax.typing import Params

METADATA_KEY = "lora_adapter_metadata"
STAGE_KEY = "imagen_jax_stage"
PREFIX = "unet."
# Which peft and diffusers write into a folder, and peft's settings beside the first.
FILE_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PEFT_CONFIG = "adapter_config.json"
LETTERS = {"A": DOWN, "B": UP}
OTHER_NETWORKS = "Stable Diffusion's network or of another one with transformer blocks"


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


def _layer_paths(path: str, shape: tuple[int, ...]) -> list[str]:
    """layers/attention/query as layers/0/attention/query and so on; as it is if not stacked."""
    stacked = STACKED.search(path)
    if stacked is None:
        return [path]
    return [f"{path[: stacked.end()]}{i}/{path[stacked.end() :]}" for i in range(shape[0])]


def _layers(path: str, values: Any) -> list[Any]:
    return [values] if STACKED.search(path) is None else list(values)


def save_lora(path: str | os.PathLike, stage: Stage, lora: Params, config: LoraConfig) -> None:
    """Writes an adapter; the file is put in place when it is whole."""
    factors = {
        name: layer
        for path, stack in flatten(lora).items()
        for name, layer in zip(_layer_paths(path, stack.shape), _layers(path, stack), strict=True)
    }
    names = module_names(stage, sorted({name.rsplit("/", 1)[0] for name in factors}))
    tensors = {
        f"{PREFIX}{theirs}.lora_{letter}.weight": np.ascontiguousarray(
            np.asarray(factors[f"{ours}/{part}"], np.float32).T
        )
        for letter, part in LETTERS.items()
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


def find_adapter(path: str | os.PathLike) -> Path:
    """The file of an adapter: itself, or the one in a folder as peft and diffusers write it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder has several, or only pickles.
    """
    path = user_path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(absent(path))
    files = sorted(path.glob("*.safetensors"))
    known = [file for file in files if file.name in FILE_NAMES]
    found = known if len(known) == 1 else files
    if len(found) == 1:
        return found[0]
    if files:
        names = name_some([file.name for file in files])
        raise ValueError(f"{path} has several adapters, {names}: give one of these files.")
    if pickles := pickles_in(path):
        raise ValueError(
            f"{path} has its adapter in a pickle ({pickles[0]}), which is not read; save it as "
            "safetensors (save_pretrained of peft, save_lora_weights of diffusers do)."
        )
    raise FileNotFoundError(f"{path} has no adapter: no {' or '.join(FILE_NAMES)} in it.")


class LoraFile:
    """An adapter on disk, its factors by the module names of the file.

    files: those that it is read from: the tensors', and peft's adapter_config.json beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else than a LoRA of linear layers.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = find_adapter(path)
        tensors, metadata = open_file(self.path)
        self.files = [self.path]
        self.stage_name = metadata.get(STAGE_KEY)
        self.modules: dict[str, dict[str, StoredTensor]] = {}
        self.alphas: dict[str, float] = {}
        self.of_processors: set[str] = set()
        try:
            self._sort(tensors)
        except ValueError as error:
            raise ValueError(f"{self.path} {error}.") from None
        settings, where = self._settings(metadata, tensors)
        try:
            self.strength = read_strength(settings)
            if self.alphas and self.strength.alpha is not None:
                raise ValueError("there is an alpha, and the tensors have others")
        except ValueError as error:
            raise ValueError(f"{where}, {error}.") from None

    def _sort(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Tensors by module and part; ValueError in words to follow the file's name."""
        if kind := other_kind(tensors):
            raise ValueError(f"is {kind}")
        odd = []
        for name, tensor in tensors.items():
            found = parse_name(name)
            if found is None:
                odd.append(name)
                continue
            same = self.modules.setdefault(found.module, {}).setdefault(found.part, tensor)
            if same is not tensor:
                raise ValueError(f"has the same factor twice: {same.name} and {name}")
            if found.processor:
                self.of_processors.add(found.module)
        for module, parts in self.modules.items():
            alpha = parts.pop(ALPHA, None)
            if len(parts) < 2:
                odd.append(f"{module} without its other half")
            elif alpha is not None:
                self.alphas[module] = _number(alpha)
        if not self.modules:
            raise ValueError(f"is not an adapter: it has {name_some(odd) or 'nothing'}")
        if odd:
            raise ValueError(
                "is not a LoRA of linear layers alone: every tensor must be one of a pair "
                f"MODULE.lora_A.weight and MODULE.lora_B.weight, not {name_some(odd)}"
            )

    def _settings(
        self, metadata: Mapping[str, str], names: Iterable[str]
    ) -> tuple[dict[str, Any], str]:
        """peft's settings, empty where there are none, and where they stand."""
        where, beside = f"{self.path}: in its {METADATA_KEY}", self.path.with_name(PEFT_CONFIG)
        if METADATA_KEY in metadata:
            try:
                values = parse_object(metadata[METADATA_KEY])
            except ValueError as error:
                raise ValueError(f"{where}, {error}.") from None
            return {name.removeprefix(PREFIX): value for name, value in values.items()}, where
        if not any(name.startswith(PEFT_PREFIX) for name in names):
            return {}, where
        if not beside.is_file():
            raise FileNotFoundError(
                f"{self.path} was written by peft, and {PEFT_CONFIG}, which says how strong it is, "
                "is not beside it."
            )
        self.files.append(beside)
        return read_object(beside, "the config of an adapter"), f"{beside}: in it"

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
        """alpha / rank: by a tensor of the file, or by its settings; 1 where it has neither."""
        rank = self.modules[module][UP].shape[1]
        if self.alphas:  # kohya's: 0 stands for the rank
            return (self.alphas.get(module) or rank) / rank
        return self.strength.scale(module, rank)


def _number(tensor: StoredTensor) -> float:
    """The alpha in a tensor of one number."""
    value = np.asarray(tensor[()], np.float32) if tensor.nbytes <= 8 else np.zeros(0)
    if value.size != 1 or not np.isfinite(value).all():
        raise ValueError(f"has {tensor.name} of shape {tensor.shape}, not one finite number")
    return float(value.reshape(()))


def fitting_modules(file: LoraFile, kernels: Mapping[str, Any]) -> list[str]:
    """The file's modules, without those of 2023 that nothing reads: the processors of attention to
    the text alone had factors for keys and values of the image too.
    """

    def is_idle(module: str) -> bool:
        attention, _, layer = module.rpartition(".")
        own = layer in ("to_k", "to_v") and module not in kernels
        return own and module in file.of_processors and f"{attention}.add_k_proj" in kernels

    return sorted(module for module in file.modules if not is_idle(module))


def misfits(file: LoraFile, stage: Stage, params: Params) -> list[str]:
    """How an adapter does not fit a stage's network (parameters or their shapes), one line each."""
    kernels, used, lines = _kernels(stage, params), {}, []
    for module in fitting_modules(file, kernels):
        down, up = file.modules[module][DOWN].shape, file.modules[module][UP].shape
        if module not in kernels:
            lines.append(f"{module} is not a linear layer of the network")
            continue
        first = used.setdefault(kernels[module][0], module)
        if first != module:
            lines.append(f"{module} and {first} are the same layer")
        elif (len(down), len(up)) != (2, 2):
            lines.append(f"{module} has tensors of {down} and {up}, not matrices")
        elif down[0] == 0 or down[0] != up[1]:
            lines.append(f"{module} has rank {down[0]} in lora_A and {up[1]} in lora_B")
        elif (down[1], up[0]) != kernels[module][1]:
            wanted = " to ".join(map(str, kernels[module][1]))
            lines.append(f"{module} is for {down[1]} to {up[0]} channels, not {wanted}")
        else:
            try:
                file.scale(module)
            except ValueError as error:
                lines.append(str(error))
    return lines


def _kernels(stage: Stage, params: Params) -> dict[str, tuple[str, tuple[int, int]]]:
    """Our path and the shape of each linear layer, by its names in files: diffusers', kohya's and
    our own.
    """
    shapes = {
        name.removesuffix("/kernel"): tuple(leaf.shape[-2:])
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel") and len(leaf.shape) - bool(STACKED.search(path)) == 2
        for name in _layer_paths(path, leaf.shape)
    }
    theirs = module_names(stage, list(shapes))
    named = {path.replace("/", "."): (path, shape) for path, shape in shapes.items()}
    named |= {theirs[path]: (path, shape) for path, shape in shapes.items()}
    return {name.replace(".", "_"): kernel for name, kernel in named.items()} | named  # kohya's


def read_lora(file: LoraFile, stage: Stage, params: Params) -> Params:
    """The adapter as `imagen_jax.models.lora.merge_lora` takes it, with a scale of 1.

    Raises:
        ValueError: it does not fit the stage's network; the message lists where.
    """
    lines = misfits(file, stage, params)
    if lines:
        of_sd = any("transformer_blocks" in module for module in file.modules)
        advice = f" These are names of {OTHER_NETWORKS}." if of_sd else ""
        raise ValueError(
            f"{file.path} does not fit stage {stage.name!r}: {name_some(lines)}.{advice}"
        )
    kernels = _kernels(stage, params)
    factors = {
        f"{kernels[module][0]}/{part}": factor
        for module in fitting_modules(file, kernels)
        for part, factor in file.read(module).items()
    }
    for path, leaf in flatten(params).items():
        for part in (DOWN, UP):
            name = f"{path.removesuffix('/kernel')}/{part}"
            parts = _layer_paths(name, leaf.shape)
            if parts != [name] and any(p in factors for p in parts):
                factors[name] = _stacked(file, parts, factors)
    return unflatten(factors)


def _stacked(file: LoraFile, names: list[str], factors: dict[str, np.ndarray]) -> np.ndarray:
    """The factors of all layers on one another, taken out of `factors`."""
    parts = [factors.pop(name, None) for name in names]
    shapes = {None if part is None else part.shape for part in parts}
    if len(shapes) > 1:
        first, last = (name.rpartition("/")[0].replace("/", ".") for name in (names[0], names[-1]))
        raise ValueError(
            f"{file.path}: the layers are stacked, so all from {first} to {last} need an adapter "
            "of the same rank."
        )
    return np.stack(parts)

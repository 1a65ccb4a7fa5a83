"""Feature networks on disk: Inception, CLIP and DINOv2, others' files and ours.

Ours is features.json, what it is, beside features.safetensors (or shards and an index) and, of
CLIP, the tokenizer's files.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

from imagen_jax.convert.clip import MODEL_TYPE, clip_shapes, read_clip
from imagen_jax.convert.dinov2 import DEFAULTS, dinov2_shapes, read_dinov2
from imagen_jax.convert.inception import inception_shapes, params_from_graph
from imagen_jax.evaluation.features import (
    CONFIGS,
    FeatureExtractor,
    FeatureNetwork,
    Kind,
    make_extractor,
)
from imagen_jax.storage.codec import from_dict, to_dict
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import read_dataclass, read_object, write_object
from imagen_jax.storage.layout_files import read_params
from imagen_jax.storage.safetensors import save_params
from imagen_jax.text.clip_tokenizer import tokenizer_files

FEATURES = "features"
CONFIG_FILE = f"{FEATURES}.json"
GRAPH_SUFFIX, PICKLE_SUFFIX = ".pb", ".pth"
# Of Hugging Face's folders, by the model type in config.json; and of ours, by kind.
READERS = {MODEL_TYPE: read_clip, **dict.fromkeys(DEFAULTS, read_dinov2)}
SHAPES = {
    "inception": lambda config: inception_shapes(),
    "clip": clip_shapes,
    "dinov2": dinov2_shapes,
}


@dataclasses.dataclass(frozen=True)
class FeatureFile:
    """The keys of features.json. fingerprint: of the weights, for those who read only this file."""

    kind: Kind
    name: str
    fingerprint: str | None = None
    config: Any = None  # of the kind's class; read from a dict

    def __post_init__(self):
        cls = CONFIGS[self.kind]
        if (self.config is None) != (cls is type(None)):
            raise ValueError("CLIP and DINOv2 need 'config', and Inception has none")
        if not isinstance(self.config, cls):
            object.__setattr__(self, "config", from_dict(cls, self.config, "config"))


def is_feature_network(source: str | os.PathLike) -> bool:
    """Whether a path is that of a feature network in one of the forms, a .pth file among them."""
    path = user_path(source)
    if not path.is_dir():  # one that is missing, too
        return path.suffix in (GRAPH_SUFFIX, PICKLE_SUFFIX)
    if (path / CONFIG_FILE).is_file():
        return True
    if not (path / "config.json").is_file():
        return False
    return _model_type(path) in READERS


def _model_type(directory: Path) -> str | None:
    found = read_object(directory / "config.json", "the config of a model").get("model_type")
    return found if isinstance(found, str) else None


def find_network(source: str | os.PathLike) -> Path:
    """Where a network that can be read lies.

    Raises:
        FileNotFoundError, ValueError: it is missing, a pickle or something else.
    """
    path = user_path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}, where a feature network should be.")
    if path.suffix == PICKLE_SUFFIX:
        raise ValueError(
            f"{path} is a pickle, which only imagen-jax convert reads: imagen-jax convert "
            f"--model {path} --to imagen_jax --out {path.with_suffix('')}"
        )
    if not is_feature_network(path):
        raise FileNotFoundError(
            f"{path} holds no feature network: neither {CONFIG_FILE}, as imagen-jax convert writes "
            "it, nor the config.json of a CLIP or DINOv2 model."
        )
    return path


def read_network(source: str | os.PathLike) -> FeatureNetwork:
    """A network from a directory of ours, one of Hugging Face's, or Inception's graph file.

    Raises:
        FileNotFoundError, ValueError: as of `find_network`, or files are damaged.
    """
    path = find_network(source)
    if path.is_file():
        return FeatureNetwork(path.stem, None, params_from_graph(path))
    if (path / CONFIG_FILE).is_file():
        return _read_own(path)
    return FeatureNetwork(path.resolve().name, *READERS[_model_type(path)](path), path)


def _read_own(path: Path) -> FeatureNetwork:
    found = read_dataclass(path / CONFIG_FILE, "the config of a feature network", FeatureFile)
    params = read_params(path, FEATURES, SHAPES[found.kind](found.config))
    return FeatureNetwork(found.name, found.config, params, path)


def write_network(
    directory: str | os.PathLike, network: FeatureNetwork, dtype: str | None = None
) -> None:
    """Writes a network in our form; a CLIP model's with its tokenizer.

    Args:
        dtype: of the weights on disk; None leaves them float32.
    """
    directory = user_path(directory)
    save_params(directory, FEATURES, network.params, dtype)
    for file in tokenizer_files(network.directory) if network.directory is not None else ():
        target = directory / file.name
        if not (target.exists() and target.samefile(file)):
            shutil.copyfile(file, target)
    # Last: a directory without it is not one of ours.
    own = FeatureFile(network.kind, network.name, network.fingerprint, network.config)
    write_object(directory / CONFIG_FILE, to_dict(own))


def load_extractor(source: str | os.PathLike, **options: Any) -> FeatureExtractor:
    """The extractor of a network that `read_network` reads, with `make_extractor`'s options:
    `resize`, `mesh` and `batch_size`.

    Raises:
        FileNotFoundError, ValueError: files are missing, damaged or of something else, or an option
            does not suit the network.
    """
    return make_extractor(read_network(source), **options)

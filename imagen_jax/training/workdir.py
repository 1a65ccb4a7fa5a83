"""A run's folder: where it may write, held for it alone, and what makes the folder whole."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from imagen_jax.devices.hosts import check_shared
from imagen_jax.pipeline.shipped import MODEL_FILE
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.disk import disk_errors
from imagen_jax.storage.folders import output_folder, user_path
from imagen_jax.storage.lock import locked
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizers import copy_tokenizer

CONFIG_FILE = "config.json"


@contextlib.contextmanager
def held(path: str | os.PathLike, option: str = "--workdir") -> Iterator[Path]:
    """The folder of a run, made where it is missing, which no other run may use meanwhile.

    All hosts of the run call it; they must see the same folder.

    Raises:
        ValueError: it holds a model, cannot be written, hosts see different ones, or another run
            holds it.
    """
    workdir = Path(os.path.abspath(user_path(path)))
    if (workdir / MODEL_FILE).exists():
        raise ValueError(
            f"{option} {path} holds a model ({MODEL_FILE}), which would be read in place of the "
            "run's checkpoints: give another folder."
        )
    with output_folder(workdir, option):
        check_shared(workdir, option)
        with locked(workdir, option):
            yield workdir


def write_description(
    workdir: Path, description: Mapping[str, Any], encoder: TextEncoder | None
) -> None:
    """Writes config.json and the tokenizer's file into the workdir, which then needs nothing else;
    on the first host only.
    """
    if jax.process_index() != 0:
        return
    content = json.dumps(description["config"], indent=1, ensure_ascii=False)
    with written_whole(workdir / CONFIG_FILE) as file:
        file.write_text(content + "\n", encoding="utf-8")
    if encoder is not None:
        with disk_errors(workdir):
            copy_tokenizer(encoder.tokenizer, workdir)

"""The classes of a run by name, kept in its workdir: a resumed run numbers them as before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from imagen_jax import data
from imagen_jax.data.classes import (
    ClassNames,
    class_names,
    class_table,
    count_classes,
    numbered_by,
)
from imagen_jax.devices import hosts
from imagen_jax.pipeline import loading
from imagen_jax.storage.checkpoint import MismatchError
from imagen_jax.storage.json_file import read_object, write_object
from imagen_jax.storage.trees import name_some
from imagen_jax.training.run_config import RunConfig

CLASSES_FILE = "classes.json"
MOST_SHOWN = 40  # rows of the table


def with_run_classes(
    config: RunConfig, source: data.Source, workdir: Path, resumed: bool
) -> data.Source:
    """The run's image set, numbered as the run began, or as the model that it starts from; its
    table is printed. A source without names is given back as it is.

    Raises:
        ValueError: there are not as many classes as the network has, or the images have one that
            the run did not begin with.
    """
    names, wanted = class_names(source), config.stage.network.num_classes
    if not names:
        return source
    if resumed:
        names = _kept_names(workdir, source)
    elif config.init_from is not None:
        names = _source_names(config, source)
    if len(names) != wanted:
        raise ValueError(
            f"the images have {len(names)} classes ({name_some(list(names))}), but "
            f"stage.network.num_classes is {wanted}: set it to {len(names)}, or mend the folders"
        )
    source = numbered_by(source, names)
    rows = class_table(names, count_classes(source, names))
    if (more := len(names) - MOST_SHOWN) > 0:
        rows[-more:] = [f"... and {more} more, all in {workdir / CLASSES_FILE}"]
    hosts.say_on_first_host("\n".join(rows))
    return source


def _kept_names(workdir: Path, source: data.Source) -> ClassNames:
    path, names = workdir / CLASSES_FILE, class_names(source)
    if not path.is_file():
        # begun by version 0.1, which numbered class folders in the order of letters
        letters = tuple(sorted(names)) if getattr(source, "labels", None) is not None else names
        if letters != names:
            hosts.say_on_first_host("the classes keep the order of letters, as the run began")
        return letters
    rows = read_object(path, "the classes of a run").get("classes")
    try:
        kept = tuple(row["name"] for row in rows)
        numbers = [row["number"] for row in rows]
    except (TypeError, KeyError):
        kept, numbers = (), None
    if not kept or numbers != list(range(len(kept))) or not all(isinstance(n, str) for n in kept):
        raise ValueError(f"{path} must list the classes by number, from 0, each with its name")
    return kept


def _source_names(config: RunConfig, source: data.Source) -> ClassNames:
    """The order of the model that the run starts from, where it knows all of the classes."""
    names, cascade = class_names(source), loading.load_model(config.init_from).cascade
    known = cascade.class_names
    if set(names) <= set(known) and len(known) == config.stage.network.num_classes:
        return known
    if any(stage.conditioning == "label" for stage in cascade.stages):
        own = f"it knows {name_some(list(known))}" if known else "it has none"
        hosts.say_on_first_host(
            f"warning: {config.init_from} has other class names ({own}): what it learned of a "
            "number counts for the class of that number in this table"
        )
    return names


def write_classes(workdir: Path, source: data.Source | None) -> None:
    """Writes the table into the workdir, on the first host; nothing where there are no names."""
    names = class_names(source)
    if not names or jax.process_index() != 0:
        return
    counts = count_classes(source, names) or [None] * len(names)
    rows = [
        {"number": number, "name": name, "images": count}
        for number, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    write_object(workdir / CLASSES_FILE, {"classes": rows})


def check_saved(saved: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """MismatchError where a checkpoint numbers its classes otherwise than the run's images."""
    before, now = (
        list(each.get("model", {}).get("class_names") or ()) for each in (saved, description)
    )
    if before and now and before != now:
        raise MismatchError(
            f"the checkpoint numbers its classes as {name_some(before)}; the images as "
            f"{name_some(now)}: put back the run's {CLASSES_FILE}, or give another --workdir"
        )

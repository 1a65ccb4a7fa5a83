"""Classes by name: a source's table of them, which says what each label number stands for.

A source of class folders, and any other that knows, has `class_names`, by number.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from imagen_jax.data.sources import MixtureSource, Source
from imagen_jax.storage.folders import natural_key
from imagen_jax.storage.trees import name_some

ClassNames = tuple[str, ...]


def sorted_classes(names: Iterable[str]) -> ClassNames:
    """The order in which classes are numbered: as people count, 2 before 10."""
    return tuple(sorted(set(names), key=natural_key))


def class_names(source: Any) -> ClassNames:
    """The names of a source's classes by number; of a mixture, those of its sets. Empty where it
    does not know them.
    """
    if isinstance(source, MixtureSource):
        return next(filter(None, map(class_names, source.sources)), ())
    return tuple(getattr(source, "class_names", ()))


def numbered_by(source: Source, names: ClassNames) -> Source:
    """The source with its classes numbered by this table.

    Raises:
        ValueError: it has a class that is not in the table, or numbers that cannot change.
    """
    if isinstance(source, MixtureSource):
        parts = [numbered_by(part, names) for part in source.sources]
        return dataclasses.replace(source, sources=parts)
    own = class_names(source)
    if not own or own == names:
        return source
    if unknown := [name for name in own if name not in names]:
        raise ValueError(
            f"the images have the classes {name_some(unknown)}, which are not among those that "
            f"the model knows: {name_some(list(names))}"
        )
    labels = getattr(source, "labels", None)
    if labels is None:
        raise ValueError(
            f"the images number their classes as {name_some(list(own))}, the model as "
            f"{name_some(list(names))}"
        )
    numbers = np.asarray([names.index(name) for name in own])
    return dataclasses.replace(source, labels=numbers[labels], class_names=names)


def mixed_classes(sources: Sequence[Source]) -> list[Source]:
    """Sets to be mixed, numbered by one table of all their classes: one name is one class."""
    tables = [class_names(source) for source in sources]
    if all(table in ((), tables[0]) for table in tables):
        return list(sources)
    union = sorted_classes(name for table in tables for name in table)
    return [numbered_by(source, union) for source in sources]


def count_classes(source: Source, names: ClassNames) -> list[int]:
    """How many images of each class a source has in its split; empty where it must read them."""
    if isinstance(source, MixtureSource):
        counts = [count_classes(part, names) for part in source.sources]
        return np.sum(counts, axis=0).tolist() if all(counts) else []
    labels = getattr(source, "labels", None)
    return [] if labels is None else np.bincount(labels, minlength=len(names)).tolist()


def class_table(names: ClassNames, counts: Sequence[int] = ()) -> list[str]:
    """A line a class: its number, its name and how many images it has, where that is known."""
    width = max(map(len, ("name", *names)))
    rows = [f"{'class':>5}  {'name':<{width}}" + ("  images" if counts else "")]
    for number, name in enumerate(names):
        shown = name if name.isprintable() else ascii(name)
        rows.append(
            f"{number:>5}  {shown:<{width}}" + (f"  {counts[number]:>6,}" if counts else "")
        )
    return [row.rstrip() for row in rows]

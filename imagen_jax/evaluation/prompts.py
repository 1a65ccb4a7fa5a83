"""What images are generated from: COCO-30K, DrawBench, or any list in a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imagen_jax.data.coco import Caption
from imagen_jax.storage import fingerprints
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import user_path
from imagen_jax.storage.json_file import read_object
from imagen_jax.storage.list_file import TEXT_NAMES, Row, fault, read_rows, text_of

COCO_30K, COCO_SIZE = 30_000, 256
# Where the file of a named list is, when the user does not say, and where it comes from.
FILES = {
    "coco30k": Path("data/coco/coco30k.json"),
    "drawbench": Path("data/drawbench/drawbench.csv"),
}
ORIGINS = {
    "coco30k": "make it from COCO's captions with: imagen-jax make_prompts --annotations "
    "captions_val2014.json --out {path}",
    "drawbench": "save DrawBench (arXiv 2205.11487, section 3; linked from "
    "https://imagen.research.google) there as CSV with the columns Prompts and Category",
}
MAX_BYTES = 2**28


@dataclass(frozen=True)
class PromptList:
    """Prompts in their order, which decides the noise of each.

    ids: of each prompt, distinct: COCO's caption ids, else its place. categories: DrawBench's, or
    None. image_ids: COCO's, of the true images, or None. origin: how the list was made, as far
    as the file says. columns: others of the file, a value a prompt, None where a line lacks it.
    """

    name: str
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    image_ids: tuple[str, ...] | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """Changes with any prompt, id, category, or with their order."""
        values = json.dumps([self.texts, self.ids, self.categories], ensure_ascii=False)
        return fingerprints.of_bytes(values.encode())

    def describe(self) -> dict[str, Any]:
        """All but the prompts themselves, for a report."""
        return {
            "name": self.name,
            "count": len(self),
            "fingerprint": self.fingerprint,
            "origin": self.origin,
        }

    def first(self, count: int | None) -> "PromptList":
        """The first `count`; all when None."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"num must be at least 1: {count}.")
        names = ("texts", "ids", "categories", "image_ids")
        values = {name: getattr(self, name) for name in names}
        columns = {name: values[:count] for name, values in self.columns.items()}
        return replace(self, columns=columns, **{k: v and v[:count] for k, v in values.items()})


def plain_list(name: str, texts: Sequence[str]) -> PromptList:
    """A list without ids of its own."""
    return PromptList(name, tuple(texts), tuple(map(str, range(len(texts)))))


def read_prompts(source: str, path: str | Path | None = None) -> PromptList:
    """The list "coco30k" or "drawbench" (their files from `path`), or the list in file `source`.

    A file ending in .json is one of imagen-jax make_prompts; others are read by
    `storage.list_file`: .csv with a column prompts, prompt, caption or text, perhaps id and
    category; .tsv the same by tabs (PartiPrompts, arXiv 2206.10789); .jsonl the same by keys; any
    other has one prompt a line.

    Raises:
        FileNotFoundError: there is no such file; the message tells where it comes from.
        ValueError: it cannot be read as such a list, or holds no prompt or an empty one.
    """
    name = source if source in FILES else Path(source).stem
    path = user_path(path or FILES.get(source, source))
    if not path.is_file():
        origin = ORIGINS.get(
            source, f"give a text file with one prompt a line, or one of {', '.join(FILES)}"
        )
        raise FileNotFoundError(f"There is no file {path}; {origin.format(path=path)}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes: no list of prompts.")
    if path.suffix.lower() == ".json":
        values = read_object(path, "a list of prompts of imagen-jax make_prompts")
        rows, origin = _json_rows(path, values.get("prompts")), values.get("origin", {})
    else:
        rows, origin = read_rows(path, {"prompt": TEXT_NAMES}), {}
    return replace(_from_rows(path, rows, name), origin=origin)


def write_coco(path: Path, captions: Sequence[Caption], origin: dict[str, Any]) -> None:
    """The file that `read_prompts` reads as coco30k: ids, captions and their origin."""
    rows = [caption._asdict() for caption in captions]
    text = json.dumps({"origin": origin, "prompts": rows}, ensure_ascii=False, indent=0)
    with written_whole(path) as file:
        file.write_text(text + "\n", encoding="utf-8")


def _json_rows(path: Path, values: Any) -> list[Row]:
    """The rows of make_prompts.py's file, numbered as they come, which is one a line."""
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise ValueError(
            f'{path} cannot be read as a list of prompts: it must be {{"prompts": [{{"id": 1, '
            '"text": "a cat"}, ...]}, as imagen-jax make_prompts writes it; give other lists as '
            ".txt, .csv or .jsonl."
        )
    return [
        (number, row | {"prompt": row.get("prompt", row.get("text"))})
        for number, row in enumerate(values, 1)
    ]


def _from_rows(path: Path, rows: Sequence[Row], name: str) -> PromptList:
    """The list of rows with a "prompt" each, and id, category and image_id where all have them."""
    if not rows:
        raise ValueError(f"{path} cannot be read as a list of prompts: it holds no prompt.")
    texts = tuple(text_of(path, row, "prompt") for row in rows)
    columns, lines = set.intersection(*(set(row) for _, row in rows)), {}
    for place, (line, row) in enumerate(rows):
        own = str(row["id"] if "id" in columns else place)
        if lines.setdefault(own, line) != line:
            raise fault(path, line, f"the prompt has the same id as line {lines[own]}: {own}")
    categories, image_ids = (
        tuple(str(row[column]) for _, row in rows) if column in columns else None
        for column in ("category", "image_id")
    )
    others = dict.fromkeys(name for _, row in rows for name in row if name != "prompt")
    more = {column: tuple(row.get(column) for _, row in rows) for column in others}
    return PromptList(name, texts, tuple(lines), categories, image_ids, columns=more)

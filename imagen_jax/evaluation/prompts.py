"""What images are generated from: COCO-30K, DrawBench, or any list in a file."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imagen_jax.data.coco import Caption
from imagen_jax.storage import fingerprints
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.json_file import parse_object
from imagen_jax.storage.wrong_files import look_at

COCO_30K, COCO_SIZE = 30_000, 256
# Where the file of a named list is, when the user does not say, and where it comes from.
FILES = {
    "coco30k": Path("data/coco/coco30k.json"),
    "drawbench": Path("data/drawbench/drawbench.csv"),
}
ORIGINS = {
    "coco30k": "make it from COCO's captions with: python scripts/make_prompts.py --annotations "
    "captions_val2014.json --out {path}",
    "drawbench": "save DrawBench (arXiv 2205.11487, section 3; linked from "
    "https://imagen.research.google) there as CSV with the columns Prompts and Category",
}
PROMPT_COLUMNS = ("prompts", "prompt", "caption", "text")
MAX_BYTES = 2**28


@dataclass(frozen=True)
class PromptList:
    """Prompts in their order, which decides the noise of each.

    ids: of each prompt, distinct: COCO's caption ids, else its place. categories: DrawBench's, or
    None. image_ids: COCO's, of the true images, or None. origin: how the list was made, as far
    as the file says.
    """

    name: str
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    image_ids: tuple[str, ...] | None = None
    origin: dict[str, Any] = field(default_factory=dict)

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
        return replace(self, **{k: v and v[:count] for k, v in values.items()})


def plain_list(name: str, texts: Sequence[str]) -> PromptList:
    """A list without ids of its own."""
    return PromptList(name, tuple(texts), tuple(map(str, range(len(texts)))))


def read_prompts(source: str, path: str | Path | None = None) -> PromptList:
    """The list "coco30k" or "drawbench" (their files from `path`), or the list in file `source`.

    A file ending in .json is one of scripts/make_prompts.py; .csv has a column prompts, prompt,
    caption or text, perhaps id and category; .tsv the same by tabs (PartiPrompts, arXiv
    2206.10789); .jsonl the same by keys; any other has one prompt a line.

    Raises:
        FileNotFoundError: there is no such file; the message tells where it comes from.
        ValueError: it cannot be read as such a list, or holds no prompt or an empty one.
    """
    name = source if source in FILES else Path(source).stem
    path = Path(path or FILES.get(source, source))
    if not path.is_file():
        origin = ORIGINS.get(
            source, f"give a text file with one prompt a line, or one of {', '.join(FILES)}, emoji"
        )
        raise FileNotFoundError(f"There is no file {path}; {origin.format(path=path)}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes: no list of prompts.")
    if found := look_at(path, ("text", "empty", "utf16")):
        raise ValueError(f"{path} is {found}.")
    try:
        rows, origin = _read_rows(path.read_text(encoding="utf-8-sig"), path.suffix.lower())
        found = replace(_from_rows(rows, name), origin=origin)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a list of prompts: {error}") from None
    if len(set(found.ids)) != len(found):
        raise ValueError(f"{path}: two prompts have the same id.")
    return found


def write_coco(path: Path, captions: Sequence[Caption], origin: dict[str, Any]) -> None:
    """The file that `read_prompts` reads as coco30k: ids, captions and their origin."""
    rows = [caption._asdict() for caption in captions]
    text = json.dumps({"origin": origin, "prompts": rows}, ensure_ascii=False, indent=0)
    with written_whole(path) as file:
        file.write_text(text + "\n", encoding="utf-8")


def _read_rows(text: str, suffix: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(a row a prompt, how the list was made as far as it says) by the suffix of a file."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if suffix == ".json":
        values = parse_object(text, lenient=True)
        return values["prompts"], dict(values.get("origin", {}))
    if suffix == ".jsonl":
        return [parse_object(line, lenient=True) for line in lines], {}
    if suffix in (".csv", ".tsv"):
        # Quotes mean nothing in PartiPrompts' tsv, whose prompts hold them.
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
        return list(csv.DictReader(io.StringIO(text), **dialect)), {}
    return [{"prompt": line} for line in lines], {}


def _from_rows(rows: Sequence[dict[str, Any]], name: str) -> PromptList:
    """Rows by column; the columns' names in any case."""
    if not rows:
        raise ValueError("it holds no prompt")
    rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]
    columns = set.intersection(*map(set, rows))
    column = next((known for known in PROMPT_COLUMNS if known in columns), None)
    if column is None:
        raise ValueError(
            f"it needs a column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}; it has "
            f"{', '.join(sorted(columns))}"
        )
    for place, row in enumerate(rows):
        if not isinstance(row[column], str) or not row[column].strip():
            raise ValueError(f"prompt {place + 1} is empty or no text: {row[column]!r}")
    texts = tuple(row[column].strip() for row in rows)
    ids = tuple(str(row["id"]) if "id" in columns else str(i) for i, row in enumerate(rows))
    categories, image_ids = (
        tuple(str(row[column]) for row in rows) if column in columns else None
        for column in ("category", "image_id")
    )
    return PromptList(name, texts, ids, categories, image_ids)

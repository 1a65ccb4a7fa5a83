r"""Writes the tables of docs/scaling.md from the plans in docs/scaling/ and docs/scaling/gpus/.

    imagen-jax plan --config imagen_sr256 --topology v5p:4x4x4 \
        --json docs/scaling/sr256_v5p.json
    imagen-jax scaling
"""

import argparse
import json
import re
from pathlib import Path

from imagen_jax.commands.command_line import make_parser, path, run_parsed
from imagen_jax.planning.scaling import compiled_table, gpu_table

# The tables by the marks before them, and the folders with their plans.
TABLES = {"compiled": (compiled_table, "."), "gpus": (gpu_table, "gpus")}


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    parse.add_argument("--document", type=path, default=Path("docs/scaling.md"), metavar="FILE",
        help="where the tables stand; the plans are in the folder of its name")  # fmt: skip
    return parse


def written(document: str, plans: Path) -> str:
    """The document with a new table between each <!-- name --> and the <!-- end --> after it."""
    for name, (table, folder) in TABLES.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        if len(place.findall(document)) != 1:
            raise ValueError(f"{plans}.md must have one <!-- {name} --> ... <!-- end -->")
        lines = table(read_plans(plans / folder)) + "\n"
        document = place.sub(lambda _, lines=lines: lines, document)
    return document


def read_plans(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def write(options: argparse.Namespace) -> None:
    if not options.document.is_file():
        raise ValueError(f"there is no {options.document}: run this in a clone, or give --document")
    text = options.document.read_text(encoding="utf-8")
    options.document.write_text(written(text, options.document.with_suffix("")), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), write, arguments)

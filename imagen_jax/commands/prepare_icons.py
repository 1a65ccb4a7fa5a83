"""Makes the image set of icons: 18,559 icons in seven styles, named in English and Chinese.

    imagen-jax prepare_icons --out data/icons
    imagen-jax prepare_icons --out data/icons --sizes 256 --sets node_modules

writes icons32.npz, icons64.npz and 256/SPLIT-00000.tar with images, captions, styles and splits,
and LICENCES.txt with the authors to name. The sets are npm's packages @iconify-json/..., fetched
into OUT/sets where --sets does not say where they are.
"""

import argparse
import os

from imagen_jax.commands.command_line import count, entries, make_parser, path, run_parsed
from imagen_jax.storage.folders import output_folder


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--out", type=path, required=True, metavar="DIR", help="folder for the set")
    add("--sizes", type=sizes, default="32,64,256", metavar="S,S", help="pixels of the "
        "images: up to 64 in npz files, larger ones in tars")  # fmt: skip
    add("--sets", type=path, metavar="DIR", help="folder that has the packages, installed or "
        "unpacked (default: npm fetches them)")  # fmt: skip
    add("--threads", type=count, default=os.cpu_count(), metavar="N", help="icons drawn at once "
        "(default: the number of CPUs)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the set of these sizes in --out")
    return parse


def sizes(text: str) -> list[int]:
    """ "32,64" as numbers in order."""
    return sorted({count(entry) for entry in entries(text)})


def prepare(options: argparse.Namespace) -> None:
    import resvg_py  # noqa: F401  (whether it is installed, before all work)

    from imagen_jax.data import icon_files, icon_sets, icons, unicode_names
    from imagen_jax.evaluation.progress import image_bar

    unicode_names.check_tables()
    old = icon_files.existing_files(options.out, options.sizes)
    if old and not options.overwrite:
        raise ValueError(f"{old[0]} is there already; --overwrite replaces it")
    with output_folder(options.out):
        if options.sets is None:
            places = icon_sets.fetch_sets(options.out / "sets", print)
        else:
            places = icon_sets.find_sets(options.sets)
        sets = icon_sets.read_sets(places)
        listed = icons.list_icons(sets)
        with image_bar("drawing", len(listed)) as bar:
            icon_files.write_set(
                options.out, sets, listed, options.sizes, options.threads, bar.update
            )
    told = icon_files.manifest(sets, listed)["splits"]
    splits = ", ".join(f"{number:,} {split}" for split, number in told.items())
    print(f"{options.out}: {len(listed):,} icons, {splits}; see LICENCES.txt")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), prepare, arguments)

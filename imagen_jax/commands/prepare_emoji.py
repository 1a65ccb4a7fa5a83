"""Makes the emoji image set from an installed font, in under a minute.

    python scripts/prepare_emoji.py --out data/emoji

writes data/emoji/emoji.npz: images, names and captions in English and Chinese, and which are held
out. --captions FILE also writes the training captions as lines, to train a tokenizer on.
"""

import argparse

import numpy as np

from imagen_jax.commands.command_line import make_parser, path, run_parsed
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import make_folder


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--out", type=path, required=True, metavar="DIR", help="folder for emoji.npz")
    add("--captions", type=path, metavar="FILE", help="also write the training captions there")
    return parse


def prepare(options: argparse.Namespace) -> None:
    from imagen_jax.data import emoji

    listed = emoji.list_emoji()
    make_folder(options.out, "--out")
    kept, arrays = emoji.build(listed)
    path = options.out / "emoji.npz"
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    if options.captions:
        lines = (f"{line}\n" for line in emoji.train_captions(arrays))
        with written_whole(options.captions) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    train, chinese = arrays["split"] == "train", arrays["name_zh"] != ""
    print(
        f"{path}: {len(kept)} images of {len(listed)} listed, "
        f"{arrays['label'].max() + 1} distinct, {train.sum()} train, {(~train).sum()} held out, "
        f"{chinese.sum()} with a Chinese name, {arrays['variant'].sum()} variants of skin or gender"
    )


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), prepare, arguments)

"""Makes the emoji image set from an installed font, in under a minute.

    python scripts/prepare_emoji.py --out data/emoji

writes data/emoji/emoji.npz: images, names and captions in English and Chinese, and which are held
out. --captions FILE also writes the training captions as lines, to train a tokenizer on.
"""

import argparse
import pathlib

import numpy as np

from imagen_jax.commands.command_line import one_line_errors
from imagen_jax.data import emoji
from imagen_jax.storage.folders import make_folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for emoji.npz")
    parser.add_argument(
        "--captions", type=pathlib.Path, help="also write the training captions to this text file"
    )
    arguments = parser.parse_args()
    with one_line_errors(ValueError):
        listed = emoji.list_emoji()
        make_folder(arguments.out, "--out")
        write(listed, arguments)


def write(listed: list[emoji.Emoji], arguments: argparse.Namespace) -> None:
    kept, arrays = emoji.build(listed)
    unfinished = arguments.out / "unfinished.npz"
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(arguments.out / "emoji.npz")
    if arguments.captions:
        arguments.captions.write_text(
            "\n".join(emoji.train_captions(arrays)) + "\n", encoding="utf-8"
        )
    train = arrays["split"] == "train"
    chinese = arrays["name_zh"] != ""
    print(
        f"{arguments.out / 'emoji.npz'}: {len(kept)} images of {len(listed)} listed, "
        f"{arrays['label'].max() + 1} distinct, {train.sum()} train, {(~train).sum()} held out, "
        f"{chinese.sum()} with a Chinese name, {arrays['variant'].sum()} skin or gender variants"
    )

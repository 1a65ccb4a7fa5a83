"""Makes the emoji image set from an installed font, in under a minute.

    python scripts/prepare_emoji.py --out data/emoji

writes data/emoji/emoji.npz: images, names and captions in English and Chinese, and which are held
out. --captions FILE also writes the training captions as lines, to train a tokenizer on.
"""

import argparse
from pathlib import Path

import numpy as np

from imagen_jax.commands.command_line import one_line_errors
from imagen_jax.data import emoji
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.folders import make_folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for emoji.npz")
    parser.add_argument(
        "--captions", type=Path, help="also write the training captions to this text file"
    )
    arguments = parser.parse_args()
    with one_line_errors(ValueError):
        listed = emoji.list_emoji()
        make_folder(arguments.out, "--out")
        kept, arrays = emoji.build(listed)
        path = arguments.out / "emoji.npz"
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        if arguments.captions:
            lines = emoji.train_captions(arrays)
            arguments.captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        train = arrays["split"] == "train"
        chinese = arrays["name_zh"] != ""
        print(
            f"{path}: {len(kept)} images of {len(listed)} listed, "
            f"{arrays['label'].max() + 1} distinct, {train.sum()} train, {(~train).sum()} held "
            "out, "
            f"{chinese.sum()} with a Chinese name, {arrays['variant'].sum()} variants of skin or "
            "gender"
        )

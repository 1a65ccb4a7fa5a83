"""Trains the SentencePiece tokenizer of a text encoder that is to be trained from scratch.

    python scripts/train_tokenizer.py --input captions.txt --output spiece.model --vocab_size 6000

The input has one caption a line. See imagen_jax/text/tokenizer_training.py for how.
"""

import argparse
import os

from imagen_jax.storage.atomic import written_whole
from imagen_jax.text.tokenizer_training import train_tokenizer
from imagen_jax.text.tokenizers import SentencePieceTokenizer, vocab_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="text file, one caption a line")
    parser.add_argument("--output", required=True, help="the model file to write")
    parser.add_argument("--vocab_size", type=int, default=6000)
    args = parser.parse_args()
    if not os.path.isfile(args.input):
        parser.error(f"--input {args.input} is not a file")
    with open(args.input, encoding="utf-8") as file:
        model = train_tokenizer(file, args.vocab_size)
    with written_whole(args.output) as path:
        path.write_bytes(model)
    pieces = vocab_size(SentencePieceTokenizer(args.output))
    print(f"{args.output}: {pieces} pieces, {len(model) / 1024:.0f} KiB")

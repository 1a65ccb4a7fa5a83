"""Trains the SentencePiece tokenizer of a text encoder that is to be trained from scratch.

    python scripts/train_tokenizer.py --input captions.txt --output spiece.model --vocab_size 6000

The input has one caption a line. See imagen_jax/text/tokenizer_training.py for how.
"""

import argparse

from imagen_jax.commands.command_line import make_parser, path, run_parsed
from imagen_jax.storage.atomic import written_whole
from imagen_jax.text.tokenizer_training import train_tokenizer
from imagen_jax.text.tokenizers import SentencePieceTokenizer, vocab_size


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--input", type=path, required=True, metavar="FILE", help="text file, one caption a line")
    add("--output", type=path, required=True, metavar="FILE", help="the model file to write")
    add("--vocab_size", type=int, default=6000)
    return parse


def train(options: argparse.Namespace) -> None:
    with options.input.open(encoding="utf-8") as file:
        model = train_tokenizer(file, options.vocab_size)
    with written_whole(options.output) as path:
        path.write_bytes(model)
    pieces = vocab_size(SentencePieceTokenizer(options.output))
    print(f"{options.output}: {pieces} pieces, {len(model) / 1024:.0f} KiB")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), train, arguments)

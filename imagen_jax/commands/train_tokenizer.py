"""Trains the SentencePiece tokenizer of a text encoder that is to be trained from scratch.

    imagen-jax train_tokenizer --input captions.txt --output spiece.model --vocab_size 6000

The input has one caption a line, or is a .csv, .tsv or .jsonl with a column caption. See
imagen_jax/text/tokenizer_training.py for how.
"""

import argparse

from imagen_jax.commands.command_line import count, make_parser, path, run_parsed
from imagen_jax.storage.atomic import written_whole
from imagen_jax.storage.list_file import TEXT_NAMES, read_rows, text_of
from imagen_jax.text.tokenizer_training import train_tokenizer
from imagen_jax.text.tokenizers import SentencePieceTokenizer, vocab_size


def parser() -> argparse.ArgumentParser:
    parse = make_parser(__doc__)
    add = parse.add_argument
    add("--input", type=path, required=True, metavar="FILE", help="the captions")
    add("--output", type=path, required=True, metavar="FILE", help="the model file to write")
    add("--vocab_size", type=count, default=6000, help="pieces, fewer if the captions have fewer")
    return parse


def train(options: argparse.Namespace) -> None:
    rows = read_rows(options.input, {"caption": TEXT_NAMES})
    captions = [text_of(options.input, row, "caption") for row in rows]
    model = train_tokenizer(captions, options.vocab_size)
    with written_whole(options.output) as path:
        path.write_bytes(model)
    pieces = vocab_size(SentencePieceTokenizer(str(options.output)))
    print(f"{options.output}: {pieces} pieces, {len(model) / 1024:.0f} KiB")


def main(arguments: list[str] | None = None) -> None:
    run_parsed(parser(), train, arguments)

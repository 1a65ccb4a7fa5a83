"""Trains the SentencePiece tokenizer of a text encoder that is to be trained from scratch.

    python scripts/train_tokenizer.py --input captions.txt --output spiece.model --vocab_size 6000

The input has one caption a line. A small encoder learns soonest, and combines what it knows best,
when a piece is a word. Hence captions are cut at commas and colons and each distinct phrase counts
once (or phrases that recur, like "medium skin tone", would become single pieces), and the unigram
model starts from whole words; Chinese text is cut into words by jieba (`pip install jieba`).

The special ids are T5's (pad 0, eos 1, unk 2, no bos). NFKC and case folding happen inside the
model, and characters never seen in training fall back to bytes. The same input gives the same file.
"""

import argparse
import collections
import contextlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterable

NORMALIZATION = "nmt_nfkc_cf"
# Separates words in the training text only; a character that no caption has.
DELIMITER = "\u241f"
SPACE = "\u2581"
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
PUNCTUATION = ".,:;!?'\"()-"
# Expected counts below 1/2 are pruned in every round of expectation maximization.
REPEATS = 4
MAX_PIECE_LENGTH = 16


def phrases(captions: Iterable[str]) -> list[str]:
    """The distinct phrases between commas and colons, normalized, in sorted order."""
    import sentencepiece

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION)
    found = set()
    for caption in captions:
        parts = re.split("[,:;]", normalizer.Normalize(caption.replace(DELIMITER, " ")))
        found.update(" ".join(part.split()) for part in parts)
    return sorted(found - {""})


def chinese_words(text: str) -> list[str]:
    """The words of a run of Chinese characters, by jieba's dictionary."""
    import jieba

    jieba.setLogLevel(logging.ERROR)
    return list(jieba.cut(text, HMM=False))


def mark_chinese(phrase: str) -> str:
    """Puts the delimiter around each Chinese word, so that no piece crosses its ends."""

    def mark(match: re.Match) -> str:
        return DELIMITER + DELIMITER.join(chinese_words(match[0])) + DELIMITER

    return HAN.sub(mark, phrase)


def count_words(marked: list[str]) -> collections.Counter:
    """How often each word and character occurs in phrases out of `mark_chinese`."""
    counts = collections.Counter()
    for phrase in marked:
        for part in (SPACE + phrase.replace(" ", SPACE)).split(DELIMITER):
            # A word with the space before it: the same word inside a hyphenated one is another.
            words = re.findall(rf"{SPACE}?[^\W\d_]+", part)
            counts.update(word for word in words if 1 < len(word) <= MAX_PIECE_LENGTH)
            counts.update(part)
    return counts


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> bytes:
    """The SentencePiece model, of `vocab_size` pieces or fewer if the captions have fewer."""
    import sentencepiece

    marked = [mark_chinese(phrase) for phrase in phrases(captions)]
    if not marked:
        raise ValueError("There are no captions to train a tokenizer on.")
    marked.append(" ".join(PUNCTUATION))
    counts = count_words(marked)
    model = io.BytesIO()
    # The name of the seed file stays in the model: a relative one, so that the model is the same
    # wherever it is made.
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        with open("seeds.tsv", "w", encoding="utf-8") as file:
            for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
                file.write(f"{word}\t{count * REPEATS}\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(marked * REPEATS),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name=NORMALIZATION,
            pretokenization_delimiter=DELIMITER,
            seed_sentencepieces_file="seeds.tsv",
            max_sentencepiece_length=MAX_PIECE_LENGTH,
            shuffle_input_sentence=False,
            num_threads=1,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return model.getvalue()


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
    with open(args.output + ".tmp", "wb") as file:
        file.write(model)
    os.replace(args.output + ".tmp", args.output)

    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).GetPieceSize()
    print(f"{args.output}: {pieces} pieces, {len(model) / 1024:.0f} KiB")

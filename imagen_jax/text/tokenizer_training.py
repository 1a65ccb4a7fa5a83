"""Training of the SentencePiece tokenizer for a text encoder that is trained from scratch.

A small encoder learns soonest, and combines what it knows best, when a piece is a word. Hence
captions are cut at commas and colons and each distinct phrase counts once (or phrases that recur,
like "medium skin tone", would become single pieces), and the unigram model starts from whole words;
Chinese text is cut into words by jieba (`pip install jieba`).

The special ids are T5's (pad 0, eos 1, unk 2, no bos). NFKC and case folding happen inside the
model, and characters never seen in training fall back to bytes. The same input gives the same file.
"""

import collections
import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from imagen_jax.text.tokenizers import EOS_ID, PAD_ID

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


def mark_chinese(phrase: str) -> str:
    """Puts the delimiter around each Chinese word of jieba's dictionary, so that no piece crosses
    its ends.
    """
    if not HAN.search(phrase):
        return phrase
    import jieba

    jieba.setLogLevel(logging.ERROR)

    def mark(match: re.Match) -> str:
        return DELIMITER.join(["", *jieba.cut(match[0], HMM=False), ""])

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
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        seeds = "".join(f"{word}\t{count * REPEATS}\n" for word, count in ordered)
        Path("seeds.tsv").write_text(seeds, encoding="utf-8")
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
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return model.getvalue()

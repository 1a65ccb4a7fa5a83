"""CLIP's tokenizer: byte-level byte-pair encoding, by the library `tokenizers`."""

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.storage.wrong_files import look_at, refusal

# Either the one file or the two; a directory of Hugging Face has all three.
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def tokenizer_files(directory: str | os.PathLike) -> list[Path]:
    """The files of the directory that make the tokenizer; none where it has none."""
    directory = Path(directory)
    if (directory / TOKENIZER_FILE).is_file():
        return [directory / TOKENIZER_FILE]
    pair = [directory / name for name in VOCABULARY_FILES]
    return pair if all(path.is_file() for path in pair) else []


def tokenize(
    directory: str | os.PathLike, vocab_size: int, max_length: int, texts: Sequence[str]
) -> np.ndarray:
    """int32 [texts, max_length]: start mark, the text's ids, end mark, padded by end marks.

    A longer text is cut, its end mark kept, with one warning about all.

    Raises:
        ValueError: the directory has no tokenizer, a damaged one, or one for another model.
        ModuleNotFoundError: `tokenizers` is not installed.
    """
    tokenizer = _load(os.fspath(directory), vocab_size, max_length)
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates
    encodings = tokenizer.encode_batch(texts)
    cut = [text for text, found in zip(texts, encodings, strict=True) if found.overflowing]
    if cut:
        warnings.warn(
            f"CLIP reads no more than {max_length - 2} tokens and cuts {len(cut)} of {len(texts)} "
            f"captions ({len(cut) / len(texts):.1%}), the first {cut[0][:80]!r}.",
            stacklevel=2,
        )
    return np.asarray([encoding.ids for encoding in encodings], np.int32)


@functools.lru_cache(maxsize=4)
def _load(directory: str, vocab_size: int, max_length: int) -> Any:
    """A Tokenizer of the library `tokenizers`."""
    files = tokenizer_files(directory)
    if not files:
        raise ValueError(
            f"{directory} has no tokenizer: neither {TOKENIZER_FILE} nor "
            f"{' and '.join(VOCABULARY_FILES)}."
        )
    from tokenizers.processors import TemplateProcessing

    where = files[0]
    try:
        tokenizer = _read(files)
    except Exception as error:  # the library raises bare exceptions
        wrong = next((file for file in files if look_at(file, ("text",))), where)
        raise ValueError(refusal(wrong, "CLIP's tokenizer", error, ("text",))) from None
    start, end = (tokenizer.token_to_id(mark) for mark in (START, END))
    if start is None or end is None:
        raise ValueError(f"{where} is not CLIP's tokenizer: it lacks {START} or {END}.")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(f"{where} has the id {largest}, but the model has {vocab_size} tokens.")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length, pad_id=end, pad_token=END)
    return tokenizer


def _read(files: list[Path]) -> Any:
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    if len(files) == 1:
        return Tokenizer.from_file(str(files[0]))
    suffix = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": END}
    tokenizer = Tokenizer(BPE.from_file(*map(str, files), **suffix))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([START, END])
    return tokenizer

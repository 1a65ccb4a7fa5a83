"""The tokenizers of T5 and its relatives: SentencePiece models, and the bytes of UTF-8.

They get text as it is: case folding and normalization belong to the SentencePiece model.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from imagen_jax.storage import fingerprints
from imagen_jax.storage.folders import expand_home
from imagen_jax.storage.wrong_files import absent, refusal

PAD_ID = 0
EOS_ID = 1
NUM_SPECIAL = 3  # pad, eos and unk, before the bytes
SENTENCEPIECE_FILE = "spiece.model"


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """The tokenizer of T5, mT5 and umT5: a SentencePiece model file, read at the first use."""

    path: str


@dataclass(frozen=True)
class ByteTokenizer:
    """The tokenizer of ByT5 (arXiv 2105.13626): UTF-8 bytes after the ids of pad, eos and unk."""


Tokenizer = SentencePieceTokenizer | ByteTokenizer


def make_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a config names: "bytes", or the path of a SentencePiece model."""
    return ByteTokenizer() if name == "bytes" else SentencePieceTokenizer(str(expand_home(name)))


@functools.lru_cache(maxsize=8)
def _read(path: str, modified: int):
    # Imported here: bytes need no SentencePiece.
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(refusal(path, "a SentencePiece model", error)) from error
    if (processor.pad_id(), processor.eos_id()) != (PAD_ID, EOS_ID):
        raise ValueError(
            f"{path} has pad id {processor.pad_id()} and eos id {processor.eos_id()}; T5's "
            f"tokenizers have {PAD_ID} and {EOS_ID} (imagen-jax train_tokenizer makes such)."
        )
    return processor


def _processor(tokenizer: SentencePieceTokenizer):
    try:
        modified = os.stat(tokenizer.path).st_mtime_ns
    except OSError as error:
        raise ValueError(absent(tokenizer.path, "SentencePiece model")) from error
    return _read(tokenizer.path, modified)


def vocab_size(tokenizer: Tokenizer) -> int:
    """Number of ids that the tokenizer can give."""
    if isinstance(tokenizer, ByteTokenizer):
        return 256 + NUM_SPECIAL
    return _processor(tokenizer).GetPieceSize()


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what has no id of its own; None for bytes, which know all."""
    return None if isinstance(tokenizer, ByteTokenizer) else _processor(tokenizer).unk_id()


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt, of any length, without the end mark."""
    # Lone surrogates have no UTF-8 form; "replace" gives the question mark.
    texts = [prompt.encode("utf-8", "replace") for prompt in prompts]
    if isinstance(tokenizer, ByteTokenizer):
        return [[byte + NUM_SPECIAL for byte in text] for text in texts]
    processor = _processor(tokenizer)
    return [processor.EncodeAsIds(text.decode("utf-8")) for text in texts]


def token_spans(tokenizer: Tokenizer, prompt: str) -> list[tuple[int, int]]:
    """Where each token of `token_ids` lies in a prompt: characters [begin, end). A token of no
    character, such as the mark before the first word, begins and ends at one place.
    """
    text = prompt.encode("utf-8", "replace").decode("utf-8")  # has as many characters
    if isinstance(tokenizer, ByteTokenizer):
        return [(i, i + 1) for i, sign in enumerate(text) for _ in sign.encode("utf-8")]
    processor, spans, place = _processor(tokenizer), [], 0
    pieces = processor.EncodeAsProto(text).pieces
    for piece in pieces:
        begin = text.find(piece.surface, place)  # white space is left out at the ends
        place = begin + len(piece.surface)
        spans.append((begin, place))
    # Of a character in several bytes, the last piece has it.
    for i in reversed(range(len(pieces) - 1)):
        if processor.IsByte(pieces[i].id) and not pieces[i].surface:
            spans[i] = spans[i + 1]
    return spans


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """The kind of a tokenizer, and some digits that change with its vocabulary."""
    if isinstance(tokenizer, ByteTokenizer):
        return f"bytes, {NUM_SPECIAL} special"
    content = _processor(tokenizer).serialized_model_proto()
    return f"sentencepiece {fingerprints.of_bytes(content)}"


def copy_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Puts the tokenizer's file, if it has one, into a directory, as `SENTENCEPIECE_FILE`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        target = os.path.join(directory, SENTENCEPIECE_FILE)
        if not (os.path.exists(target) and os.path.samefile(tokenizer.path, target)):
            shutil.copyfile(tokenizer.path, target)

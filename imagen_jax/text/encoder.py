"""Prompts to TextEmbeddings: tokenizers, the text encoder, and guidance's null text.

The tokenizer gets text as it is, or prepared as `TextEncoder.caption` says; case folding and
normalization otherwise belong to the SentencePiece model.
"""

import functools
import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models import t5
from imagen_jax.storage import codec
from imagen_jax.text.captions import CAPTIONS, prepare_caption
from imagen_jax.typing import Mask, Params, TextEmbeddings, Tokens

PAD_ID = 0
EOS_ID = 1
SENTENCEPIECE_FILE = "spiece.model"
NULLS = ("zeros", "empty")
PADDINGS = ("zeros", "encoded")
OPTIONAL = ("null", "padding", "caption")  # models saved before they were fields have none


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """The tokenizer of T5, mT5 and umT5: a SentencePiece model file, read at the first use."""

    path: str


@dataclass(frozen=True)
class ByteTokenizer:
    """The tokenizer of ByT5 (arXiv 2105.13626): UTF-8 bytes after the ids of pad, eos and unk."""

    num_special: int = 3


Tokenizer = SentencePieceTokenizer | ByteTokenizer


@dataclass(frozen=True)
class TextEncoder:
    """The encoder's sizes, its tokenizer, and how the networks that read it were shown text.

    max_length: tokens a prompt may have, end mark included. null: the text of the unconditional
    model, "zeros" (arXiv 2205.11487) or "empty", the encoded empty prompt (DeepFloyd IF). padding:
    embeddings after a prompt's end, "zeros", or "encoded" for networks that read them too (IF).
    caption: a key of CAPTIONS, or None for prompts as they are.
    """

    config: t5.T5Config
    tokenizer: Tokenizer
    max_length: int = 128
    null: str = "zeros"
    padding: str = "zeros"
    caption: str | None = None

    def __post_init__(self):
        if self.max_length < 1:
            raise ValueError(f"TextEncoder.max_length is {self.max_length}; it must be at least 1.")
        choices = {"null": NULLS, "padding": PADDINGS, "caption": (*CAPTIONS, None)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"TextEncoder.{name} is {getattr(self, name)!r}; it can be "
                    f"{' or '.join(map(repr, known))}."
                )


@functools.lru_cache(maxsize=8)
def _processor(path: str, modified: int):
    # Imported here: bytes need no SentencePiece.
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    if (processor.pad_id(), processor.eos_id()) != (PAD_ID, EOS_ID):
        raise ValueError(
            f"{path} has pad id {processor.pad_id()} and eos id {processor.eos_id()}; T5's "
            f"tokenizers have {PAD_ID} and {EOS_ID} (scripts/train_tokenizer.py makes such)."
        )
    return processor


def _load(tokenizer: SentencePieceTokenizer):
    try:
        modified = os.stat(tokenizer.path).st_mtime_ns
    except OSError as error:
        raise ValueError(
            f"No SentencePiece model at {tokenizer.path}: {error.strerror}."
        ) from error
    return _processor(tokenizer.path, modified)


def vocab_size(tokenizer: Tokenizer) -> int:
    """Number of ids that the tokenizer can give."""
    if isinstance(tokenizer, ByteTokenizer):
        return 256 + tokenizer.num_special
    return _load(tokenizer).GetPieceSize()


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt, of any length, without the end mark."""
    if isinstance(tokenizer, ByteTokenizer):
        # Lone surrogates have no UTF-8 form; "replace" gives the question mark.
        return [
            [byte + tokenizer.num_special for byte in prompt.encode("utf-8", "replace")]
            for prompt in prompts
        ]
    processor = _load(tokenizer)
    return [
        processor.EncodeAsIds(prompt.encode("utf-8", "replace").decode("utf-8"))
        for prompt in prompts
    ]


def tokenize(
    encoder: TextEncoder, prompts: Sequence[str], warn: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [batch, max_length], ended by 1 and padded by 0, and their mask.

    The mask is True at tokens and end mark. A longer prompt is cut, its end mark kept, with a
    warning that names it.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the string {prompts!r}; give a list of strings.")
    limit = encoder.max_length - 1
    ids = np.full((len(prompts), encoder.max_length), PAD_ID, np.int32)
    mask = np.zeros(ids.shape, bool)
    prepared = [prepare_caption(prompt, encoder.caption) for prompt in prompts]
    for row, (prompt, tokens) in enumerate(
        zip(prompts, token_ids(encoder.tokenizer, prepared), strict=True)
    ):
        if len(tokens) > limit:
            if warn:
                shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
                warnings.warn(
                    f"The prompt {shown!r} has {len(tokens)} tokens; the first {limit} are used.",
                    stacklevel=2,
                )
            tokens = tokens[:limit]
        ids[row, : len(tokens)] = tokens
        ids[row, len(tokens)] = EOS_ID
        mask[row, : len(tokens) + 1] = True
    return ids, mask


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def encode_tokens(
    config: t5.T5Config,
    params: Params,
    ids: Tokens,
    mask: Mask,
    padding: str = "zeros",
    gather: t5.Gather | None = None,
) -> TextEmbeddings:
    """Embeddings of tokenized text, float32; `padding` as of TextEncoder, `gather` of t5.encode."""
    values = t5.encode(config, params, ids, mask, zero_padding=padding == "zeros", gather=gather)
    return TextEmbeddings(values, mask)


def encode(encoder: TextEncoder, params: Params, prompts: Sequence[str]) -> TextEmbeddings:
    """Embeddings [batch, max_length, width] of prompts."""
    ids, mask = (jnp.asarray(array) for array in tokenize(encoder, prompts))
    return encode_tokens(encoder.config, params, ids, mask, encoder.padding)


def unconditional(
    encoder: TextEncoder, params: Params, gather: t5.Gather | None = None
) -> TextEmbeddings:
    """What guidance leads away from where there is no negative prompt, as a batch of one."""
    if encoder.null == "zeros":
        return null_text(1, encoder.max_length, encoder.config.d_model)
    ids = jnp.full((1, encoder.max_length), PAD_ID, jnp.int32).at[:, 0].set(EOS_ID)
    mask = jnp.zeros(ids.shape, bool).at[:, 0].set(True)
    return encode_tokens(encoder.config, params, ids, mask, encoder.padding, gather)


def null_text(batch: int, length: int, width: int) -> TextEmbeddings:
    """The text of the unconditional model: zero embeddings (arXiv 2205.11487), one token long.

    One token stays unmasked so that attention has something to attend to.
    """
    mask = jnp.zeros((batch, length), bool).at[:, 0].set(True)
    return TextEmbeddings(jnp.zeros((batch, length, width), jnp.float32), mask)


def check_vocabulary(encoder: TextEncoder) -> None:
    """Raises ValueError if the tokenizer can give ids that the encoder has no embedding for."""
    size = vocab_size(encoder.tokenizer)
    if size > encoder.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {size} ids but T5Config.vocab_size is {encoder.config.vocab_size}; "
            f"it must be at least {size}."
        )


def same_tokenizer(first: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers are of one kind and, by their files' content, of one vocabulary."""
    both = first, other
    if not all(isinstance(tokenizer, SentencePieceTokenizer) for tokenizer in both):
        return first == other
    models = [_load(tokenizer).serialized_model_proto() for tokenizer in both]
    return models[0] == models[1]


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """The kind of a tokenizer, and some digits that change with its vocabulary."""
    if isinstance(tokenizer, ByteTokenizer):
        return f"bytes, {tokenizer.num_special} special"
    content = _load(tokenizer).serialized_model_proto()
    return f"sentencepiece {hashlib.sha256(content).hexdigest()[:16]}"


def copy_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Puts the tokenizer's file, if it has one, into a model directory, where `from_dict` looks."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        target = os.path.join(directory, SENTENCEPIECE_FILE)
        if not (os.path.exists(target) and os.path.samefile(tokenizer.path, target)):
            shutil.copyfile(tokenizer.path, target)


def to_dict(encoder: TextEncoder) -> dict[str, Any]:
    """The encoder as JSON values; the tokenizer's file is to lie beside them (`copy_tokenizer`)."""
    kind = "bytes" if isinstance(encoder.tokenizer, ByteTokenizer) else "sentencepiece"
    return codec.to_dict(encoder) | {"tokenizer": kind}


def from_dict(values: Mapping[str, Any], directory: str | os.PathLike) -> TextEncoder:
    """The inverse of `to_dict`, for a model in `directory`."""
    path = os.path.join(directory, SENTENCEPIECE_FILE)
    tokenizer = make_tokenizer(values.get("tokenizer"), path)
    return codec.from_dict(TextEncoder, {**values, "tokenizer": tokenizer}, "text_encoder")


def make_tokenizer(kind: str, path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer "bytes", or "sentencepiece" with the model file `path`."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "sentencepiece" and path is not None:
        return SentencePieceTokenizer(os.fspath(path))
    raise ValueError(
        f"The tokenizer is {kind!r} with file {path}; known are 'bytes', and 'sentencepiece' with "
        "a file."
    )

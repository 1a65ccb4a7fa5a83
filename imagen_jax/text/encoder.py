"""Prompts to TextEmbeddings: the text encoder, and guidance's null text.

The tokenizer gets text as it is, or prepared as `TextEncoder.caption` says.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from imagen_jax.devices.program_cache import kept_program
from imagen_jax.models import t5
from imagen_jax.models.bounds import check_bounds, check_choice
from imagen_jax.storage import codec
from imagen_jax.text import captions
from imagen_jax.text.tokenizers import (
    EOS_ID,
    PAD_ID,
    SENTENCEPIECE_FILE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    token_ids,
    unknown_id,
    vocab_size,
)
from imagen_jax.typing import Gather, Mask, Params, TextEmbeddings, Tokens

Null = Literal["zeros", "empty"]
Padding = Literal["zeros", "encoded"]


@dataclass(frozen=True)
class TextEncoder:
    """The encoder's sizes, its tokenizer, and how the networks that read it were shown text.

    max_length: tokens a prompt may have, end mark included. null: the text of the unconditional
    model, "zeros" (arXiv 2205.11487) or "empty", the encoded empty prompt (DeepFloyd IF). padding:
    embeddings after a prompt's end, "zeros", or "encoded" for networks that read them too (IF).
    caption: how a prompt is prepared (`captions.prepare_caption`), None for as it is.
    """

    config: t5.T5Config
    tokenizer: Tokenizer
    max_length: int = 128
    null: Null = "zeros"
    padding: Padding = "zeros"
    caption: captions.Kind | None = None

    def __post_init__(self):
        check_bounds(self)
        check_choice("TextEncoder.null", self.null, get_args(Null))
        check_choice("TextEncoder.padding", self.padding, get_args(Padding))
        check_choice("TextEncoder.caption", self.caption, (None, *get_args(captions.Kind)))


class ShortenedWarning(UserWarning):
    """Prompts are not used whole."""


@dataclass
class Shortened:
    """How many prompts were not used whole, for one message about all of them.

    limit: tokens of a prompt that are used, the end mark left out. cut: of how many the rest was
    left out, and the first of them with its tokens. emptied: of how many cleaning left nothing, and
    the first of them. unknown: how many have characters that the tokenizer does not know, and the
    first of them.
    """

    limit: int
    seen: int = 0
    cut: int = 0
    first_cut: tuple[str, int] = ("", 0)
    emptied: int = 0
    first_emptied: str = ""
    unknown: int = 0
    first_unknown: str = ""

    def add(
        self, prompt: str, prepared: str, tokens: Sequence[int], unknown_id: int | None
    ) -> None:
        """Counts a prompt by its tokens."""
        self.seen += 1
        if len(tokens) > self.limit:
            self.first_cut = self.first_cut if self.cut else (prompt, len(tokens))
            self.cut += 1
        if unknown_id in tokens:
            self.first_unknown = self.first_unknown if self.unknown else prompt
            self.unknown += 1
        if prompt.strip() and not prepared:
            self.first_emptied = self.first_emptied if self.emptied else prompt
            self.emptied += 1

    def __str__(self) -> str:
        """A sentence for each way in which prompts were shortened; "" where none was."""
        prompt, tokens = self.first_cut
        said = {
            f"Cut to {self.limit} tokens": (self.cut, f"{_shown(prompt)} of {tokens}"),
            "Nothing is left after cleaning": (self.emptied, _shown(self.first_emptied)),
            "Has characters that the text encoder does not know": (
                self.unknown,
                _shown(self.first_unknown),
            ),
        }
        return " ".join(
            f"{what}: {count} of {self.seen} prompts ({count / self.seen:.1%}), the first {first}."
            for what, (count, first) in said.items()
            if count
        )


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else prompt[:77] + "...")


def tokenize(
    encoder: TextEncoder, prompts: Sequence[str], shortened: Shortened | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [batch, max_length], ended by 1 and padded by 0, and their mask.

    The mask is True at tokens and end mark. A longer prompt is cut, its end mark kept. Such are
    counted in `shortened`; without it, there is one warning about all prompts.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the string {prompts!r}; give a list of strings.")
    limit = encoder.max_length - 1
    counted = Shortened(limit) if shortened is None else shortened
    ids = np.full((len(prompts), encoder.max_length), PAD_ID, np.int32)
    mask = np.zeros(ids.shape, bool)
    prepared = [captions.prepare_caption(prompt, encoder.caption) for prompt in prompts]
    unknown = unknown_id(encoder.tokenizer)
    each = zip(prompts, prepared, token_ids(encoder.tokenizer, prepared), strict=True)
    for row, (prompt, text, tokens) in enumerate(each):
        counted.add(prompt, text, tokens, unknown)
        kept = [*tokens[:limit], EOS_ID]
        ids[row, : len(kept)] = kept
        mask[row, : len(kept)] = True
    if shortened is None and str(counted):
        warnings.warn(str(counted), ShortenedWarning, stacklevel=2)
    return ids, mask


@kept_program(static_argnums=(0, 4, 5), results=(TextEmbeddings,))
def encode_tokens(
    config: t5.T5Config,
    params: Params,
    ids: Tokens,
    mask: Mask,
    padding: str = "zeros",
    gather: Gather | None = None,
) -> TextEmbeddings:
    """Embeddings of tokenized text, float32; `padding` as of TextEncoder, `gather` of t5.encode."""
    values = t5.encode(config, params, ids, mask, zero_padding=padding == "zeros", gather=gather)
    return TextEmbeddings(values, mask)


def encode(encoder: TextEncoder, params: Params, prompts: Sequence[str]) -> TextEmbeddings:
    """Embeddings [batch, max_length, width] of prompts."""
    ids, mask = (jnp.asarray(array) for array in tokenize(encoder, prompts))
    return encode_tokens(encoder.config, params, ids, mask, encoder.padding)


def unconditional(
    encoder: TextEncoder, params: Params, gather: Gather | None = None
) -> TextEmbeddings:
    """What guidance leads away from where there is no negative prompt, as a batch of one."""
    null = null_text(1, encoder.max_length, encoder.config.d_model)
    if encoder.null == "zeros":
        return null
    ids = np.where(null.mask, EOS_ID, PAD_ID).astype(np.int32)
    return encode_tokens(encoder.config, params, ids, null.mask, encoder.padding, gather)


def null_text(batch: int, length: int, width: int) -> TextEmbeddings:
    """The text of the unconditional model: zero embeddings (arXiv 2205.11487), one token long.

    One token stays unmasked so that attention has something to attend to.
    """
    mask = np.zeros((batch, length), bool)
    mask[:, 0] = True
    return TextEmbeddings(np.zeros((batch, length, width), np.float32), mask)


def check_vocabulary(encoder: TextEncoder) -> None:
    """Raises ValueError if the tokenizer can give ids that the encoder has no embedding for."""
    size = vocab_size(encoder.tokenizer)
    if size > encoder.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {size} ids but T5Config.vocab_size is {encoder.config.vocab_size}; "
            f"it must be at least {size}."
        )


def to_dict(encoder: TextEncoder) -> dict[str, Any]:
    """The encoder as JSON values; the tokenizer's file is to lie beside them (`copy_tokenizer`)."""
    kind = "bytes" if isinstance(encoder.tokenizer, ByteTokenizer) else "sentencepiece"
    return codec.to_dict(encoder) | {"tokenizer": kind}


def from_dict(values: Mapping[str, Any], directory: str | os.PathLike) -> TextEncoder:
    """The inverse of `to_dict`, for a model in `directory`."""
    path = os.path.join(directory, SENTENCEPIECE_FILE)
    tokenizers = {"bytes": ByteTokenizer(), "sentencepiece": SentencePieceTokenizer(path)}
    kind = values.get("tokenizer")
    if kind not in tokenizers:
        hint = codec.nearest(str(kind), tokenizers)
        raise ValueError(f"'text_encoder.tokenizer' is {kind!r}{hint}")
    return codec.from_dict(TextEncoder, {**values, "tokenizer": tokenizers[kind]}, "text_encoder")

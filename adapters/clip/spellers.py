"""The tokenizers of open_clip, asked for what places need: the pieces of a text and the characters of each.

Two kinds are known. CLIP's own byte pairs (`SimpleTokenizer`, or what has its attributes) print their
pieces, which are found in the cleaned text one after the other. Fast tokenizers of Hugging Face, alone
or inside open_clip's wrappers, say their offsets themselves. What the model gets is always what the
tokenizer itself returns when it is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.errors import InputError

from ..spans import Span, from_offsets, from_pieces
from .spelling import spans_in

# In this order: RoBERTa's <s> is both its first token and its class token.
_ROLES = {
    "cls_token_id": "cls",
    "sep_token_id": "sep",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
    "pad_token_id": "pad",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """A whole text in pieces, without those that are added around it.

    Parameters
    ----------
    ids
        One a piece.
    spans
        Its characters in the text as the user wrote it; None for a piece of none.

    """

    ids: tuple[int, ...]
    spans: tuple[Span | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Speller:
    """A tokenizer, as places need it.

    Parameters
    ----------
    ids
        The rows `[text, token]` that the model gets for texts, at a length.
    pieces
        A text in pieces.
    named
        How the tokenizer prints a piece.
    role
        What a token that it adds is; empty for a piece of a text.

    """

    ids: Callable[[Sequence[str], int], Int[Tensor, "text token"]]
    pieces: Callable[[str], Pieces]
    named: Callable[[int], str]
    role: Callable[[int], str]


def is_tokenizer(given: Any) -> bool:
    """Whether something is a tokenizer rather than a transform of pictures."""
    return _is_byte_pairs(given) or _is_fast(given) or _is_fast(getattr(given, "tokenizer", None))


def speller_of(tokenizer: Any) -> Speller:
    """Return how a tokenizer spells.

    Raises
    ------
    InputError
        It does not say which characters its pieces stand for.

    """
    if _is_byte_pairs(tokenizer):
        return _byte_pairs(tokenizer)
    if _is_fast(getattr(tokenizer, "tokenizer", None)):
        return _wrapped(tokenizer)
    if _is_fast(tokenizer):
        return _fast(tokenizer)
    raise InputError(
        f"The tokenizer {getattr(tokenizer, '__name__', type(tokenizer).__name__)} does not say which characters its "
        "pieces stand for. Those of open_clip.get_tokenizer and fast ones of transformers do. Pass one of them, in "
        "processor=(transform, tokenizer)."
    )


def _is_byte_pairs(given: Any) -> bool:
    return callable(given) and all(hasattr(given, name) for name in ("encode", "decoder", "clean_fn", "eot_token_id"))


def _is_fast(given: Any) -> bool:
    return bool(getattr(given, "is_fast", False)) and hasattr(given, "convert_ids_to_tokens")


def _byte_pairs(tokenizer: Any) -> Speller:
    special = {int(tokenizer.sot_token_id): "bos", int(tokenizer.eot_token_id): "eos"}

    def pieces(text: str) -> Pieces:
        ids = tuple(tokenizer.encode(text))
        cleaned = tokenizer.clean_fn(text)
        found = from_pieces(cleaned, [tokenizer.decoder[one] for one in ids], style="byte_level")
        return Pieces(ids=ids, spans=tuple(spans_in(text, cleaned, found)))

    return Speller(
        ids=lambda texts, length: tokenizer(list(texts), context_length=length),
        pieces=pieces,
        named=lambda one: str(tokenizer.decoder.get(one, one)),
        role=lambda one: special.get(one, "pad" if one == 0 else ""),
    )


def _wrapped(tokenizer: Any) -> Speller:
    """Return that of a fast tokenizer inside one of open_clip's, which cleans before it."""
    clean = getattr(tokenizer, "clean_fn", None)
    if clean is None:  # SigLipTokenizer cleans in its call
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn("canonicalize")
    inner = tokenizer.tokenizer
    stripped = bool(getattr(tokenizer, "strip_sep_token", False))
    return Speller(
        ids=lambda texts, length: tokenizer(list(texts), context_length=length),
        pieces=lambda text: _by_offsets(inner, text, clean(text)),
        named=lambda one: str(inner.convert_ids_to_tokens(one)),
        role=lambda one: "pad" if stripped and one == 0 else _role(inner, one),
    )


def _fast(tokenizer: Any) -> Speller:
    def ids(texts: Sequence[str], length: int) -> Tensor:
        found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        rows: Tensor = found["input_ids"].to(torch.long)
        return rows

    return Speller(
        ids=ids,
        pieces=lambda text: _by_offsets(tokenizer, text, text),
        named=lambda one: str(tokenizer.convert_ids_to_tokens(one)),
        role=lambda one: _role(tokenizer, one),
    )


def _by_offsets(tokenizer: Any, text: str, cleaned: str) -> Pieces:
    found = tokenizer(cleaned, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    offsets = from_offsets(cleaned, [(int(start), int(end)) for start, end in found["offset_mapping"]])
    # SentencePiece's mark of a new word, alone, is given the letter that follows.
    spans = [None if name == "\u2581" else span for name, span in zip(names, offsets, strict=True)]
    return Pieces(ids=tuple(found["input_ids"]), spans=tuple(spans_in(text, cleaned, spans)))


def _role(tokenizer: Any, one: int) -> str:
    named = next((role for name, role in _ROLES.items() if getattr(tokenizer, name, None) == one), "")
    return named or ("special" if one in tokenizer.all_special_ids else "")  # NLLB begins with the language

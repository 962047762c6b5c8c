"""Rows of tokens that a processor made of a text and a picture: which of the user's words each token stands for.

Processors of decoders write more than the user did: placeholders for the picture, marks around it,
a beginning, sometimes a prompt. The row is taken as it is, and the pieces of the user's own text are
looked up in it, in their order; what else is there was added and stands for no word.

    row      <image> <image> <s>  what  is  this  </s>
    parts    image   image   text ...             text      Joined: `text` and `image`
"""

import warnings
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined, Part
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens, split_words

from ..spans import Span, from_offsets, from_pieces
from .transformers_text import canonical, role_of


def row_axis(
    text: str | None,
    ids: Int[Tensor, " token"],
    *,
    real: Bool[Tensor, " token"],
    tokenizer: Any,
) -> Tokens | Positions:
    """Return the axis of a row of tokens; of Positions where the text or the tokenizer is not known.

    Parameters
    ----------
    text
        As the user wrote it.
    ids, real
        The row, and which of it is no padding.
    tokenizer
        The one that made it.

    Warns
    -----
    UserWarning
        The row ends before the text does: the words that the model does not see are named.

    Raises
    ------
    InputError
        The row does not hold the text.
    """
    if text is None or tokenizer is None:
        return Positions(roles=tuple("content" if seen else "pad" for seen in real.tolist()))
    row, there = [int(token) for token in ids.tolist()], [bool(seen) for seen in real.tolist()]
    special = special_ids(tokenizer)
    own, spans = _pieces_of(text, tokenizer, special=special)
    pieces = tokenizer.convert_ids_to_tokens(row)
    open_places = [n for n, token in enumerate(row) if there[n] and token not in special]
    found = _looked_up([_bare(pieces[n]) for n in open_places], [_bare(piece) for piece in own])
    _check_all_found(text, found, spans, tokenizer=tokenizer)
    span_at: dict[int, Span | None] = {open_places[at]: spans[number] for number, at in found.items()}
    roles = [
        "pad" if not seen else "content" if n in span_at else role_of(token, tokenizer)
        for n, (token, seen) in enumerate(zip(row, there, strict=True))
    ]
    return Tokens.of(text, pieces=pieces, spans=[span_at.get(n) for n in range(len(row))], roles=roles)


def joined_row(
    text: str | None,
    ids: Int[Tensor, " token"],
    *,
    real: Bool[Tensor, " token"],
    tokenizer: Any,
    image: Part,
    at: Sequence[int] | Int[np.ndarray, " _"],
) -> Joined:
    """Return the axis of a row in which some tokens are the picture's: the parts `text` and `image`.

    Parameters
    ----------
    image
        What the picture's tokens are.
    at
        Where they stand in the row, in the order of `image`.

    Raises
    ------
    InputError
        As many tokens of the picture as `image` has are not there, or the text is not.
    """
    return joined_parts(text, ids, real=real, tokenizer=tokenizer, images={"image": image}, at=at)


def joined_parts(
    text: str | None,
    ids: Int[Tensor, " token"],
    *,
    real: Bool[Tensor, " token"],
    tokenizer: Any,
    images: Mapping[str, Part],
    at: Sequence[int] | Int[np.ndarray, " _"],
) -> Joined:
    """Return the axis of a row in which some tokens are those of several parts of the picture, by name.

    Parameters
    ----------
    images
        What these tokens are, one part behind the other.
    at
        Where they stand in the row, in that order.

    Raises
    ------
    InputError
        As many tokens of the picture as the parts have are not there, or the text is not.
    """
    where = np.asarray(at, dtype=np.int64)
    ends = np.cumsum([len(part) for part in images.values()])
    if len(where) != ends[-1]:
        raise InputError(
            f"The text has {len(where)} tokens for the picture, and the model makes {ends[-1]} of it. The processor "
            "writes as many as the model makes. Pass the processor that was saved with the model."
        )
    rest = np.setdiff1d(np.arange(len(ids)), where)
    words = row_axis(text, ids[rest.tolist()], real=real[rest.tolist()], tokenizer=tokenizer)
    return Joined.of({"text": words, **images}, tokens=[rest, *np.split(where, ends[:-1])], length=len(ids))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that stand for no piece of a text: beginnings, ends, padding, marks of a picture."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {int(n) for n, token in added.items() if token.special}


def words_alone(axes: Sequence[Axis]) -> Bool[Tensor, "sample token"]:
    """Return which tokens of each row are pieces of the user's words: none of the picture's, none that was added."""
    return torch.tensor([_of_words(axis).tolist() for axis in axes])


def _of_words(axis: Axis) -> Bool[np.ndarray, " token"]:
    own = np.array([role in ("content", "continuation", "blank") for role in axis.roles])
    if isinstance(axis, Joined):
        _, at = axis.part("text")
        own &= np.isin(np.arange(len(axis)), at)
    return own


def _pieces_of(text: str, tokenizer: Any, *, special: frozenset[int]) -> tuple[list[str], list[Span | None]]:
    """Return the pieces of the text by itself, as printed, and their characters; marks of pictures left out."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans: list[Span | None] = list(from_offsets(text, [tuple(pair) for pair in encoded["offset_mapping"]]))
        ids = encoded["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(ids)
    elif hasattr(tokenizer, "sp_model"):
        pieces = tokenizer.tokenize(text)
        ids = tokenizer.convert_tokens_to_ids(pieces)
        spans = from_pieces(text, pieces, style="sentencepiece", fold=canonical(tokenizer))
    else:
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} does not say which characters its pieces stand for. "
            "A tokenizer of the tokenizers library does, and of a SentencePiece one they are found. "
            "Pass a processor with one of those."
        )
    kept = [n for n, token in enumerate(ids) if token not in special]
    return [pieces[n] for n in kept], [spans[n] for n in kept]


def _bare(piece: str) -> str:
    """Return a piece without the mark of a space before it, which depends on what was written before."""
    return piece.lstrip("\u2581\u0120") or piece


def _looked_up(row: list[str], own: list[str]) -> dict[int, int]:
    """Return for each piece of the text where it stands in the row; the longest runs count."""
    blocks = SequenceMatcher(None, own, row, autojunk=False).get_matching_blocks()
    return {block.a + n: block.b + n for block in blocks for n in range(block.size)}


def _check_all_found(text: str, found: dict[int, int], spans: Sequence[Span | None], *, tokenizer: Any) -> None:
    missing = [number for number in range(len(spans)) if number not in found]
    if not missing:
        return
    if missing != list(range(missing[0], len(spans))) or missing[0] == 0:
        raise InputError(
            f"The processor's row does not hold the text {text[:60]!r} as its tokenizer {type(tokenizer).__name__} "
            "cuts it. It would hold its pieces in their order. Pass the text as the model's processor expects it."
        )
    seen = max((span[1] for span in spans[: missing[0]] if span is not None), default=0)
    cut = [text[start:end] for start, end in split_words(text) if end > seen]
    more = f" and {len(cut) - 8} more" if len(cut) > 8 else ""
    warnings.warn(
        f"The text is cut by the processor: the model does not see {', '.join(cut[:8])}{more}. A text that fits is "
        "read whole. Shorten it, or attend its parts one by one.",
        stacklevel=2,
    )

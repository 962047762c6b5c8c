"""The texts of an open_clip model: what its text tower gets, and the axis of each text.

A row is what the tokenizer adds before the text, its pieces, and what it adds behind: an end, padding
up to the length of the context, and CoCa's class token, which the tower itself appends. Nothing is
assumed of that: the pieces of the whole text are looked up in the row, and as many as stand there are
what the model reads. What does not is cut, and said.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.media import Words
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens, split_words

from .literals import refuse_literals
from .spellers import Pieces, Speller, speller_of
from .unknown import warn_of_unknown

#: Pieces of CLIP's own byte pairs, with which a vocabulary of this size comes.
CLIP_VOCABULARY = 49408


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Texts as the model gets them.

    Parameters
    ----------
    ids
        What the text tower is called with.
    axes
        One a text, with the class token that the tower appends, if it does.
    phrase
        What was done, for captions.

    """

    ids: Int[Tensor, "text token"]
    axes: tuple[Axis, ...]
    phrase: str


def tokenized(words: Sequence[Words], *, model: nn.Module, tokenizer: Any) -> Texts:
    """Return texts as the tokenizer cuts them for the model.

    Warns
    -----
    UserWarning
        A text is longer than the context, or has words that the tokenizer does not know; they are named.

    Raises
    ------
    InputError
        The tokenizer is of another vocabulary, gives rows of another length, or does not say its pieces; a text
        spells one of its signs.

    """
    tokenizer_used = tokenizer if tokenizer is not None else own_tokenizer(model)
    speller = speller_of(tokenizer_used)
    ids = speller.ids([one.text for one in words], _length(model, tokenizer))
    _check_fits(ids, model)
    axes = tuple(_axis(one.text, ids[n].tolist(), speller, model) for n, one in enumerate(words))
    refuse_literals(axes, ids)
    warn_of_unknown(axes, ids, tokenizer=tokenizer_used)
    return Texts(ids=ids.to(_device(model)), axes=axes, phrase=f"text as {ids.shape[1]} tokens")


def given_ids(ids: Any, *, model: nn.Module) -> Texts:
    """Return the user's own rows of tokens, of which no characters are known.

    Raises
    ------
    InputError
        They are no rows of whole numbers, or do not fit the model.

    """
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
        found = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"The text in inputs= is {found}. It would be whole numbers [text, token], as a tokenizer of open_clip "
            "gives them. Pass those, or text=."
        )
    _check_fits(ids, model)
    axis = Positions(roles=("content",) * ids.shape[1] + ("cls",) * _appends(model))
    return Texts(ids=ids.to(_device(model)), axes=(axis,) * len(ids), phrase=f"{ids.shape[1]} tokens, prepared")


def own_tokenizer(model: nn.Module) -> Any:
    """Return the tokenizer that a model was made for, where the model itself says so.

    Raises
    ------
    InputError
        It does not: its vocabulary is not CLIP's, or its tokenizer is not on this machine.

    """
    text = text_tower(model)
    if not isinstance(text, HFTextEncoder):
        size = _vocabulary(model)
        if size == CLIP_VOCABULARY:
            return _byte_pairs(_length(model, None))
        raise InputError(
            f"This model has a vocabulary of {size} pieces and does not say of which tokenizer; CLIP's own has "
            f"{CLIP_VOCABULARY}. A text needs the tokenizer that the model was trained with. Pass "
            "processor=open_clip.get_tokenizer(NAME), or (transform, tokenizer); a folder that is opened by name "
            "holds it as tokenizer.json."
        )
    name = str(getattr(text.config, "_name_or_path", "") or "")
    try:
        if name:
            return HFTokenizer(name, local_files_only=True)
    except (OSError, ValueError):
        pass
    raise InputError(
        f"The tokenizer of the text tower ({text.config.model_type}{f', {name}' if name else ''}) is not on this "
        "machine. A text needs the tokenizer that the model was trained with. Pass "
        "processor=open_clip.get_tokenizer(NAME), or (transform, tokenizer)."
    )


@cache
def _byte_pairs(context_length: int) -> SimpleTokenizer:
    """Return CLIP's own tokenizer, made once: it reads its merges for a tenth of a second."""
    return SimpleTokenizer(context_length=context_length)


def text_tower(model: nn.Module) -> Any:
    """Return the module that has the text tower's settings: the model itself in OpenAI's form."""
    return getattr(model, "text", model)


def readout_of(model: nn.Module) -> str:
    """Return the role of the token that the text's features are read from, `mean`, or empty where it has none."""
    text = text_tower(model)
    if isinstance(text, HFTextEncoder):
        kind = type(text.pooler).__name__
        return "cls" if kind.startswith("Cls") else "mean" if kind == "MeanPooler" else ""
    if _appends(model):
        return "cls"
    pool = str(getattr(text, "pool_type", getattr(text, "text_pool_type", "")))
    return {"argmax": "eos", "eos": "eos", "first": "bos"}.get(pool, "")


def _length(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens a row has: as many as the tower takes, or the tokenizer's own number."""
    text = text_tower(model)
    if not isinstance(text, HFTextEncoder):
        return int(text.context_length)
    most = int(text.context_length or DEFAULT_CONTEXT_LENGTH)
    return min(int(getattr(tokenizer, "context_length", None) or DEFAULT_CONTEXT_LENGTH), most)


def _vocabulary(model: nn.Module) -> int:
    text = text_tower(model)
    if isinstance(text, HFTextEncoder):
        embeddings: Any = text.transformer.get_input_embeddings()
        return int(embeddings.num_embeddings)
    return int(text.token_embedding.num_embeddings)


def _appends(model: nn.Module) -> bool:
    return getattr(text_tower(model), "cls_emb", None) is not None


def _device(model: nn.Module) -> torch.device:
    device: torch.device = next(text_tower(model).parameters()).device
    return device


def _check_fits(ids: Int[Tensor, "text token"], model: nn.Module) -> None:
    size, most = _vocabulary(model), int(ids.max())
    if most >= size or int(ids.min()) < 0:
        raise InputError(
            f"The text has piece {most}, and the model's vocabulary ends at {size - 1}: the tokenizer is another "
            "model's. Pass the one that this model was trained with, in processor=(transform, tokenizer)."
        )
    text = text_tower(model)
    long = int(text.context_length or ids.shape[1])  # mT5 has no longest row
    whole = not isinstance(text, HFTextEncoder) and not _appends(model)
    if ids.shape[1] > long or (whole and ids.shape[1] != long):
        raise InputError(
            f"A text has {ids.shape[1]} tokens, padding included, and this model takes rows of {long}. "
            f"Pass a tokenizer with context_length={long}, in processor=(transform, tokenizer)."
        )


def _axis(text: str, row: list[int], speller: Speller, model: nn.Module) -> Tokens:
    pieces = speller.pieces(text)
    start, count = _found(row, pieces, speller)
    if not count:
        raise InputError(
            f"Nothing of the text {text[:40]!r} is left in what the tokenizer gives the model, or it changes the "
            "order. Places need its pieces as they are written. Pass another text or another tokenizer."
        )
    if count < len(pieces.ids):
        _warn_of_cut(text, pieces, count=count, most=len(row))
    behind = [speller.role(one) or "special" for one in row[start + count :]]
    behind = [role if "eos" not in behind[:n] or role != "eos" else "pad" for n, role in enumerate(behind)]
    roles = [speller.role(one) or "special" for one in row[:start]] + ["content"] * count + behind
    spans = [None] * start + list(pieces.spans[:count]) + [None] * len(behind)
    names = [speller.named(one) if role != "pad" else "" for one, role in zip(row, roles, strict=True)]
    if _appends(model):
        roles, spans, names = [*roles, "cls"], [*spans, None], [*names, "[CLS]"]
    return Tokens.of(text, pieces=names, spans=spans, roles=roles)


def _found(row: list[int], pieces: Pieces, speller: Speller) -> tuple[int, int]:
    """Return where the pieces begin in a row, and how many of them are there before something that is none."""
    best = (0, 0)
    for start in range(min(3, len(row))):
        count = 0
        while count < min(len(pieces.ids), len(row) - start) and row[start + count] == pieces.ids[count]:
            count += 1
        added = all(speller.role(one) for one in [*row[:start], *row[start + count :]])
        best = max(best, (start, count), key=lambda one: one[1]) if added else best
    return best


def _warn_of_cut(text: str, pieces: Pieces, *, count: int, most: int) -> None:
    seen = max((span[1] for span in pieces.spans[:count] if span), default=0)
    cut = [text[start:end] for start, end in split_words(text) if end > seen]
    more = f" and {len(cut) - 8} more" if len(cut) > 8 else ""
    warnings.warn(
        f"The text has {len(pieces.ids)} pieces and the model reads {count} of them in {most} tokens: it does not see "
        f"{', '.join(cut[:8])}{more}. Shorten the text, or attend its parts one by one.",
        stacklevel=2,
    )

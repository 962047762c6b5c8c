"""Who asks: a class token, a patch at (x, y), a box, a token, the mean; turned into weights over an axis.

A question is a row of numbers over the query axis: 1 at one token, or shares over several. It
carries the phrase that captions use, so that a default is never silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mmattn.errors import InputError, NotFoundError
from mmattn.schema.axes import Axis, Joined, PatchGrid, Place, Slots, Tokens
from mmattn.schema.joined import WRITTEN

# "cls" or another role, "mean", a token, (x, y), a box (x0, y0, x1, y1)
Query: TypeAlias = str | int | Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which tokens ask, in equal shares.

    Parameters
    ----------
    tokens
        Tokens of the query axis; their rows are averaged.
    label
        The phrase for captions.
    """

    tokens: tuple[int, ...]
    label: str


def ask(axis: Axis, query: Query, *, readout: str = "") -> Question:
    """Return who asks on an axis.

    Parameters
    ----------
    axis
        The query axis.
    query
        `"cls"` or another role of a special token; `"mean"` over all content; a part of a sequence that
        several inputs share (`"text"`, `"image"`); a word of its text, as typed; a token number; a
        point (x, y) or box (x0, y0, x1, y1) in pixels of the original picture; None for the
        default: what the model reads its answer from (`readout`), else a class token, else the last token of a
        sequence that several inputs share, else the mean.

    Raises
    ------
    NotFoundError
        When the axis has no such role or token.
    PlaceError
        When the model never saw that point.
    InputError
        When the query is none of these.

    Examples
    --------
    >>> from mmattn.schema.axes import Slots
    >>> ask(Slots.count(1), None).label
    'attention pool'
    """
    if query is None:
        return _default(axis, readout)
    if isinstance(query, str):
        return _role(axis, query)
    if isinstance(query, bool):
        raise InputError(f"A query cannot be {query}. {_FORMS}")
    if isinstance(query, int | np.integer):
        token = int(query)
        if not -len(axis) <= token < len(axis):
            raise NotFoundError(
                f"There is no token {token}: the query axis has {len(axis)} tokens, 0 to {len(axis) - 1}. "
                "Pass a token in that range."
            )
        token %= len(axis)
        return Question(tokens=(token,), label=f"token {token}{_where(axis, token)}")
    try:
        numbers = [float(v) for v in query]
    except (TypeError, ValueError):
        raise InputError(f"The query {query!r} is not understood. {_FORMS}") from None
    return _place(axis, numbers)


_POOL = "attention pool"
_FORMS = (
    'Pass "cls", "mean", a word, a token number, a point (x, y) or a box (x0, y0, x1, y1) in pixels of the picture.'
)


def _default(axis: Axis, readout: str) -> Question:
    roles = axis.special()
    if readout in roles:
        return _role(axis, readout)
    if isinstance(axis, Slots) and "cls" not in roles:  # CoCa's pool names the query that makes the picture's feature
        tokens, pool = tuple(range(len(axis))), readout == "pool" or len(axis) == 1
        few = f"mean of {len(axis)} slots"
        return Question(tokens=tokens, label=few if not pool else _POOL + (f" ({few})" if len(axis) > 1 else ""))
    if readout == "pool" and "mean" in roles:  # a pool whose query is the mean of its keys, as CLIP's ResNets have it
        return Question(tokens=tuple(roles["mean"]), label=_POOL)
    if isinstance(axis, Tokens) and not readout and "cls" not in roles and "eos" in roles:  # CLIP's texts end in it
        return _role(axis, "eos")
    if "cls" in roles and (readout != "mean" or not len(axis.content)):
        return _role(axis, "cls")
    if isinstance(axis, Joined) and not readout:  # a decoder's answer comes from the token that has read everything
        last = max(token for token, role in enumerate(axis.roles) if role != "pad")
        return Question(tokens=(last,), label=f"last token{_where(axis, last)}")
    reason = ", which the model reads its answer from" if readout == "mean" else ""
    if not reason:
        reason = "" if "cls" in roles else " (no class token)"
    question = _role(axis, "mean")
    return Question(tokens=question.tokens, label=question.label + reason)


def _role(axis: Axis, role: str) -> Question:
    roles = axis.special()
    there = ", ".join(f'"{name}"' for name in roles) or "none"
    if role == "mean":
        content = tuple(int(t) for t in axis.content)
        if not content:
            raise NotFoundError(
                f"No patch asks here: the query axis has special tokens alone ({there}). The mean is over patches. "
                f"Pass one of those, or another layer."
            )
        noun = "patches" if isinstance(axis, PatchGrid) else "tokens"
        return Question(tokens=content, label=f"mean over {len(content)} {noun}")
    if role not in roles:
        named = _part(axis, role) or _word(axis, role)
        if named is not None:
            return named
        raise NotFoundError(f'There is no "{role}" token on this axis. Special tokens there are: {there}. {_FORMS}')
    tokens = tuple(roles[role])
    names = {"cls": "class token", "register": "register tokens", "distillation": "distillation token"}
    label = names.get(role, f"{role} token")
    return Question(tokens=tokens, label=label if len(tokens) == 1 else f"mean of {len(tokens)} {role} tokens")


def _part(axis: Axis, name: str) -> Question | None:
    """Return the content of a part of a sequence, asking alike."""
    if not isinstance(axis, Joined) or name not in axis.names:
        return None
    part, where = axis.part(name)
    tokens = tuple(where[part.content].tolist())
    return Question(tokens=tokens, label=f"mean over {len(tokens)} tokens of {name}") if tokens else None


def _word(axis: Axis, word: str) -> Question | None:
    """Return the tokens of a word of a text; of a word that the model wrote, those that wrote it."""
    texts = [(axis, np.arange(len(axis)), "")] if isinstance(axis, Tokens) else []
    if isinstance(axis, Joined):
        parts = zip(axis.parts, axis.tokens, axis.names, strict=True)
        texts = [(part, where, name) for part, where, name in parts if isinstance(part, Tokens)]
    for text, where, name in texts:
        try:
            tokens = where[text.tokens_of_word(word)]
        except NotFoundError:
            continue
        wrote = name == WRITTEN
        asking = tuple(int(token) - wrote for token in tokens)
        return Question(tokens=asking, label=f"‘{word}’" + (", as it was written" if wrote else ""))
    return None


def marked(question: Question, asked: Axis, shown: Axis) -> tuple[tuple[int, ...], tuple[Place, ...]]:
    """Return what a picture marks as asking: tokens of the axis that is shown, or places where it is another axis.

    A class token has no place, and a mean over everything marks nothing.
    """
    if len(question.tokens) >= max(1, len(asked.content)):
        return (), ()
    tokens = tuple(t for t in question.tokens if asked.roles[t] == "content")
    if asked == shown:
        return tokens, ()
    return (), tuple(asked.place(t) for t in tokens) if type(asked) is type(shown) else ()


def _place(axis: Axis, numbers: list[float]) -> Question:
    if isinstance(axis, PatchGrid) and not len(axis.content):
        there = ", ".join(f'"{name}"' for name in axis.special())
        raise NotFoundError(
            f"No patch asks in this layer: its queries are special tokens alone ({there}). A place needs a layer in "
            "which patches ask. Pass one of those, or another layer."
        )
    if isinstance(axis, Joined) and len(numbers) in (2, 4):
        part, where = axis.part(axis.only(PatchGrid))
        inner = _place(part, numbers)
        return Question(tokens=tuple(where[list(inner.tokens)].tolist()), label=inner.label)
    if not isinstance(axis, PatchGrid) or len(numbers) not in (2, 4) or not np.isfinite(numbers).all():
        raise InputError(f"The query {tuple(numbers)} is not a place on {axis!r}. {_FORMS}")
    if len(numbers) == 2:
        token = axis.token_at((numbers[0], numbers[1]))
        return Question(tokens=(token,), label=f"patch at ({numbers[0]:g}, {numbers[1]:g}) px")
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise InputError(
            f"The box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty. A box has x0 < x1 and y0 < y1, in pixels. {_FORMS}"
        )
    tokens = tuple(int(t) for t in axis.tokens_in((x0, y0, x1, y1)))
    count = "1 patch" if len(tokens) == 1 else f"mean of {len(tokens)} patches"
    return Question(tokens=tokens, label=f"{count} in the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) px")


def _where(axis: Axis, token: int) -> str:
    role = axis.roles[token]
    if role != "content":
        return f" ({role})"
    if isinstance(axis, PatchGrid):
        x0, y0, x1, y1 = axis.place(token)
        return f" (patch at ({(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f}) px)"
    return ""

"""What a model of transformers writes behind its input, greedily, and the axis of the words that it wrote.

    input      <image> ... what is this           prompt and what was written become one sequence
    written                              a cat    Joined: the input's own parts, and `answer`

`generate` runs as its user runs it, with its cache; one token more is asked for and left out, so that each written
token was read by the model as well and has a row of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.joined import WRITTEN, Joined
from mmattn.schema.sets import Positions, Slots
from mmattn.schema.tokens import Tokens

from .spans import Span

_BROKEN = "\ufffd"  # what a decoder prints for half a character

_ROLES = {"pad_token_id": "pad", "eos_token_id": "eos", "bos_token_id": "bos", "sep_token_id": "sep"}


def written_by(
    model: nn.Module, inputs: Mapping[str, Any], *, count: int, begun: Int[Tensor, "sample first"] | None = None
) -> Int[Tensor, "sample token"]:
    """Return up to `count` tokens that a model writes behind `input_ids`, greedily; none of them is its last word.

    Parameters
    ----------
    inputs
        What it is called with.
    begun
        Of a decoder beside an encoder: what it begins with.

    Raises
    ------
    InputError
        No number of tokens, or several prompts that end in padding.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"generate={count!r} is no number of tokens. It is a whole number from 1. Pass such a number.")
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if begun is None and isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
        raise InputError(
            "The texts are of different lengths, and the shorter ones end in padding: a model would go on behind it. "
            "Padding stands before a text that is gone on with. Pass them one by one, or a processor whose tokenizer "
            'has padding_side="left".'
        )
    runs: Any = model
    plain = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():
        found: Tensor = runs.generate(**inputs, max_new_tokens=count + 1, **plain)
    before = ids if begun is None else begun
    count_before = before.shape[1]
    there = found.shape[1] > count_before and torch.equal(found[:, :count_before].to(before), before)
    return found[:, count_before if there else 0 :][:, :-1]  # some classes leave the prompt out


def continued_inputs(
    inputs: Mapping[str, Any], written: Int[Tensor, "sample token"], *, kinds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return what a model is called with, with written tokens behind the text.

    Parameters
    ----------
    kinds
        Of tensors that say of each token what it is (`token_type_ids`), what a written one is; by default 0.

    Examples
    --------
    >>> given = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2).long()}
    >>> {name: value.tolist() for name, value in continued_inputs(given, torch.tensor([[7]])).items()}
    {'input_ids': [[5, 6, 7]], 'attention_mask': [[1, 1, 1]]}
    """
    ids = inputs["input_ids"]
    values = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0, **(kinds or {})}
    more = {
        name: torch.cat([given, torch.full_like(written, values[name], dtype=given.dtype)], dim=1)
        for name, given in inputs.items()
        if name in values and isinstance(given, Tensor) and given.shape == ids.shape
    }
    return {**inputs, "input_ids": torch.cat([ids, written.to(ids)], dim=1), **more}


def followed(axes: Sequence[Axis], written: Int[Tensor, "sample token"], *, tokenizer: Any) -> tuple[Joined, ...]:
    """Return the axis of each input with the written tokens behind it, as the part `answer`.

    Parameters
    ----------
    axes
        One a sample.
    tokenizer
        That reads tokens; None: their numbers are known alone.
    """
    return tuple(_followed(axis, ids, tokenizer=tokenizer) for axis, ids in zip(axes, written, strict=True))


def _followed(axis: Axis, ids: Int[Tensor, " token"], *, tokenizer: Any) -> Joined:
    answer = answer_axis(ids, tokenizer=tokenizer)
    behind = np.arange(len(axis), len(axis) + len(ids))
    if not isinstance(axis, Joined):
        name = "slots" if isinstance(axis, Slots) else "text" if len(axis.content) else "begin"
        return Joined.of({name: axis, WRITTEN: answer}, tokens=[np.arange(len(axis)), behind])
    parts = {**dict(zip(axis.names, axis.parts, strict=True)), WRITTEN: answer}
    rest = {token: role for token, role in enumerate(axis.roles) if axis.part_of(token) is None}
    return Joined.of(parts, tokens=[*axis.tokens, behind], length=len(axis) + len(ids), rest=rest)


def answer_axis(ids: Int[Tensor, " token"], *, tokenizer: Any) -> Tokens | Positions:
    """Return the axis of tokens that a model wrote, over the text that they spell.

    A character that several tokens make together (an emoji in bytes) is the first one's; see `mmattn.schema.tokens`.
    """
    row = [int(token) for token in ids.tolist()]
    if tokenizer is None:
        return Positions.count(len(row))
    special = frozenset(tokenizer.all_special_ids)
    spoken = [token for token in row if token not in special]
    text = _spelled(spoken, tokenizer)
    spans = iter(_spans(spoken, text, tokenizer))
    return Tokens.of(
        text,
        pieces=tokenizer.convert_ids_to_tokens(row),
        spans=[None if token in special else next(spans) for token in row],
        roles=["content" if token not in special else _role(token, tokenizer) for token in row],
    )


def _spans(row: Sequence[int], text: str, tokenizer: Any) -> list[Span | None]:
    """Return the characters that each token added to the text; those of half a character have all of it."""
    found: list[Span | None] = []
    done, waiting = 0, 0
    for number in range(1, len(row) + 1):
        upto = len(_common(_spelled(row[:number], tokenizer).rstrip(_BROKEN), text))
        if number == len(row):
            upto = len(text)
        if upto <= done:
            waiting += 1
            continue
        found += [(done, done + 1)] * waiting
        found.append(_without_space(text, done, upto) if not waiting else (done, upto))
        done, waiting = upto, 0
    return [*found, *[None] * waiting]


def _common(one: str, text: str) -> str:
    """Return what both begin with."""
    for number, (left, right) in enumerate(zip(one, text, strict=False)):
        if left != right:
            return one[:number]
    return one[: len(text)]


def _without_space(text: str, start: int, end: int) -> Span:
    kept = text[start:end].strip()
    begin = start + text[start:end].find(kept)
    return (begin, begin + len(kept)) if kept else (start, end)


def _spelled(row: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _role(token: int, tokenizer: Any) -> str:
    named = (role for attribute, role in _ROLES.items() if getattr(tokenizer, attribute, None) == token)
    return next(named, "special")

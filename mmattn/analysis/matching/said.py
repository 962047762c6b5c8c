"""The texts of a match, some at a time: what a text tower makes of them, whatever their number, in bounded memory."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.interaction import pushed_by
from mmattn.analysis.matching.towers import Tower, look
from mmattn.interception.protocol import TwoTowers
from mmattn.schema.axes import Axis, Tokens
from mmattn.schema.tokens import Word

if TYPE_CHECKING:
    from mmattn.analysis.matching.match import Pair

Given = TypeVar("Given")

# Texts that run with their attention kept, and words that only give a feature.
_TEXTS, _WORDS = 16, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What the text tower made of all texts.

    Parameters
    ----------
    features
        `[text, feature]`, of length one.
    axes
        Their tokens, one axis a text.
    preprocessing
        For captions.
    pushed
        For interactions: how each token of each text moves its feature; empty where that was not asked for.
    """

    features: Float[Tensor, "text feature"]
    axes: tuple[Axis, ...]
    preprocessing: str
    pushed: tuple[Float[Tensor, "_ feature"], ...] = ()


def said(pair: "Pair", *, steps: int | None) -> Said:
    """Return what the text tower makes of the texts of a pair.

    Parameters
    ----------
    steps
        Points of the path of `interaction`; None: no derivatives are taken.
    """
    if ("said", steps) not in pair.kept:
        pair.kept["said", steps] = _said(pair, steps)
    found: Said = pair.kept["said", steps]
    return found


def _said(pair: "Pair", steps: int | None) -> Said:
    features: list[Tensor] = []
    axes: list[Axis] = []
    phrases: dict[str, int] = {}
    pushed: list[Tensor] = []
    for tower in _some_at_a_time(pair):
        features.append(tower.features)
        axes += tower.axes
        phrases.setdefault(tower.prepared.preprocessing, len(tower.axes[0]))
        if steps is not None:
            pushed += _pushed(pair, tower, steps)
    return Said(
        features=torch.cat(features),
        axes=tuple(axes),
        preprocessing=max(phrases, key=lambda phrase: phrases[phrase]),  # of the longest
        pushed=tuple(pushed),
    )


def words_alone(pair: "Pair", words: Sequence[str]) -> Float[Tensor, "word feature"]:
    """Return the feature of each word as a prompt of its own."""
    if "words" in pair.kept:
        kept: Tensor = pair.kept["words"]
        return kept
    towers = pair.adapter
    assert isinstance(towers, TwoTowers)
    with torch.no_grad():
        parts = [
            towers.text_features(pair.model, pair.prepared(text=list(some)), brief=True)
            for some in _parts(words, _WORDS)
        ]
    pair.kept["words"] = found = torch.cat(parts)
    return found


def words_of(axis: Axis) -> list[Word]:
    """Return the words of a text that say something alone: punctuation does not."""
    assert isinstance(axis, Tokens)
    return [word for word in axis.words() if re.search(r"\w", word.text)]


def _parts(listed: Sequence[Given], count: int) -> Iterator[Sequence[Given]]:
    return (listed[start : start + count] for start in range(0, len(listed), count))


def _some_at_a_time(pair: "Pair") -> Iterator[Tower]:
    for some in _parts(pair.texts, _TEXTS):
        yield look(pair.adapter, pair.model, pair.prepared(text=list(some)), stream="text")


def _pushed(pair: "Pair", text: Tower, steps: int) -> list[Float[Tensor, "_ feature"]]:
    towers = pair.adapter
    assert isinstance(towers, TwoTowers)

    def blank() -> Tensor:
        return towers.text_features(pair.model, text.prepared, blank=True, brief=True)

    return list(pushed_by(pair.model, text=text, blank=blank, steps=steps))

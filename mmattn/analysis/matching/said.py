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
from mmattn.interception.protocol import Prepared, TwoTowers
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
    for some in _parts(pair.texts, _TEXTS):
        prepared = pair.prepared(text=list(some))
        if steps is None:  # nothing is read in the tower itself
            features.append(_features(pair, prepared))
            axes += _towers(pair).text_axes(prepared)
        else:
            tower = look(pair.adapter, pair.model, prepared, stream="text")
            features.append(tower.features)
            axes += tower.axes
            pushed += _pushed(pair, tower, steps)
        phrases.setdefault(prepared.preprocessing, len(axes[-1]))
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
    parts = [_features(pair, pair.prepared(text=list(some))) for some in _parts(words, _WORDS)]
    pair.kept["words"] = found = torch.cat(parts)
    return found


def words_of(axis: Axis) -> list[Word]:
    """Return the words of a text that say something alone: punctuation does not."""
    assert isinstance(axis, Tokens)
    return [word for word in axis.words() if re.search(r"\w", word.text)]


def _parts(listed: Sequence[Given], count: int) -> Iterator[Sequence[Given]]:
    return (listed[start : start + count] for start in range(0, len(listed), count))


def _features(pair: "Pair", prepared: Prepared) -> Float[Tensor, "text feature"]:
    with torch.no_grad():
        return _towers(pair).text_features(pair.model, prepared, brief=True)


def _towers(pair: "Pair") -> TwoTowers:
    assert isinstance(pair.adapter, TwoTowers)
    return pair.adapter


def _pushed(pair: "Pair", text: Tower, steps: int) -> list[Float[Tensor, "_ feature"]]:
    def blank() -> Tensor:
        return _towers(pair).text_features(pair.model, text.prepared, blank=True, brief=True)

    return list(pushed_by(pair.model, text=text, blank=blank, steps=steps))

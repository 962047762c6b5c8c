"""Which words and patches are linked, and how strongly: the numbers of a drawing of lines.

Strength runs from zero to the strongest weight of any word, so that lines of several drawings compare. A row
in which no patch stands out has no strongest patch: its lines have no strength, whatever the scale.
Of signed rows the strongest patch is the one that speaks most for a word; what speaks against it is for a closer look.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mmattn.render import color
from mmattn.render.marks import Scale
from mmattn.render.worded import WordRows


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """One line to be drawn: from a word to a patch (its column among the content), and how strong."""

    word: int
    patch: int
    value: float
    strength: float


def of_words(rows: WordRows, words: Sequence[int], *, k: int, against: bool) -> tuple[list[Link], Scale]:
    """Return the k strongest patches of each word above zero, and the scale; with `against` of a signed row by size."""
    scale = color.choose(rows.patches.ravel(), how="max", signed=signed(rows))
    found: list[Link] = []
    for word in words:
        values = rows.patches[word]
        clear = not flat(values)
        found += [
            Link(word=word, patch=i, value=float(values[i]), strength=_strength(values[i], scale) if clear else 0.0)
            for i in _order(values, k, signed=against and signed(rows))
        ]
    return found, scale


def of_place(rows: WordRows, asked: Int[np.ndarray, " patch"], *, k: int) -> tuple[list[Link], Scale]:
    """Return the k words for which some patches weigh most together (`patch` is -1), and the scale."""
    values = rows.patches[:, asked].sum(axis=1)
    scale = color.choose(values, how="max", signed=signed(rows))
    clear = not flat(values)
    found = [
        Link(word=i, patch=-1, value=float(values[i]), strength=_strength(values[i], scale) if clear else 0.0)
        for i in _order(values, k, signed=signed(rows))
    ]
    return found, scale


def _order(values: Float[np.ndarray, " value"], k: int, *, signed: bool) -> list[int]:
    sizes = np.abs(values) if signed else values
    return [i for i in np.argsort(-sizes, kind="stable")[:k].tolist() if sizes[i] > 0]


def signed(rows: WordRows) -> bool:
    """Say whether weights speak for and against."""
    return rows.relevance.unit == "signed relevance"


def flat(values: Float[np.ndarray, " patch"]) -> bool:
    """Say that nothing stands out: the values span less than their own mean."""
    return bool(len(values) > 1 and values.max() - values.min() < np.abs(values).mean())


def _strength(value: float, scale: Scale) -> float:
    reach = max(abs(scale.vmax), abs(scale.vmin))
    return float(min(abs(value) / reach, 1.0))

"""A text set in lines: where each word stands, from left to right or from right to left. Geometry only.

A paragraph runs the way of its first strong letter; inside a line, words that run the other way keep
their own order (the Unicode bidirectional algorithm, on whole words). Lines break at blanks, and anywhere
between the characters of scripts that write none, but not before a closing sign.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from mmattn.render import fonts
from mmattn.schema.tokens import Span

_BLANK, _GLUED = 0.34, 0.1  # between words with and without a blank, in type sizes
_MEASURED_PX = 64  # at which words are measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Paragraph:
    """Words set in lines, in type sizes.

    Parameters
    ----------
    spans
        The characters of each piece; a piece is a word or what stands between words.
    x0, x1, line
        Left and right side of each piece and the line in which it stands.
    width, lines
        Of the whole.
    """

    spans: tuple[Span, ...]
    x0: Float[np.ndarray, " piece"]
    x1: Float[np.ndarray, " piece"]
    line: Float[np.ndarray, " piece"]
    width: float
    lines: int


def typeset(text: str, words: Sequence[Span], *, most_wide: float) -> Paragraph:
    """Return a text in lines of at most `most_wide` type sizes; `words` are kept whole.

    What no font here can draw gets the room of the number that stands for it.

    Examples
    --------
    >>> typeset("a dog", [(0, 1), (2, 5)], most_wide=40.0).lines
    1
    """
    spans = _pieces(text, words)
    numbers = {span: index for index, span in enumerate(words)}
    wide = np.array([shown_width(text[slice(*span)], by_number(numbers.get(span))) for span in spans])
    gaps = np.array([_BLANK if b > a else _GLUED for a, b in _between(spans)])
    breaks = np.array(["\n" in text[a:b] for a, b in _between(spans)])
    stays = np.array([gap == _GLUED and _closing(text[s]) for gap, (s, _) in zip(gaps, spans, strict=True)])
    rows = _filled(wide, gaps, breaks, stays, most_wide)
    x0 = np.zeros(len(spans))
    line = np.zeros(len(spans))
    number = {piece: row for row, pieces in enumerate(rows) for piece in pieces}
    extent = max(float(wide[row].sum() + gaps[row[1:]].sum()) for row in rows)
    for row in _paragraphs(rows, breaks):
        ways = [_direction(text[slice(*spans[piece])]) for pieces in row for piece in pieces]
        leftward = next((way for way in ways if way), "L") == "R"
        ways = settled(ways, leftward=leftward)  # over the whole paragraph, whatever its lines
        for pieces in row:
            shown = visual(ways[pieces[0] - row[0][0] :][: len(pieces)], leftward=leftward)
            length = float(wide[pieces].sum() + gaps[pieces[1:]].sum())
            x = extent - length if leftward else 0.0
            for at, index in enumerate(shown):
                piece = pieces[index]
                if at:  # the blank between two pieces that are neighbors on the page
                    x += gaps[max(piece, pieces[shown[at - 1]])]
                x0[piece], line[piece] = x, number[piece]
                x += wide[piece]
    return Paragraph(spans=tuple(spans), x0=x0, x1=x0 + wide, line=line, width=extent, lines=len(rows))


def by_number(index: int | None) -> str:
    """Return what stands for a word that no font here can draw."""
    return "[]" if index is None else f"[{index}]"


def shown_width(text: str, instead: str) -> float:
    """Return the width in type sizes of a text, or of what stands for it where no font here can draw it.

    Examples
    --------
    >>> shown_width("dog", "[0]") == shown_width("dog", "[1000]") > 1.0
    True
    """
    text = fonts.clean(text)
    if fonts.drawable(text):
        return fonts.width(text, size_px=_MEASURED_PX) / _MEASURED_PX
    return max(fonts.width(instead, size_px=_MEASURED_PX) / _MEASURED_PX, float(len(text)))


def settled(directions: Sequence[str], *, leftward: bool) -> list[str]:
    """Return directions in which a word without one has that of its neighbors, or the paragraph's where they differ.

    Examples
    --------
    >>> settled(["L", "R", "", "R", ""], leftward=False)
    ['L', 'R', 'R', 'R', 'L']
    """
    base = "R" if leftward else "L"
    found = list(directions)
    for index, direction in enumerate(directions):
        if not direction:
            before = next((d for d in reversed(directions[:index]) if d), base)
            after = next((d for d in directions[index + 1 :] if d), base)
            found[index] = before if before == after else base
    return found


def visual(directions: Sequence[str], *, leftward: bool) -> list[int]:
    """Return the order from left to right of the words of one line.

    Examples
    --------
    >>> visual(["L", "R", "R", "L"], leftward=False), visual(["R", "L", "L", "R"], leftward=True)
    ([0, 2, 1, 3], [3, 1, 2, 0])
    """
    runs: list[list[int]] = []
    for index, direction in enumerate(directions):
        if runs and directions[runs[-1][-1]] == direction:
            runs[-1].append(index)
        else:
            runs.append([index])
    ordered = [run[::-1] if directions[run[0]] == "R" else run for run in runs]
    return [index for run in (ordered[::-1] if leftward else ordered) for index in run]


def _pieces(text: str, words: Sequence[Span]) -> list[Span]:
    """Return words, and what is written between them without its blanks, along the text."""
    found: list[Span] = []
    at = 0
    for start, end in [*sorted(words), (len(text), len(text))]:
        inside = at
        for chunk in text[at : max(start, at)].split():
            inside = text.index(chunk, inside)
            found.append((inside, inside + len(chunk)))
            inside += len(chunk)
        if end > start:
            found.append((start, end))
        at = max(at, end)
    return found


def _between(spans: Sequence[Span]) -> list[Span]:
    return [(spans[0][0], spans[0][0]), *((a, b) for (_, a), (b, _) in pairwise(spans))]


def _filled(
    wide: Float[np.ndarray, " piece"],
    gaps: Float[np.ndarray, " piece"],
    breaks: Bool[np.ndarray, " piece"],
    stays: Bool[np.ndarray, " piece"],
    most: float,
) -> list[list[int]]:
    rows: list[list[int]] = [[0]]
    x = float(wide[0])
    for piece in range(1, len(wide)):
        over = x + gaps[piece] + wide[piece] > most
        if breaks[piece] or (over and not stays[piece]):
            rows.append([piece])
            x = float(wide[piece])
        else:
            rows[-1].append(piece)
            x += float(gaps[piece] + wide[piece])
    return rows


def _paragraphs(rows: Sequence[list[int]], breaks: Bool[np.ndarray, " piece"]) -> list[list[list[int]]]:
    found: list[list[list[int]]] = []
    for row in rows:
        if not found or breaks[row[0]]:
            found.append([])
        found[-1].append(row)
    return found


def _direction(text: str) -> str:
    """Return L or R by the first letter with a direction; numbers and signs have none."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("R", "AL"):
            return "R"
        if kind == "L":
            return "L"
    return ""


def _closing(character: str) -> bool:
    return unicodedata.category(character) in ("Pe", "Pf", "Po") or character in "-–—"

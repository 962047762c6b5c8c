"""Which characters of a text those of its cleaned form are.

A tokenizer cleans before it cuts: it folds case and spaces, mends broken letters, straightens quotes,
undoes `&amp;`, drops punctuation. Its pieces are pieces of that, and places are those of the text as the
user wrote it:

    text       T h e _ _ c a f é &amp;
    cleaned    t h e _ c a f é &

Both are walked side by side without their spaces as long as they agree; what is left is compared.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

from ..spans import Span

# Beyond that much after the first difference nothing is compared: it takes quadratic time, and no context is as long.
_LONGEST = 4000

_Letters = list[tuple[str, int]]


def origins(text: str, cleaned: str) -> list[Span | None]:
    """Return for each character of `cleaned` the characters of `text` that it stands for; None for none.

    Examples
    --------
    >>> origins("A’b &amp; C", "a'b & c")
    [(0, 1), (1, 2), (2, 3), None, (4, 5), None, (10, 11)]

    """
    theirs, ours = _letters(text), _letters(cleaned)
    found: list[Span | None] = [None] * len(cleaned)
    same = 0
    while same < min(len(theirs), len(ours)) and theirs[same][0] == ours[same][0]:
        _widen(found, ours[same][1], theirs[same : same + 1])
        same += 1
    theirs, ours = theirs[same : same + _LONGEST], ours[same : same + _LONGEST]
    matcher = SequenceMatcher(None, [letter for letter, _ in theirs], [letter for letter, _ in ours], autojunk=False)
    for kind, i0, i1, j0, j1 in matcher.get_opcodes():
        for j in range(j0, j1):
            _widen(found, ours[j][1], theirs[i0 + j - j0 :][:1] if kind == "equal" else theirs[i0:i1])
    return found


def spans_in(text: str, cleaned: str, spans: Sequence[Span | None]) -> list[Span | None]:
    """Return spans of the cleaned text as spans of the text itself; None where they stand for nothing in it.

    Examples
    --------
    >>> spans_in("The  CAT", "the cat", [(0, 3), (4, 7), None])
    [(0, 3), (5, 8), None]

    """
    known = origins(text, cleaned)
    return [None if span is None else _joined([one for one in known[slice(*span)] if one]) for span in spans]


def _letters(text: str) -> _Letters:
    """Return what is written, in lower case and without spaces, and the character that each letter is of."""
    return [(letter, index) for index, char in enumerate(text) for letter in char.lower() if not letter.isspace()]


def _widen(found: list[Span | None], index: int, letters: _Letters) -> None:
    before = found[index]
    ends = [(char, char + 1) for _, char in letters] + ([] if before is None else [before])
    found[index] = _joined(ends)


def _joined(spans: Sequence[Span]) -> Span | None:
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None

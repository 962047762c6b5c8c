"""Where words stand beside a picture, and the curves between both: geometry only, in pixels of the picture.

Words stand in one column to the right, one below the other in reading order, and every curve leaves its
word toward the picture: so no curve can run over a word, however many there are. A long text begins in a
second column to the left. A column that needs more height than the picture has grows over both its ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmattn.render import fonts
from mmattn.render.marks import Box
from mmattn.render.paragraph import by_number, shown_width

_MEASURED_PX = 64  # at which words are measured
_POINTS = 40  # of a curve
_PAD = 0.45  # of the type size, left and right of a word
_TALL, _LINE = 1.45, 1.72  # height of a word's box and of a line, in type sizes
_SPREAD = 3.4  # most height of a line
_LONGEST = 15.0  # type sizes; longer words are cut
_GUTTER, _EDGE = 5.5, 0.3  # type sizes: between picture and words, and beyond these
_TALLEST = 1.5  # height of one column, in that of the picture; a longer one is divided


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """Words beside a picture: in one column, or in two.

    Parameters
    ----------
    texts
        As they are drawn, too long ones cut.
    boxes
        x0, y0, x1, y1 of each word.
    left_count
        How many of them, from the first, stand to the left of the picture.
    type_px
        Size of the type.
    space
        What picture and column need together.
    """

    texts: tuple[str, ...]
    boxes: Float[np.ndarray, "word 4"]
    type_px: float
    space: Box
    left_count: int = 0

    @property
    def anchors(self) -> Float[np.ndarray, "word 2"]:
        """Where each word's curves begin: the middle of its side toward the picture."""
        leftward = np.arange(len(self.boxes)) < self.left_count
        return np.stack([np.where(leftward, self.boxes[:, 2], self.boxes[:, 0]), self._middles], axis=1)

    @property
    def starts(self) -> Float[np.ndarray, "word 2"]:
        """Where each word's letters begin, at the middle of their height."""
        return np.stack([self.boxes[:, 0] + _PAD * self.type_px, self._middles], axis=1)

    @property
    def _middles(self) -> Float[np.ndarray, " word"]:
        return np.asarray(self.boxes[:, 1::2].mean(axis=1))


def beside(size_px: tuple[int, int], texts: Sequence[str]) -> Column:
    """Return the places of some words beside a picture.

    The type is a thirtieth of the picture's size, so that it can still be read at 640 px.

    Examples
    --------
    >>> column = beside((640, 480), ["a", "dog"])
    >>> bool(column.boxes[0, 0] == column.boxes[1, 0] > 640), column.space[3]
    (True, 480.0)
    """
    width, height = size_px
    most = max(0.034 * (width * height) ** 0.5, 0.028 * width)
    count = len(texts)
    left_count = -(-count // 2) if 0.85 * most * _LINE * count > _TALLEST * height else 0
    tallest = max(left_count, count - left_count)
    size = float(np.clip(height / tallest / _LINE, 0.85 * most, most))
    pitch = float(np.clip(height / tallest, _LINE * size, _SPREAD * size))
    cut = tuple(_cut(text) for text in texts)
    wide = np.array([shown_width(text, by_number(index)) for index, text in enumerate(cut)]) * size + 2 * _PAD * size
    x0 = np.full(count, width + _GUTTER * size)
    x0[:left_count] = -_GUTTER * size - wide[:left_count]
    middle = np.concatenate([_middles(n, height=height, pitch=pitch) for n in (left_count, count - left_count)])
    half = _TALL / 2 * size
    boxes = np.stack([x0, middle - half, x0 + wide, middle + half], axis=1)
    # Whole pixels, so that at its own size the picture is drawn as it is.
    over = float(math.ceil(max(0.0, tallest * pitch / 2 - height / 2)))
    left = float(math.floor(x0.min() - _EDGE * size)) if left_count else 0.0
    right = float(math.ceil(boxes[:, 2].max() + _EDGE * size))
    space = (left, -over, right, height + over)
    return Column(texts=cut, boxes=boxes, type_px=size, space=space, left_count=left_count)


def _middles(count: int, *, height: float, pitch: float) -> Float[np.ndarray, " word"]:
    return np.asarray(height / 2 + (np.arange(count) - (count - 1) / 2) * pitch)


def curves(starts: Float[np.ndarray, "line 2"], ends: Float[np.ndarray, "line 2"]) -> Float[np.ndarray, "line point 2"]:
    """Return a curve for each pair of points, level at both ends (cubic; x never turns back).

    Examples
    --------
    >>> curves(np.array([[10.0, 0.0]]), np.array([[0.0, 8.0]]))[0, [0, -1]].tolist()
    [[10.0, 0.0], [0.0, 8.0]]
    """
    t = np.linspace(0.0, 1.0, _POINTS)[None, :, None]
    middle = (starts[:, 0] + ends[:, 0]) / 2
    first = np.stack([middle, starts[:, 1]], axis=1)[:, None]
    second = np.stack([middle, ends[:, 1]], axis=1)[:, None]
    bent = 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second
    drawn: np.ndarray = (1 - t) ** 3 * starts[:, None] + bent + t**3 * ends[:, None]
    return drawn


def _cut(text: str) -> str:
    if not fonts.drawable(text):
        return text[: round(_LONGEST)]
    lines = fonts.wrap(text, size_px=_MEASURED_PX, width_px=_LONGEST * _MEASURED_PX, most=1)
    return lines[0] if lines else text

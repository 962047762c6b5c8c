"""The axis whose tokens are regions of a picture that a detector chose: boxes, one a token.

Unlike patches, regions overlap and leave gaps. So a point may lie in several: it belongs to the
smallest of them, and `token_at(center of place(i))` is i, or a smaller region that lies within it there.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.places import AxisBase

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Regions(AxisBase):
    """Tokens that are boxes in a picture.

    Parameters
    ----------
    boxes
        `[token, 4]`: x0, y0, x1, y1 in pixels of the user's original picture; NaN for special tokens.
    size_px
        Width and height of that picture.

    Examples
    --------
    >>> axis = Regions.of(np.array([[0.0, 0, 80, 60], [10, 10, 30, 30]]), size_px=(80, 60))
    >>> axis.place(1), axis.token_at((20.0, 20.0)), axis.token_at((50.0, 20.0))
    ((10.0, 10.0, 30.0, 30.0), 1, 0)
    """

    noun: ClassVar[str] = "the picture"
    point_size: ClassVar[int] = 2

    boxes: Float[np.ndarray, "token 4"]
    size_px: tuple[int, int]

    def __post_init__(self) -> None:
        placed = self.boxes[self.content]
        if len(self.boxes) != len(self.roles) or not bool((placed[:, 2:] > placed[:, :2]).all()):
            raise InputError(
                f"{len(self.boxes)} boxes for {len(self.roles)} regions, or one without an extent. Each region has a "
                "box x0, y0, x1, y1 with x0 < x1 and y0 < y1. Check the detector's boxes and their order."
            )

    @classmethod
    def of(cls, boxes: Float[np.ndarray, "token 4"], *, size_px: tuple[int, int]) -> "Regions":
        """Return an axis of these boxes, all of them content."""
        return cls(roles=("content",) * len(boxes), boxes=np.asarray(boxes, dtype=np.float64), size_px=size_px)

    @cached_property
    def _smallest_first(self) -> Int[np.ndarray, " content"]:
        wide, high = (self.boxes[self.content][:, 2:] - self.boxes[self.content][:, :2]).T
        return self.content[np.argsort(wide * high, kind="stable")]

    def places(self) -> Float[np.ndarray, "content 4"]:
        """Return the boxes of all content tokens, in the order of `content`."""
        return np.asarray(self.boxes[self.content])

    def place(self, token: SupportsIndex) -> Box:
        """Return the box (x0, y0, x1, y1) of a region in pixels of the original picture."""
        x0, y0, x1, y1 = self.boxes[self._content_token(token)].tolist()
        return (x0, y0, x1, y1)

    def token_at(self, point: tuple[float, float]) -> int:
        """Return the smallest region that holds (x, y); a box ends before its right and lower side."""
        x, y = point
        for token in self._smallest_first.tolist():
            x0, y0, x1, y1 = self.boxes[token].tolist()
            if x0 <= x < x1 and y0 <= y < y1:
                return int(token)
        raise PlaceError(
            f"No region of {self.noun} holds the point ({x:g}, {y:g}): {len(self.content)} regions were detected. "
            "A place lies in one of them. Pass a point or box inside a region, or a region's number."
        )

    def tokens_in(self, place: Box) -> Int[np.ndarray, " found"]:
        """Return the regions whose center lies in a box (x0, y0, x1, y1); if none does, those that overlap it."""
        x0, y0, x1, y1 = place
        left, top, right, bottom = self.places().T
        across, down = (left + right) / 2, (top + bottom) / 2
        inside = (across >= x0) & (across < x1) & (down >= y0) & (down < y1)
        if not inside.any():
            inside = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
        if not inside.any():
            raise PlaceError(
                f"No region of {self.noun} lies in the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) px. A detector chose the "
                "regions. Pass a box over one of them."
            )
        return np.sort(self.content[inside])

    def __repr__(self) -> str:
        return self._one_line(f"{len(self.content)} on {self.size_px[0]} x {self.size_px[1]} px")

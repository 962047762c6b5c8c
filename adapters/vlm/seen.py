"""How a picture lies in the sequence: views for the tower, and what each placeholder in the prompt stands for.

View     a picture as the tower sees it: rows x cols patches, and where they lie in the original
Seen     views, parts (grids in the original picture) and slots: for every placeholder, in order,
         which token of which part it is, or what it is instead (`newline`: it has no pixels)

All grids are in pixels of the original picture, through whatever a processor did to it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mmattn.schema.grids import PatchGrid

from ..pixels import Geometry

#: One placeholder: a part's name and its token there, or the role of a slot without pixels.
Slot = tuple[str, int] | str


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One picture as the tower gets it.

    Parameters
    ----------
    name
        `image` for the whole picture, `tile 1`, ... for its tiles.
    geometry
        How the original came to the view's pixels.
    rows, cols, patch_px
        The patches of the tower.
    order
        Which patch, row by row, stands where in the tower's sequence; None: row by row.
    """

    name: str
    geometry: Geometry
    rows: int
    cols: int
    patch_px: int
    order: Int[np.ndarray, " patch"] | None = None

    def patches(self, *, special: int) -> PatchGrid:
        """Return the axis of the tower's own tokens, `special` ones first."""
        px = (float(self.patch_px), float(self.patch_px))
        roles = ("cls",) * special
        return grid_of(self.geometry, shape=(self.rows, self.cols), patch_px=px, order=self.order, special=roles)

    def merged(self, *, by: int = 1, special: tuple[str, ...] = ()) -> PatchGrid:
        """Return the axis of `by` x `by` patches as one token each, row by row."""
        shape, px = (self.rows // by, self.cols // by), (float(self.patch_px * by), float(self.patch_px * by))
        return grid_of(self.geometry, shape=shape, patch_px=px, special=special)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What became of one picture.

    Parameters
    ----------
    views
        In the order in which the tower gets them.
    parts
        What its tokens in the prompt are, by name: `image`, and `tiles` where it was cut.
    slots
        Of each placeholder in the prompt, in order.
    note
        What captions say of places that are not quite exact; empty for most.
    """

    views: tuple[View, ...]
    parts: dict[str, PatchGrid]
    slots: tuple[Slot, ...]
    note: str = ""


def grid_of(
    geometry: Geometry,
    *,
    shape: tuple[int, int],
    patch_px: tuple[float, float],
    origin_px: tuple[float, float] = (0.0, 0.0),
    order: Int[np.ndarray, " patch"] | None = None,
    special: tuple[str, ...] = (),
) -> PatchGrid:
    """Return a grid of (rows, cols) that begins at `origin_px` of what a geometry leads to."""
    to_input = geometry.to_input.copy()
    to_input[:, 2] += to_input[:, :2] @ np.array(origin_px)
    count = shape[0] * shape[1]
    cells = np.concatenate([np.full(len(special), -1), np.arange(count) if order is None else order])
    return PatchGrid(
        rows=shape[0],
        cols=shape[1],
        patch_px=patch_px,
        size_px=geometry.size_px,
        to_input=to_input,
        cells=cells.astype(np.int64),
        roles=(*special, *("content",) * count),
    )


def whole(view: View, *, merge: int = 1, special: tuple[str, ...] = ()) -> Seen:
    """Return what became of a picture that is one view and whose tokens stand row by row."""
    part = view.merged(by=merge, special=special)
    return Seen(views=(view,), parts={"image": part}, slots=tuple(("image", n) for n in range(len(part))))

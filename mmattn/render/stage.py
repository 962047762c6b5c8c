"""The picture that lines are drawn on: muted, a little darker, with its grid and what the model did not see of it."""

import numpy as np

from mmattn.errors import InputError
from mmattn.render.image import FRAME_COLOR, cells_to_input, unseen
from mmattn.render.marks import Boxes, Fills, Heat, Mark, Raster, Strokes, Unseen
from mmattn.schema.grids import PatchGrid
from mmattn.schema.media import Photo

_LIGHT = 0.82  # of the photograph, so that light lines stand out
_FINE = 40  # patches a side, from which the grid is only hinted at


def staged(photo: Photo | None, *, saturation: float) -> Photo | None:
    """Return the photograph with less color and a little less light, in one blend with itself in gray."""
    if not 0.0 <= saturation <= 1.0:
        raise InputError(f"saturation={saturation} is out of range. It is a share from 0 (gray) to 1 (as it is).")
    if photo is None:
        return None
    import cv2

    gray = cv2.cvtColor(cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    pixels = cv2.addWeighted(photo.pixels, _LIGHT * saturation, gray, _LIGHT * (1.0 - saturation), 0.0, dst=gray)
    return Photo(pixels=np.asarray(pixels, np.uint8), name=photo.name)


def ground(grid: PatchGrid, photo: Photo | None, *, heat: Heat | None = None) -> list[Mark]:
    """Return the picture, with heat over it if given, what the model did not see of it, and the grid."""
    width, height = grid.size_px
    box = (0.0, 0.0, float(width), float(height))
    gray = Fills(boxes=np.array([box]), colors=np.array([[112, 112, 118]], np.uint8), name="no picture")
    marks: list[Mark] = [gray if photo is None else Raster(pixels=photo.pixels, box=box)]
    marks += [] if heat is None else [heat]
    dark = unseen(grid)
    if len(dark):
        marks += [
            Unseen(boxes=dark),
            Boxes(boxes=np.array([grid.seen_box()]), width_px=1.0, color=FRAME_COLOR, name="seen"),
        ]
    return [*marks, _grid_lines(grid)]


def _grid_lines(grid: PatchGrid) -> Strokes:
    rows, cols = grid.rows, grid.cols
    down = [((col, 0.0), (col, rows)) for col in range(1, cols)]
    across = [((0.0, row), (cols, row)) for row in range(1, rows)]
    affine = cells_to_input(grid)
    paths = np.array([*down, *across], dtype=np.float64).reshape(-1, 2, 2) @ affine[:, :2].T + affine[:, 2]
    paths = np.clip(paths, 0.0, np.array(grid.size_px, dtype=np.float64))
    strong = 0.125 if max(rows, cols) > _FINE else 0.25
    count = len(paths)
    return Strokes(
        paths=paths,
        widths_px=np.full(count, 0.7),
        opacities=np.full(count, strong),
        colors=np.full((count, 3), 255, np.uint8),
        halo=False,
        name="grid",
    )

"""Where attention could reach: the window's border, and the rest of the picture in the dark.

A weak place inside a window and a place outside it would look the same, and mean something else: the
model looked away from the one and could not look at the other. A shifted window that wraps around the
picture is several parts, each with its border.
"""

import numpy as np
from jaxtyping import Bool, Float

from mmattn.render.marks import Lines
from mmattn.schema.axes import PatchGrid
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

COLOR = (255, 255, 255)
WORD = "as far as attention could reach"
# What the picture keeps of its light where attention could not reach.
DIM = 0.5


def inside(relevance: Relevance, grid: PatchGrid, *, row: int) -> Bool[np.ndarray, "row col"] | None:
    """Return the cells within reach of a row; None where there is no border to draw."""
    if relevance.reach is None:
        return None
    reached = relevance.reach[row].cpu().numpy() & (grid.cells >= 0)
    if not reached.any() or reached.sum() == len(grid.content):
        return None
    cells = np.zeros(grid.rows * grid.cols, dtype=bool)
    cells[grid.cells[reached]] = True
    return cells.reshape(grid.rows, grid.cols)


def line(cells: Bool[np.ndarray, "row col"], to_panel: Float[np.ndarray, "2 3"], *, width_px: float = 1.5) -> Lines:
    """Return the border of some cells, in the coordinates that the affine leads to."""
    sides = np.concatenate([_runs(cells), _runs(cells.T)[:, :, ::-1]])
    paths = sides @ to_panel[:, :2].T + to_panel[:, 2]
    return Lines(paths=paths, width_px=width_px, color=COLOR, name="reach")


def _runs(cells: Bool[np.ndarray, "a b"]) -> Float[np.ndarray, "side 2 2"]:
    """Return the upright sides of the border as x, y, each as one line: many short ones would look dotted."""
    padded = np.pad(cells, ((0, 0), (1, 1)))
    turns = np.pad(padded[:, 1:] != padded[:, :-1], ((1, 1), (0, 0))).T.astype(np.int8)  # [x, y], with an end each
    x, first = np.nonzero(np.diff(turns, axis=1) > 0)
    _, last = np.nonzero(np.diff(turns, axis=1) < 0)
    return np.stack([np.stack([x, first], axis=1), np.stack([x, last], axis=1)], axis=1).astype(np.float64)


def dimmed(photo: Photo, grid: PatchGrid, cells: Bool[np.ndarray, "row col"]) -> Photo:
    """Return the photo with half its light where attention could not reach; what the crop cut off stays as it is.

    Examples
    --------
    >>> grid = PatchGrid.plain(rows=1, cols=2, patch_px=(4, 4), size_px=(8, 4))
    >>> photo = Photo(pixels=np.full((4, 8, 3), 200, np.uint8))
    >>> dimmed(photo, grid, np.array([[True, False]])).pixels[0, :, 0].tolist()
    [200, 200, 200, 200, 100, 100, 100, 100]
    """
    import cv2

    wide, high = photo.size_px
    zoom = np.array([[wide / grid.size_px[0]], [high / grid.size_px[1]]])
    affine = zoom * grid.to_input * np.array([*grid.patch_px, 1.0])
    # Cells and pixels are numbered by their corners; OpenCV numbers them by their centers.
    affine[:, 2] += affine[:, :2].sum(axis=1) / 2 - 0.5
    light = np.where(cells, 1.0, DIM).astype(np.float32)
    light = np.asarray(cv2.warpAffine(light, affine, (wide, high), flags=cv2.INTER_NEAREST, borderValue=1.0))
    return Photo(pixels=np.round(photo.pixels * light[:, :, None]).astype(np.uint8), name=photo.name)

"""Where attention could reach: the window's border, and the rest of the picture in the dark.

A weak place inside a window and a place outside it would look the same, and mean something else: the
model looked away from the one and could not look at the other. A shifted window that wraps around the
picture is several parts, each with its border.
"""

import numpy as np
from jaxtyping import Bool, Float

from mmattn.render.marks import Heat, Lines
from mmattn.schema.axes import PatchGrid
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

COLOR = (255, 255, 255)
WORD = "as far as attention could reach"
# What the picture keeps of its light where attention could not reach.
DIM = 0.5
# Windows are one part, or four where they wrap around the picture.
_MOST_PARTS = 8


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


def line(cells: Bool[np.ndarray, "row col"], heat: Heat, *, width_px: float = 1.5) -> Lines:
    """Return the border of some cells of a heat, in its panel's coordinates."""
    upright = _runs(cells)
    sides = np.concatenate([upright, _runs(cells.T)[:, :, ::-1]])
    if heat.limits is not None:  # the outermost cells end where the model's sight ends
        ends = np.array(heat.limits).reshape(2, 2)
        sides = np.where(sides == 0, ends[0], np.where(sides == np.array(cells.shape[::-1]), ends[1], sides))
    paths = sides @ heat.to_panel[:, :2].T + heat.to_panel[:, 2]
    # Round scattered patches (grid attention) a line as strong as round a window would cover what is in them.
    scattered = len(upright) > 2 * _MOST_PARTS
    width = width_px / 2 if scattered else width_px
    return Lines(paths=paths, width_px=width, halo=not scattered, color=COLOR, name="reach")


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
    flags, mode = cv2.INTER_NEAREST, cv2.BORDER_REPLICATE
    light = np.asarray(cv2.warpAffine(light, affine, (wide, high), flags=flags, borderMode=mode))
    x0, y0, x1, y1 = np.round(np.array(grid.seen_box()) * np.tile(zoom[:, 0], 2)).astype(int)
    seen = np.zeros((high, wide, 1), dtype=bool)
    seen[y0:y1, x0:x1] = True
    return Photo(
        pixels=np.where(seen, np.round(photo.pixels * light[:, :, None]), photo.pixels).astype(np.uint8),
        name=photo.name,
    )

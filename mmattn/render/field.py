"""From a heat's grid to samples on screen: turned upright, refined, placed on the pixels of an output.

Most grids lie straight on their picture, perhaps mirrored or turned by quarter turns; those become
a plain upright grid over a box (`upright`). The rest (skewed, with outermost cells of another size, or
reaching far outside the panel) is sampled point by point (`sample`).

Smooth means: interpolated between the centers of cells, in the grid, constant outside the outermost
centers. Refining is cubic (Keys 1981, "Cubic convolution interpolation") but held between the
smallest and largest of the four cells around, so that no value appears that no token has.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.render.marks import Box, Heat

REFINE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Upright:
    """A grid that lies straight: row 0 on top, column 0 on the left, filling `box`."""

    values: Float[np.ndarray, "row col"]
    box: Box


def upright(heat: Heat) -> Upright | None:
    """Return the heat's grid turned upright, or None when it is skewed or its outermost cells differ."""
    if heat.limits is not None:
        return None
    values, affine = heat.values, heat.to_panel
    linear = np.abs(affine[:, :2])
    if max(linear[0, 0], linear[1, 1]) <= 1e-9 * linear.max():
        values, affine = values.T, affine[:, [1, 0, 2]]
    elif max(linear[0, 1], linear[1, 0]) > 1e-9 * linear.max():
        return None
    rows, cols = values.shape
    if affine[0, 0] < 0:
        values = values[:, ::-1]
    if affine[1, 1] < 0:
        values = values[::-1]
    x0, x1 = sorted((float(affine[0, 2]), float(affine[0, 2] + cols * affine[0, 0])))
    y0, y1 = sorted((float(affine[1, 2]), float(affine[1, 2] + rows * affine[1, 1])))
    return Upright(values=np.ascontiguousarray(values), box=(x0, y0, x1, y1))


def refine(values: Float[np.ndarray, "row col"]) -> Float[np.ndarray, "fine_row fine_col"]:
    """Return the values at 8 points a cell each way, cubic between centers without overshoot; no NaN in or out."""
    import cv2

    rows, cols = values.shape
    source = np.ascontiguousarray(values, dtype=np.float32)
    size = (cols * REFINE, rows * REFINE)
    cubic = cv2.resize(source, size, interpolation=cv2.INTER_CUBIC)
    # Fine points lie between the centers of four cells (at the rim two or one), whose extremes bound them.
    around = np.pad(source, 1, mode="edge")
    four = np.stack([around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]])
    half = slice(REFINE // 2, -(REFINE // 2))
    low, high = (
        cv2.resize(bound, None, fx=REFINE, fy=REFINE, interpolation=cv2.INTER_NEAREST)[half, half]
        for bound in (four.min(axis=0), four.max(axis=0))
    )
    return np.asarray(np.clip(cubic, low, high))


def filled(values: Float[np.ndarray, "row col"]) -> Float[np.ndarray, "row col"]:
    """Return the values with every NaN replaced by the nearest value there is, so that edges do not bleed."""
    absent = np.isnan(values)
    filled_in: np.ndarray = np.nan_to_num(values)
    if absent.all():
        return filled_in
    at = np.argwhere(~absent)
    for row, col in np.argwhere(absent):
        filled_in[row, col] = values[tuple(at[((at - (row, col)) ** 2).sum(axis=1).argmin()])]
    return filled_in


def index_of(heat: Heat, values: Float[np.ndarray, "row col"]) -> UInt8[np.ndarray, "row col"]:
    """Return where each value lies on the heat's scale, 0 to 255."""
    return np.round(255.0 * heat.scale.normalize(values)).astype(np.uint8)


def sample(
    heat: Heat, *, to_output: Float[np.ndarray, "2 3"], width: int, height: int
) -> tuple[UInt8[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Return the index on the scale for every pixel of an output, and where there is heat at all.

    Works for any affine: each output pixel's center is taken back into the grid.

    Parameters
    ----------
    to_output
        `[2, 3]`: panel coordinates to output pixels.
    """
    import cv2

    cell_to_output = to_output[:, :2] @ heat.to_panel + np.array(
        [[0.0, 0.0, to_output[0, 2]], [0.0, 0.0, to_output[1, 2]]]
    )
    back = np.linalg.inv(cell_to_output[:, :2])
    x, y = np.arange(width) + 0.5 - cell_to_output[0, 2], np.arange(height) + 0.5 - cell_to_output[1, 2]
    col = (back[0, 0] * x[None, :] + back[0, 1] * y[:, None]).astype(np.float32)
    row = (back[1, 0] * x[None, :] + back[1, 1] * y[:, None]).astype(np.float32)
    rows, cols = heat.values.shape
    left, top, right, bottom = heat.limits or (0.0, 0.0, float(cols), float(rows))
    inside = (col >= left) & (col < right) & (row >= top) & (row < bottom)
    nearest_row = np.clip(row.astype(np.int32), 0, rows - 1)
    nearest_col = np.clip(col.astype(np.int32), 0, cols - 1)
    there = inside & ~np.isnan(heat.values)[nearest_row, nearest_col]
    if not heat.smooth:
        return index_of(heat, filled(heat.values))[nearest_row, nearest_col], there
    fine = (refine(heat.scale.normalize(filled(heat.values))) * 255.0).astype(np.float32)
    at_x, at_y = col * REFINE - 0.5, row * REFINE - 0.5
    values = cv2.remap(fine, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.round(values).astype(np.uint8), there


def moved(heat: Heat, transform: Float[np.ndarray, "2 3"]) -> Heat:
    """Return the heat in other panel coordinates: `transform` takes the old ones to the new."""
    affine = transform[:, :2] @ heat.to_panel
    affine[:, 2] += transform[:, 2]
    return replace(heat, to_panel=affine)

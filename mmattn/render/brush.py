"""Strokes, polygons and the veil over what was not seen, onto pixels with OpenCV.

Opacity is blended once for all lines of nearly the same opacity, onto the rectangle that they cover: a
blend for every line costs twenty times as much. Lines are drawn onto a copy, each over its own dark rim.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.render.marks import Color, Strokes

HALO: Color = (16, 16, 20)
VEIL: Color = (44, 46, 54)
VEIL_OPACITY = 0.62

_SHIFT = 4  # OpenCV draws at sixteenths of a pixel
_LEVELS = 8
_DASH_PX = (7.0, 11.0)  # drawn, and from one beginning to the next


def strokes(
    view: UInt8[np.ndarray, "row col 3"], mark: Strokes, *, paths: Float[np.ndarray, "line point 2"], unit: float
) -> None:
    """Draw lines, `paths` being in pixels of the view and `unit` the size of a mark's pixel, in their order.

    Lines of one opacity that stand one behind the other are blended together.
    """
    levels = np.ceil(np.clip(mark.opacities, 0.0, 1.0) * _LEVELS).astype(int)
    starts = np.flatnonzero(np.diff(levels, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(levels)], strict=True):
        lines = np.arange(start, stop)
        if levels[start]:
            _level(view, mark, paths, lines, share=float(levels[start]) / _LEVELS, unit=unit)


def _level(
    view: UInt8[np.ndarray, "row col 3"],
    mark: Strokes,
    paths: Float[np.ndarray, "line point 2"],
    lines: np.ndarray,
    *,
    share: float,
    unit: float,
) -> None:
    rim = 2 * max(1, round(0.7 * unit)) if mark.halo else 0
    reach = float(mark.widths_px[lines].max()) * unit + rim + 2
    corner = np.floor(np.clip(paths[lines].min(axis=(0, 1)) - reach, 0, view.shape[1::-1])).astype(int)
    ends = np.ceil(np.clip(paths[lines].max(axis=(0, 1)) + reach, 0, view.shape[1::-1])).astype(int)
    part = view[corner[1] : ends[1], corner[0] : ends[0]]
    if not part.size:
        return
    drawn = part.copy() if share < 1 else part
    whole = np.clip(np.round((paths[lines] - corner - 0.5) * 2**_SHIFT), -(2**26), 2**26).astype(np.int32)
    for line, path, dashed in zip(lines, whole, broken(mark)[lines], strict=True):
        thick = max(1, round(float(mark.widths_px[line]) * unit))
        pieces = dashes(path, unit=unit * 2**_SHIFT) if dashed else [path]
        if rim:
            cv2.polylines(drawn, pieces, False, HALO, thick + rim, cv2.LINE_AA, _SHIFT)
        cv2.polylines(drawn, pieces, False, mark.colors[line].tolist(), thick, cv2.LINE_AA, _SHIFT)
    if share < 1:
        part[:] = cv2.addWeighted(drawn, share, part, 1.0 - share, 0.0)


def dashes(path: np.ndarray, *, unit: float) -> list[np.ndarray]:
    """Return a path cut into dashes along its length."""
    steps = np.hypot(*np.diff(path.astype(np.float64), axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    on, period = (value * unit for value in _DASH_PX)
    pieces = []
    for start in np.arange(0.0, max(along[-1], 1.0), period):
        at = np.linspace(start, min(start + on, along[-1]), 4)
        points = [np.interp(at, along, path[:, axis]) for axis in (0, 1)]
        pieces.append(np.round(np.stack(points, axis=1)).astype(path.dtype))
    return pieces


def broken(mark: Strokes) -> Bool[np.ndarray, " line"]:
    """Return which lines are dashed."""
    return np.zeros(len(mark.paths), dtype=bool) if mark.dashed is None else mark.dashed


def polygons(
    view: UInt8[np.ndarray, "row col 3"], outlines: Float[np.ndarray, "box point 2"], *, inks: Sequence[Sequence[int]]
) -> None:
    """Fill convex polygons, each with its color, in pixels of the view."""
    whole = np.clip(np.round((outlines - 0.5) * 2**_SHIFT), -(2**26), 2**26).astype(np.int32)
    for outline, ink in zip(whole, inks, strict=True):
        cv2.fillConvexPoly(view, outline, ink, cv2.LINE_AA, _SHIFT)


def veil(view: UInt8[np.ndarray, "row col 3"], box: Float[np.ndarray, "4"], unit: float) -> None:
    """Darken and hatch what the model never saw."""
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    part = view[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if not part.size:
        return
    part[:] = cv2.addWeighted(part, 1 - VEIL_OPACITY, np.full_like(part, VEIL), VEIL_OPACITY, 0)
    step, thick = max(6, round(9 * unit)), max(1, round(unit))
    rows, cols = part.shape[:2]
    across = np.arange(cols) + max(x0, 0)
    down = np.arange(rows) + max(y0, 0)
    lit = np.tile((np.arange(step) < thick), -(-(cols + rows) // step) + 2)
    first = (int(across[0]) + int(down[0])) % step
    hatch = np.lib.stride_tricks.sliding_window_view(lit[first:], cols)[:rows]
    cv2.copyTo(cv2.addWeighted(part, 0.72, np.full_like(part, 255), 0.28, 0), hatch.astype(np.uint8), part)


def sample(*, width: int, height: int) -> Strokes:
    """Return one dashed line across a swatch of the legend."""
    return Strokes(
        paths=np.array([[[0.06 * width, 0.5 * height], [0.94 * width, 0.5 * height]]]),
        widths_px=np.array([2.2]),
        opacities=np.array([1.0]),
        colors=np.full((1, 3), 255, np.uint8),
        dashed=np.array([True]),
    )


def wedge(*, width: int, height: int) -> Float[np.ndarray, "2 point 2"]:
    """Return what stands for lines of all widths in the legend: a wedge from thin to thick, after its rim."""
    points = np.array([[0.1, 0.46], [0.9, 0.28], [0.9, 0.72], [0.1, 0.54]])
    rim = np.array([[-0.05, -0.09], [0.05, -0.11], [0.05, 0.11], [-0.05, 0.09]])
    return np.stack([points + rim, points]) * np.array([width, height], dtype=np.float64)

"""Strokes, polygons and the veil over what was not seen, onto pixels with OpenCV.

Opacity is blended once for all lines of nearly the same opacity, onto the rectangle that they cover: a
blend for every line costs twenty times as much. Lines are drawn onto a copy, each over its own dark rim.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.render.marks import Color, Strokes

HALO: Color = (16, 16, 20)
VEIL: Color = (44, 46, 54)
VEIL_OPACITY = 0.62

_SHIFT = 4  # OpenCV draws at sixteenths of a pixel
_LEVELS = np.array([0.125, 0.25, 0.45, 0.7, 1.0])  # opacities that are drawn
_DASH_PX = (7.0, 11.0)  # drawn, and from one beginning to the next


def strokes(
    view: UInt8[np.ndarray, "row col 3"], mark: Strokes, *, paths: Float[np.ndarray, "line point 2"], unit: float
) -> None:
    """Draw lines, `paths` being in pixels of the view and `unit` the size of a mark's pixel, in their order.

    Lines of one opacity that stand one behind the other are blended together.
    """
    levels = _LEVELS[np.abs(mark.opacities[:, None] - _LEVELS).argmin(axis=1)]
    starts = np.flatnonzero(np.diff(levels, prepend=-1.0))
    paper: list[np.ndarray] = []  # to draw on before blending: fresh memory for each costs more
    for start, stop in pairwise([*starts, len(levels)]):
        lines = np.arange(start, stop)
        share = float(levels[start])
        if not mark.halo and paths.shape[1] == 2 and (paths[lines, 0] == paths[lines, 1]).any(axis=1).all():
            _upright(view, mark, paths[lines], lines, share=share, unit=unit)
        else:
            paper = paper or ([np.empty_like(view)] if share < 1 else [])
            _level(view, mark, paths, lines, share=share, unit=unit, paper=paper[0] if share < 1 else view)


def _upright(
    view: UInt8[np.ndarray, "row col 3"],
    mark: Strokes,
    paths: Float[np.ndarray, "line 2 2"],
    lines: np.ndarray,
    *,
    share: float,
    unit: float,
) -> None:
    """Lines of a grid, on whole pixels: each blended by itself."""
    height, width = view.shape[:2]
    thick = np.maximum(np.round(mark.widths_px[lines] * unit), 1.0)
    low = np.round(paths.min(axis=1) - (paths[:, 0] == paths[:, 1]) * thick[:, None] / 2)
    high = np.maximum(np.round(paths.max(axis=1)), low + (paths[:, 0] == paths[:, 1]) * thick[:, None])
    spans = np.clip(np.concatenate([low, high], axis=1), 0, [width, height, width, height]).astype(int)
    for (x0, y0, x1, y1), line in zip(spans.tolist(), lines, strict=True):
        part = view[y0:y1, x0:x1]
        if part.size:
            rest, ink = (1.0 - share), mark.colors[line].astype(np.float64) * share
            part[:] = part * rest + (ink + 0.5)


def _level(
    view: UInt8[np.ndarray, "row col 3"],
    mark: Strokes,
    paths: Float[np.ndarray, "line point 2"],
    lines: np.ndarray,
    *,
    share: float,
    unit: float,
    paper: UInt8[np.ndarray, "row col 3"],
) -> None:
    rim = 2 * max(1.0, 0.7 * unit) if mark.halo else 0.0
    thick = np.maximum(mark.widths_px[lines] * unit, 1.0)
    reach = float(thick.max()) + rim + 2
    corner = np.floor(np.clip(paths[lines].min(axis=(0, 1)) - reach, 0, view.shape[1::-1])).astype(int)
    ends = np.ceil(np.clip(paths[lines].max(axis=(0, 1)) + reach, 0, view.shape[1::-1])).astype(int)
    part = view[corner[1] : ends[1], corner[0] : ends[0]]
    if not part.size:
        return
    drawn = paper[: part.shape[0], : part.shape[1]] if share < 1 else part
    if share < 1:
        np.copyto(drawn, part)
    near = paths[lines] - corner
    # The rim's own edge lies on its middle: half of it is outside of the line, half is drawn over the line's edge.
    outlines = _fixed(ribbons(near, thick + (rim / 2 + 0.4 if mark.halo else 0.0)))
    edge = max(1, round(rim / 2))
    dashed = broken(mark)[lines]
    for row, line in enumerate(lines):
        ink = mark.colors[line].tolist()
        pieces = [outlines[row]]
        if dashed[row]:
            cut = dashes(near[row], unit=unit)
            pieces = list(_fixed(ribbons(cut, np.full(len(cut), thick[row] + rim / 2 + 0.4))))
        for outline in pieces:
            cv2.fillPoly(drawn, [outline], ink, cv2.LINE_8 if mark.halo else cv2.LINE_AA, _SHIFT)
        if mark.halo:
            cv2.polylines(drawn, pieces, True, HALO, edge, cv2.LINE_AA, _SHIFT)
    if share < 1:
        cv2.addWeighted(drawn, share, part, 1.0 - share, 0.0, dst=part)


def ribbons(
    paths: Float[np.ndarray, "line point 2"], widths: Float[np.ndarray, " line"]
) -> Float[np.ndarray, "line side 2"]:
    """Return the outline of each path at its width: one polygon is filled in half the time of many thick pieces.

    Examples
    --------
    >>> ribbons(np.array([[[0.0, 0.0], [4.0, 0.0]]]), np.array([2.0]))[0].tolist()
    [[0.0, 1.0], [4.0, 1.0], [4.0, -1.0], [0.0, -1.0]]
    """
    along = np.gradient(paths, axis=1)
    length = np.maximum(np.hypot(along[:, :, 0], along[:, :, 1]), 1e-9)
    aside = np.stack([-along[:, :, 1], along[:, :, 0]], axis=2) * (widths[:, None] / 2 / length)[:, :, None]
    return np.concatenate([paths + aside, (paths - aside)[:, ::-1]], axis=1)


def _fixed(points: Float[np.ndarray, "line point 2"]) -> np.ndarray:
    """Pixel edges to OpenCV's pixel centers, in sixteenths; kept inside what it can draw."""
    whole: np.ndarray = np.clip(np.round((points - 0.5) * 2**_SHIFT), -(2**26), 2**26).astype(np.int32)
    return whole


def dashes(path: Float[np.ndarray, "point 2"], *, unit: float) -> Float[np.ndarray, "dash corner 2"]:
    """Return a path cut into dashes along its length."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    on, period = (value * unit for value in _DASH_PX)
    starts = np.arange(0.0, max(along[-1], 1e-6), period)
    at = np.linspace(starts, np.minimum(starts + on, along[-1]), 5, axis=1)
    return np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], axis=2)


def broken(mark: Strokes) -> Bool[np.ndarray, " line"]:
    """Return which lines are dashed."""
    return np.zeros(len(mark.paths), dtype=bool) if mark.dashed is None else mark.dashed


def polygons(
    view: UInt8[np.ndarray, "row col 3"], outlines: Float[np.ndarray, "box point 2"], *, inks: Sequence[Sequence[int]]
) -> None:
    """Fill convex polygons, each with its color, in pixels of the view."""
    for outline, ink in zip(_fixed(outlines), inks, strict=True):
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

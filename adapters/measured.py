"""What a processor did to a picture, measured: coordinates are sent through it instead of colors.

A picture whose red grows along x and whose green grows along y comes out of any resize, crop or pad
as an image of its own coordinates. A line through what arrives says where each pixel came from:

    x in the picture = a u + b  at column u of the output  =>  resized to width / a, cut at b / a

Resizing gives whole pixels and so do cuts, hence both are rounded to integers and held against
what was measured. What fits no such line (a turn, a mirror, a reflected border) is refused.
No attribute of the processor is read, so one that nobody knew yet is either right or an error.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.errors import InputError

from .pixels import Crop, Geometry, Pad, Resize, Size

Run = Callable[[UInt8[np.ndarray, "row col 3"]], Float[np.ndarray, "channel _row _col"]]

# Coordinates stand in these levels of eight bits; padding is 0, far below.
_LOW, _LEVELS, _PADDED = 64, 191, 32

# How far what was measured may lie from the steps found, in pixels of the model.
_TOLERANCE = 0.5

#: A line needs pixels whose kernel does not reach over the picture's edge.
THINNEST = 4


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """How coordinates of one side are written: `step` levels a pixel, from `first` on again every `period` pixels."""

    side: int
    step: float
    period: int
    first: int = 0

    @property
    def levels(self) -> UInt8[np.ndarray, " pixel"]:
        """Return the level of every pixel of the side."""
        within = (np.arange(self.side) - self.first) % self.period
        return np.asarray(np.floor(_LOW + within * self.step + 1e-6), dtype=np.uint8)

    def within(self, levels: Float[np.ndarray, " pixel"]) -> Float[np.ndarray, " pixel"]:
        """Return the coordinate within its period."""
        return np.asarray((levels - _LOW) / self.step + 0.5 * max(1.0, 1 / self.step))


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Along one axis: the picture's side after the resize, and where it begins in the output."""

    resized: int
    start: int


def measured_geometry(run: Run, *, size_px: Size, named: str) -> Geometry:
    """Return what `run` does to pictures of `size_px`, from two pictures of coordinates.

    Parameters
    ----------
    run
        The processor from `[row, col, 3]` in eight bits to levels `[3, row, col]`, neither rescaled
        nor normalized, padded with 0; the first and last channel may be swapped.
    size_px
        Width and height of the picture.
    named
        What to call the processor in an error.

    Raises
    ------
    InputError
        The picture is too thin to be measured, or what happens to it is no resize, crop and pad.

    Examples
    --------
    >>> run = lambda levels: levels.transpose(2, 0, 1)[:, 10:74, 20:84].astype(float)
    >>> str(measured_geometry(run, size_px=(120, 90), named="a crop"))
    'cropped to 64 x 64 px'

    """
    width, height = size_px
    if min(size_px) < THINNEST:
        raise InputError(
            f"The picture has {width} x {height} px, too few to measure what {named} makes of them. "
            f"It would have at least {THINNEST} px on each side. Enlarge it first, or pass inputs= alone."
        )
    coarse = (_coarse(width), _coarse(height))
    levels = _levels(run, scales=coarse, named=named)
    first = tuple(_roughly(levels[axis], axis=axis, scale=coarse[axis], named=named) for axis in (0, 1))
    fine = (_fine(width, first[0]), _fine(height, first[1]))
    levels = _levels(run, scales=fine, named=named)
    x, y = (_line(levels[axis], axis=axis, scale=fine[axis], roughly=first[axis], named=named) for axis in (0, 1))
    return _steps(x, y, size_px=size_px, model_px=(levels.shape[2], levels.shape[1]))


def _coarse(side: int) -> _Scale:
    return _Scale(side=side, step=_LEVELS / side if side > _LEVELS else float(_LEVELS // side), period=side)


def _fine(side: int, roughly: Float[np.ndarray, " pixel"]) -> _Scale:
    """Return a scale of whole levels a pixel, or pixels a level: four levels to a pixel of the model."""
    slope = abs(np.ptp(roughly)) / max(1, len(roughly) - 1)
    a_pixel = max(_LEVELS // side, min(12, np.ceil(4 / max(slope, 1e-3))))
    step = 1 / int(slope / 4) if slope > 4 else float(a_pixel)
    period = max(1, int(_LEVELS / step + 1e-6))
    first = 0 if period >= side else max(0, int(roughly.min() - side / _LEVELS - 4 * max(1.0, slope)))
    return _Scale(side=side, step=step, period=period, first=first)


def _levels(run: Run, *, scales: tuple[_Scale, _Scale], named: str) -> Float[np.ndarray, "2 row col"]:
    """Return what arrives of the coordinates: x and y, in levels."""
    across, down = scales
    probe = np.empty((down.side, across.side, 3), np.uint8)
    probe[:, :, 0] = probe[:, :, 2] = across.levels
    probe[:, :, 1] = down.levels[:, None]
    result = run(probe)
    if result.shape[0] != 3 or 0 in result.shape:
        raise InputError(
            f"{named} gives {list(result.shape)} for one picture. It would give one image [3, row, col]. "
            "Pass an image processor for color pictures, or prepared tensors as inputs=."
        )
    return np.asarray(result[:2], dtype=np.float64)


def _profile(
    levels: Float[np.ndarray, "row col"], *, axis: int, named: str
) -> tuple[Float[np.ndarray, " pixel"], Bool[np.ndarray, " place"], float]:
    """Return the level of every row or column in which the picture is, which those are, and how much one varies."""
    along = levels if axis == 0 else levels.T
    inside = along > _PADDED
    there = np.asarray(inside.any(axis=0))
    where = np.flatnonzero(there)
    if len(where) < 2:
        raise _strange(named, "shows less than two pixels of it")
    profile = np.array([np.median(along[inside[:, u], u]) for u in where])
    spread = max(float(np.ptp(along[inside[:, u], u])) for u in where[:: max(1, len(where) // 16)])
    return profile, there, spread


def _roughly(
    levels: Float[np.ndarray, "row col"], *, axis: int, scale: _Scale, named: str
) -> Float[np.ndarray, " pixel"]:
    """Return the coordinate of each column (or row), to a level of the coarse scale."""
    profile, _, spread = _profile(levels, axis=axis, named=named)
    found = scale.within(profile)
    slope = (found[-1] - found[0]) / (len(found) - 1)
    if slope <= 0 or spread > max(16.0, 2 * slope * scale.step):
        raise _strange(named, "turns, mirrors or bends it")
    return found


def _line(
    levels: Float[np.ndarray, "row col"], *, axis: int, scale: _Scale, roughly: Float[np.ndarray, " pixel"], named: str
) -> _Line:
    """Return the resize and the cut along one axis, held against everything that was measured."""
    profile, there, _ = _profile(levels, axis=axis, named=named)
    within, u = scale.within(profile), np.flatnonzero(there) + 0.5
    if len(within) != len(roughly):
        raise _strange(named, "treats two pictures of one size differently")
    x = scale.first + within + scale.period * np.round((roughly - scale.first - within) / scale.period)
    slope = (roughly[-1] - roughly[0]) / (len(roughly) - 1)
    chosen = _straight(roughly, scale=scale, slope=slope)
    if np.ptp(u[chosen]) < 0.5 * np.ptp(u):
        raise _strange(named, "shows too little of it to be measured")
    a, b = np.polyfit(u[chosen], x[chosen], 1)
    if not 0.5 * slope < a < 2 * slope:
        raise _strange(named, "turns, mirrors or bends it")
    best = _nearest(x[chosen], u[chosen], side=scale.side, slope=float(a), shift=float(b), there=there)
    if best is None:
        raise _strange(named, "fills its borders with the picture again")
    furthest = float(np.abs(best.start + x[chosen] * best.resized / scale.side - u[chosen]).max())
    if furthest > _TOLERANCE + best.resized / scale.side * (0.6 / scale.step + 0.05):
        raise _strange(named, f"moves its pixels by up to {furthest:.1f} px from such steps")
    return best


def _nearest(
    x: Float[np.ndarray, " pixel"],
    u: Float[np.ndarray, " pixel"],
    *,
    side: int,
    slope: float,
    shift: float,
    there: Bool[np.ndarray, " place"],
) -> _Line | None:
    """Return the whole numbers nearest to a line x = slope u + shift by which the picture lies where it is seen."""
    resized, start = round(side / slope), round(-shift / slope)
    reach = 3 + resized // 64
    near = [
        _Line(resized=one, start=other)
        for one in range(max(1, resized - reach), resized + reach + 1)
        for other in range(start - 3, start + 4)
    ]
    misses = {line: np.count_nonzero(_covered(line, len(there)) != there) for line in near}
    fitting = [line for line in near if misses[line] == min(misses.values())]
    if misses[fitting[0]] > 2:
        return None
    return min(fitting, key=lambda line: float(np.square(line.start + x * line.resized / side - u).mean()))


def _straight(roughly: Float[np.ndarray, " pixel"], *, scale: _Scale, slope: float) -> Bool[np.ndarray, " pixel"]:
    """Return the pixels whose value is their coordinate: no new period and no edge of the picture near."""
    blur = 0.0 if scale.period >= scale.side else scale.side / _LEVELS  # of the coarse scale
    within = (roughly - scale.first) % scale.period
    for reach in (3.0, 2.0, 1.5, 1.0, 0.6):
        margin = reach * max(1.0, slope)
        kept = (roughly > margin) & (roughly < scale.side - margin)
        if scale.period < scale.side:
            kept &= (within > margin + blur) & (within < scale.period - margin - blur)
        if kept.sum() >= 8 and np.ptp(roughly[kept]) >= 0.5 * np.ptp(roughly):
            return np.asarray(kept)
    return np.asarray(kept) if kept.sum() >= 2 else np.ones(len(roughly), dtype=bool)


def _covered(line: _Line, length: int) -> Bool[np.ndarray, " pixel"]:
    centers = np.arange(length) + 0.5
    return np.asarray((centers > line.start) & (centers < line.start + line.resized))


def _steps(x: _Line, y: _Line, *, size_px: Size, model_px: Size) -> Geometry:
    geometry, resized = Geometry(size_px=size_px), (x.resized, y.resized)
    if resized != size_px:
        geometry = geometry.then(Resize(size_px=resized))
    if resized == model_px and (x.start, y.start) == (0, 0):
        return geometry
    right, bottom = model_px[0] - x.start - x.resized, model_px[1] - y.start - y.resized
    if min(x.start, y.start, right, bottom) >= 0:
        return geometry.then(Pad(left=x.start, top=y.start, right=right, bottom=bottom))
    return geometry.then(Crop(left=-x.start, top=-y.start, size_px=model_px))


def _strange(named: str, what: str) -> InputError:
    return InputError(
        f"{named} does more to a picture than resize, crop and pad it: it {what}. Places would be wrong. "
        "Pass another processor, or prepare the tensor yourself and pass it as inputs=."
    )

"""Part of a resized picture, without the rest: Pillow's resampling, written out for a window.

Scaling the shorter side of a 1 x 50,000 px picture to 248 makes 248 x 12,400,000 px, of which a
center crop keeps 224 x 224. Pillow resamples one direction after the other, and a pixel of the
result depends on few of the source, so the window alone can be computed. The numbers are Pillow's
own, bit for bit (`src/libImaging/Resample.c`: double-precision weights, rounded to 22 bits,
integer sums, 8 bits between the two passes; newer Pillows do the rows first where that saves work).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mmattn.errors import InputError

from .pixels import Crop, Size

_BITS = 22  # of the fixed-point weights

Kernel = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


def resize_window(image: Image.Image, *, size_px: Size, crop: Crop, interpolation: str) -> Image.Image:
    """Return `image.resize(size_px)` cut to `crop`, equal to Pillow's result and built without the rest.

    Parameters
    ----------
    image
        An RGB or gray image of 8 bits.
    size_px
        Width and height of the whole result.
    crop
        The window in it; outside of the result it is black, as a padding center crop has it.
    interpolation
        `bilinear`, `bicubic`, `box` or `lanczos`.

    Raises
    ------
    InputError
        Another interpolation.

    """
    if interpolation not in _KERNELS:
        raise InputError(
            f"A picture of {image.width} x {image.height} px resized to {size_px[0]} x {size_px[1]} is too large to "
            f"build with {interpolation} interpolation. Known: {', '.join(_KERNELS)}. Crop the picture first."
        )
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    (width, height), (left, top) = crop.size_px, (int(crop.left), int(crop.top))
    columns = range(max(left, 0), min(left + width, size_px[0]))
    rows = range(max(top, 0), min(top + height, size_px[1]))
    kernel, support = _KERNELS[interpolation]
    first, weights = _weights(rows, source=image.height, target=size_px[1], kernel=kernel, support=support)
    lowest, highest = int(first.min()), int(min(first.max() + weights.shape[1], image.height))
    starts, across = _weights(columns, source=image.width, target=size_px[0], kernel=kernel, support=support)
    left_most, right_most = int(starts.min()), int(min(starts.max() + across.shape[1], image.width))
    part = pixels[lowest:highest, left_most:right_most]
    if _rows_first(image.size, size_px):
        part = _turned(_pass(_turned(_pass(part, first - lowest, weights)), starts - left_most, across))
    else:
        part = _pass(_turned(_pass(_turned(part), starts - left_most, across)), first - lowest, weights)
    whole = np.zeros((height, width, part.shape[2]), np.uint8)
    whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
    return Image.fromarray(whole if whole.shape[2] > 1 else whole[:, :, 0])


def _weights(
    wanted: range, *, source: int, target: int, kernel: Kernel, support: float
) -> tuple[Int[np.ndarray, " out"], Int[np.ndarray, "out tap"]]:
    """Return, for each wanted output index, the first source index and the fixed-point weights from there on."""
    scale = source / target
    stretch = max(scale, 1.0)
    reach = support * stretch
    center = (np.asarray(wanted, dtype=np.float64) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), source)
    taps = np.arange(int((last - first).max()))
    weights = kernel((taps[None] + first[:, None] - center[:, None] + 0.5) / stretch)
    weights[taps[None] >= (last - first)[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    fixed: Int[np.ndarray, "out tap"] = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)
    return first, fixed


def _pass(
    pixels: UInt8[np.ndarray, "source other channel"],
    first: Int[np.ndarray, " out"],
    weights: Int[np.ndarray, "out tap"],
) -> UInt8[np.ndarray, "out other channel"]:
    """Resample the first axis."""
    result = np.empty((len(first), *pixels.shape[1:]), np.uint8)
    for index, (start, row) in enumerate(zip(first, weights, strict=True)):
        read = pixels[start : start + len(row)].astype(np.int64)
        total = np.tensordot(row[: len(read)], read, axes=1) + (1 << (_BITS - 1))
        result[index] = np.clip(total >> _BITS, 0, 255)
    return result


def _turned(pixels: UInt8[np.ndarray, "row col channel"]) -> UInt8[np.ndarray, "col row channel"]:
    return pixels.transpose(1, 0, 2)


def _rows_first(old: Size, new: Size) -> bool:
    """Whether this Pillow resamples the rows before the columns, in going from `old` to `new`."""
    shrinks = old[1] > new[1] and old[1] - new[1] > 2 * (old[0] - new[0])
    return shrinks and _knows_rows_first()


@cache
def _knows_rows_first() -> bool:
    """Ask the installed Pillow (13 does, 11 did not): the two orders differ by rounding on this picture."""
    probe = Image.fromarray(np.array([[255, 0], [0, 0]], np.uint8))
    return int(np.asarray(probe.resize((3, 1), Image.Resampling.BICUBIC))[0, 0]) == 136


def _box(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where(np.abs(x) < 1.0, 1.0 - np.abs(x), 0.0)


def _bicubic(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS: dict[str, tuple[Kernel, float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}

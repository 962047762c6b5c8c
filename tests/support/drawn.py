"""Relevances with one known hot patch on many layouts of the grid, and the way from pixels back to a patch."""

import math

import numpy as np
import torch

from mmattn.render.drawing import Drawing
from mmattn.render.layout import arrange
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance, Source


def _about(size: tuple[int, int], linear: list[list[float]], seen: tuple[int, int]) -> np.ndarray:
    """An affine that keeps the middle of the model's picture on the middle of the original."""
    matrix = np.array(linear)
    shift = np.array(size) / 2 - matrix @ (np.array(seen) / 2)
    return np.concatenate([matrix, shift[:, None]], axis=1)


# name: size_px, rows, cols, patch_px, to_input
LAYOUTS: dict[str, tuple[tuple[int, int], int, int, tuple[float, float], np.ndarray]] = {
    "crop": ((640, 400), 14, 14, (16, 16), _about((640, 400), [[400 / 224, 0], [0, 400 / 224]], (224, 224))),
    "squash": ((640, 400), 14, 14, (16, 16), _about((640, 400), [[640 / 224, 0], [0, 400 / 224]], (224, 224))),
    "quarter turn": ((400, 640), 8, 14, (16, 16), _about((400, 640), [[0, -2.5], [2.5, 0]], (224, 128))),
    "turn back": ((400, 640), 8, 14, (16, 16), _about((400, 640), [[0, 2.5], [-2.5, 0]], (224, 128))),
    "half turn": ((640, 400), 8, 14, (16, 16), _about((640, 400), [[-2.5, 0], [0, -2.5]], (224, 128))),
    "mirror": ((640, 400), 14, 14, (16, 16), _about((640, 400), [[-1.5, 0], [0, 1.5]], (224, 224))),
    "between pixels": ((511, 383), 7, 9, (14, 14), _about((511, 383), [[3.917, 0], [0, 3.617]], (126, 98))),
    "not square patches": ((600, 300), 5, 20, (8, 16), _about((600, 300), [[3.1, 0], [0, 3.3]], (160, 80))),
    "padded": ((640, 300), 16, 16, (14, 14), _about((640, 300), [[640 / 224, 0], [0, 640 / 224]], (224, 224))),
    "much padded": ((400, 60), 16, 16, (14, 14), _about((400, 60), [[400 / 224, 0], [0, 400 / 224]], (224, 224))),
    "shrunk": ((120, 90), 9, 12, (16, 16), _about((120, 90), [[0.6, 0], [0, 0.6]], (192, 144))),
}


def grid(name: str, *, special: tuple[str, ...] = ("cls",)) -> PatchGrid:
    size, rows, cols, patch, affine = LAYOUTS[name]
    return PatchGrid.plain(rows=rows, cols=cols, patch_px=patch, size_px=size, to_input=affine, special=special)


def hot_token(axis: PatchGrid) -> int:
    """A patch that lies off the middle in both directions and wholly inside the picture."""
    return axis.token_at((0.62 * axis.size_px[0], 0.36 * axis.size_px[1]))


def relevance(values: np.ndarray, axis: PatchGrid, *, photo: np.ndarray | None = None, **more: object) -> Relevance:
    rows = torch.tensor(np.atleast_2d(values), dtype=torch.float32)
    return Relevance(
        values=rows,
        axis=axis,
        query_axis=Slots.count(len(rows)),
        labels=tuple(f"question {index}" for index in range(len(rows))),
        method="look",
        media=None if photo is None else Photo(pixels=photo, name="photo.png"),
        source=Source(model="timm VisionTransformer", weights="random"),
        **more,
    )


def one_hot(axis: PatchGrid, *, photo: bool = True, **more: object) -> Relevance:
    values = np.zeros(len(axis))
    values[hot_token(axis)] = 1.0
    width, height = axis.size_px
    gray = np.full((height, width, 3), 128, np.uint8) if photo else None
    return relevance(values, axis, photo=gray, **more)


def lit(pixels: np.ndarray, *, box: tuple[float, float, float, float], size_px: tuple[int, int]) -> tuple:
    """Return the middle and the bounds of what is lit (warm on gray) in the panel at `box`, in original pixels."""
    x0, y0, x1, y1 = box
    warm = pixels[:, :, 0].astype(int) - pixels[:, :, 2].astype(int) > 40
    rows, cols = np.nonzero(warm)
    inside = (rows + 0.5 > y0) & (rows + 0.5 < y1) & (cols + 0.5 > x0) & (cols + 0.5 < x1)
    rows, cols = rows[inside], cols[inside]
    assert len(rows), "nothing is lit"
    x = (cols + 0.5 - x0) / (x1 - x0) * size_px[0]
    y = (rows + 0.5 - y0) / (y1 - y0) * size_px[1]
    return (float(x.mean()), float(y.mean())), (x.min(), y.min(), x.max(), y.max())


def panel_box(drawing: Drawing, *, width_px: int | None = None) -> tuple[float, float, float, float]:
    x, y, width, height = arrange(drawing, width_px=width_px).panels[0]
    return (x, y, x + width, y + height)


def assert_lit(pixels: np.ndarray, axis: PatchGrid, *, box: tuple[float, float, float, float]) -> None:
    """The middle of what is lit lies in the hot patch, and nothing more than one patch away is lit."""
    middle, bounds = lit(pixels, box=box, size_px=axis.size_px)
    assert axis.token_at(middle) == hot_token(axis)
    x0, y0, x1, y1 = axis.place(hot_token(axis))
    across, down = x1 - x0, y1 - y0
    assert math.isfinite(bounds[0])
    assert bounds[0] >= x0 - across
    assert bounds[1] >= y0 - down
    assert bounds[2] <= x1 + across
    assert bounds[3] <= y1 + down

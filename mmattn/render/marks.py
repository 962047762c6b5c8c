"""Marks: what stands in a panel, in the panel's own coordinates, held as columns of arrays.

A mark knows nothing of pixels of the output. A closed union (`Mark`): every writer matches all of
them to the end with `assert_never`, so that a new mark cannot be forgotten by one of them.
Lengths on screen (`width_px`, `radius_px`, `size_px`) are for text of 14 px and grow with the text.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.errors import InputError

Box: TypeAlias = tuple[float, float, float, float]
Color: TypeAlias = tuple[int, int, int]
Anchor: TypeAlias = Literal["left", "center", "right"]
KeyKind: TypeAlias = Literal["unseen", "box", "line", "dot", "strokes", "dashed"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Which numbers the two ends of a color map stand for, and how they were chosen.

    Parameters
    ----------
    vmin, vmax
        The values at the ends; what lies beyond is drawn as the end.
    kind
        `sequential` from little to much; `diverging` about `center`.
    center
        The value in the middle of a diverging scale: zero, or the uniform share.
    chosen
        How, for the caption: `percentile 99`, `absolute`, `shared`, `given`.
    flat
        True where the values hardly differ, so that the scale was kept wider than they are.

    Examples
    --------
    >>> Scale(vmin=0.0, vmax=4.0).normalize(np.array([[-1.0, 1.0, 8.0]])).tolist()
    [[0.0, 0.25, 1.0]]
    """

    vmin: float
    vmax: float
    kind: Literal["sequential", "diverging"] = "sequential"
    center: float = 0.0
    chosen: str = "given"
    flat: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.vmin) and np.isfinite(self.vmax) and self.vmin < self.vmax):
            raise InputError(
                f"A scale from {self.vmin:g} to {self.vmax:g} has no length. Its ends are finite and vmin < vmax. "
                'Pass two different numbers, or scale="percentile".'
            )

    def normalize(self, values: Float[np.ndarray, "row col"]) -> Float[np.ndarray, "row col"]:
        """Return the values as 0 to 1 along the scale, clipped at its ends; NaN stays NaN."""
        return np.clip((values - self.vmin) / (self.vmax - self.vmin), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How a scale becomes color: the map, and how much of the photo it covers.

    Parameters
    ----------
    color_map
        A name that `color.table` knows.
    opacity
        0 to 1: of every value alike, or of the strongest when `by_value`.
    by_value
        Let weak values be transparent and strong ones opaque.
    """

    color_map: str = "inferno"
    opacity: float = 0.8
    by_value: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """A picture that fills `box` (x0, y0, x1, y1)."""

    pixels: UInt8[np.ndarray, "row col 3"]
    box: Box


@dataclass(frozen=True, kw_only=True, eq=False)
class Heat:
    """Values on the cells of a grid.

    Parameters
    ----------
    values
        `[row, col]`; NaN where no token stands, drawn as nothing.
    to_panel
        `[2, 3]`: (col, row, 1) in cells, (0, 0) being the outer corner of the first cell, to
        panel coordinates. It may turn, mirror, crop or pad.
    scale, paint
        How a value becomes a color.
    smooth
        Interpolate between the centers of cells in the grid; otherwise every cell is one flat box.
    limits
        Where the outermost cells begin and end (col, row, col, row), in cells; None: at their own
        corners. They may reach further (constant there) or end sooner.

    Examples
    --------
    >>> to_panel = np.array([[10.0, 0.0, 5.0], [0.0, 10.0, 0.0]])
    >>> heat = Heat(values=np.eye(2) * [[1.0], [2.0]], to_panel=to_panel, scale=Scale(vmin=0.0, vmax=2.0))
    >>> heat.peak_box()
    (15.0, 10.0, 25.0, 20.0)
    """

    values: Float[np.ndarray, "row col"]
    to_panel: Float[np.ndarray, "2 3"]
    scale: Scale
    paint: Paint = Paint()
    smooth: bool = True
    limits: Box | None = None

    def cell_box(self, row: int, col: int) -> Box:
        """Return the box (x0, y0, x1, y1) of one cell in the panel's coordinates."""
        rows, cols = self.values.shape
        left, top, right, bottom = self.limits or (0.0, 0.0, float(cols), float(rows))
        x = (left if col == 0 else col, right if col == cols - 1 else col + 1)
        y = (top if row == 0 else row, bottom if row == rows - 1 else row + 1)
        corners = np.array([[col, row, 1.0] for row in y for col in x])
        points = corners @ self.to_panel.T
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return (x0, y0, x1, y1)

    def peak_cell(self) -> tuple[int, int]:
        """Return (row, col) of the strongest cell; by absolute value about the center of a diverging scale."""
        values = np.abs(self.values - self.scale.center) if self.scale.kind == "diverging" else self.values
        row, col = np.unravel_index(int(np.nanargmax(values)), values.shape)
        return int(row), int(col)

    def peak_box(self) -> Box:
        """Return the box of the strongest cell in the panel's coordinates."""
        return self.cell_box(*self.peak_cell())


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """What the model never saw: boxes that are darkened and hatched, so that nobody reads them as zero."""

    boxes: Float[np.ndarray, "box 4"]
    word: str = "not seen by the model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """Polylines; a shorter path repeats its last point.

    Parameters
    ----------
    paths
        `[line, point, 2]` as x, y.
    halo
        A dark rim that keeps the line visible on anything.
    arrow
        End every path with a head.
    """

    paths: Float[np.ndarray, "line point 2"]
    width_px: float = 2.0
    color: Color = (255, 255, 255)
    halo: bool = True
    arrow: bool = False
    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strokes:
    """Polylines that differ in width, opacity and color, painted in their order.

    Parameters
    ----------
    paths
        `[line, point, 2]` as x, y; a shorter path repeats its last point.
    widths_px, opacities, colors
        One of each for a line; an opacity is a share from 0 to 1.
    dashed
        Which lines are broken into dashes.
    halo
        A dark rim under every line, so that it is seen on anything and over the lines that it crosses.
    """

    paths: Float[np.ndarray, "line point 2"]
    widths_px: Float[np.ndarray, " line"]
    opacities: Float[np.ndarray, " line"]
    colors: UInt8[np.ndarray, "line 3"]
    dashed: Bool[np.ndarray, " line"] | None = None
    halo: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        counts = [len(self.paths), len(self.widths_px), len(self.opacities), len(self.colors)]
        counts += [] if self.dashed is None else [len(self.dashed)]
        if len(set(counts)) > 1:
            raise InputError(
                f"{counts[0]} paths, and columns of {counts[1:]}. Every line has one width, opacity and color. "
                "Pass columns of one length."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fills:
    """Filled boxes with round corners, each in its own color.

    Parameters
    ----------
    boxes
        x0, y0, x1, y1 each.
    colors
        One a box.
    radius
        Of the corners, in panel coordinates.
    """

    boxes: Float[np.ndarray, "box 4"]
    colors: UInt8[np.ndarray, "box 3"]
    radius: float = 0.0
    name: str = ""

    def outlines(self) -> Float[np.ndarray, "box point 2"]:
        """Return the boxes as polygons, so that all writers round the corners alike.

        Examples
        --------
        >>> Fills(boxes=np.array([[0.0, 0.0, 4.0, 2.0]]), colors=np.zeros((1, 3), np.uint8)).outlines().shape
        (1, 4, 2)
        """
        x0, y0, x1, y1 = self.boxes.T
        r = np.minimum(self.radius, np.minimum(x1 - x0, y1 - y0) / 2)
        turns = np.linspace(0.0, np.pi / 2, 7 if self.radius > 0 else 1)
        corners = [(x1 - r, y1 - r, 0.0), (x0 + r, y1 - r, 1.0), (x0 + r, y0 + r, 2.0), (x1 - r, y0 + r, 3.0)]
        points = [
            np.stack([x + r * np.cos(turn + quarter * np.pi / 2), y + r * np.sin(turn + quarter * np.pi / 2)], axis=1)
            for x, y, quarter in corners
            for turn in turns
        ]
        return np.stack(points, axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Outlined boxes, each x0, y0, x1, y1; `name` says what they mark."""

    boxes: Float[np.ndarray, "box 4"]
    width_px: float = 2.0
    color: Color = (255, 255, 255)
    halo: bool = True
    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dots:
    """Filled dots at x, y."""

    points: Float[np.ndarray, "dot 2"]
    radius_px: float = 4.0
    color: Color = (255, 255, 255)
    halo: bool = True
    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Words at x, y (the middle of their height).

    Parameters
    ----------
    scaled
        `size_px` is in panel coordinates: the words grow with what stands round them, not with the legend.
    instead
        What a picture of pixels shows for each word that no font here can draw; empty: the word as it is.
    """

    points: Float[np.ndarray, "label 2"]
    texts: tuple[str, ...]
    size_px: float = 12.0
    color: Color = (255, 255, 255)
    halo: bool = True
    anchor: Anchor = "center"
    bold: bool = False
    scaled: bool = False
    instead: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.points) or len(self.instead) not in (0, len(self.texts)):
            raise InputError(
                f"{len(self.points)} places and {len(self.texts)} texts. Every label has one place. "
                "Pass as many texts as points."
            )


Mark: TypeAlias = Raster | Heat | Unseen | Lines | Strokes | Fills | Boxes | Dots | Labels


@dataclass(frozen=True, kw_only=True)
class ColorBar:
    """What the colors mean: the scale, its unit, and values worth a tick of their own.

    Parameters
    ----------
    label
        The unit in words, such as `share of attention`.
    ticks
        (value, word) pairs beside the two ends, such as `(0.0051, "uniform")`.
    """

    scale: Scale
    paint: Paint
    label: str = ""
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Key:
    """A swatch and what it means, for the legend."""

    kind: KeyKind
    word: str
    color: Color = (255, 255, 255)

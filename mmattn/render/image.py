"""What a model looked at, on the picture that it looked at.

The heat is put exactly on the boxes of the axis, through the grid's own affine: crop, squash,
rotation, mirror. Nothing is stretched to fit: a picture of another shape is an error.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from mmattn.errors import InputError, PlaceError
from mmattn.render import border, color, contours
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.marks import Boxes, ColorBar, Heat, Key, Lines, Mark, Paint, Raster, Scale, Unseen
from mmattn.schema.axes import PatchGrid
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

if TYPE_CHECKING:
    from PIL.Image import Image

QUERY_COLOR = (64, 224, 255)
CONTOUR_COLOR = (255, 255, 255)
FRAME_COLOR = (255, 255, 255)
QUERY_WORD, QUERIES_WORD = "the patch that asks", "the patches that ask"
# Between the parts of a caption.
SEPARATOR = " · "
# What a picture keeps of its own color under a heat.
SATURATION = 0.3

# With more patches a side than this they are so small that a strong outline would cover them.
_FINE = 40
_ANY = Scale(vmin=0.0, vmax=1.0)
UNITS = {
    "share": "share of attention",
    "relevance": "relevance",
    "signed relevance": "relevance, for and against",
    "bits": "bits",
}


def overlay(
    relevance: Relevance,
    *,
    on: "Photo | Image | np.ndarray | None" = None,
    row: int = 0,
    smooth: bool = True,
    color_map: str | None = None,
    opacity: Literal["value"] | float = "value",
    scale: str | Scale | Sequence[Relevance] = "percentile",
    percentile: float = 99.0,
    contour: float | None = None,
    saturation: float = SATURATION,
    title: str | None = None,
    caption: str | None = None,
) -> Drawing:
    """Return one row of a relevance drawn over its picture.

    Parameters
    ----------
    on
        Another picture to draw on: of the size that the axis names, or of the same aspect.
    row
        Which of the relevance's rows.
    smooth
        Interpolate between the centers of patches; otherwise every patch is one flat box.
    color_map
        `inferno` by default, `coolwarm` for signed values; also `viridis`, `magma`, `cividis` and
        every name of matplotlib's.
    opacity
        `"value"`: weak places are transparent, strong ones opaque. A number: all alike.
    scale, percentile
        Which values the ends of the color map stand for: `"percentile"`, `"max"`, `"absolute"` (see
        `color.choose`), a scale of your own, or the relevances with which this drawing is to be
        compared: then one scale for all of them.
    contour
        Draw a line round the smallest set of patches that holds this share of the mass (DINO: 0.6).
    saturation
        Share of the picture's own color that is kept. On a red bowl in full color nobody can tell heat
        from paint; 1 keeps all of it.
    title, caption
        By default the target (else the row's label), and method, options, model and weights.

    Raises
    ------
    PlaceError
        When the axis has no places in a picture.
    InputError
        When the picture is not the one that the axis is about, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import Slots
    >>> grid = PatchGrid.plain(rows=2, cols=3, patch_px=(16, 16), size_px=(96, 64))
    >>> values = torch.tensor([[0.1, 0.1, 0.5, 0.1, 0.1, 0.1]])
    >>> one = Relevance(values=values, axis=grid, query_axis=Slots.count(1), labels=("class token",), method="look")
    >>> overlay(one).panels[0].heat.peak_box()
    (64.0, 0.0, 96.0, 32.0)
    """
    grid = picture_axis(relevance)
    photo = within_reach(relevance, muted(picture(relevance, on=on), saturation=saturation), row=row)
    values = content_values(relevance, row=row)
    chosen = _scale(relevance, values, scale=scale, percentile=percentile, row=row)
    painted = color.paint(scale=chosen, color_map=color_map, opacity=opacity)
    heat = heat_on(grid, values, scale=chosen, paint=painted, smooth=smooth)
    marks, keys = _around(relevance, heat, row=row, contour=contour)
    space = (0.0, 0.0, float(grid.size_px[0]), float(grid.size_px[1]))
    ground: tuple[Mark, ...] = (Raster(pixels=photo.pixels, box=space),) if photo is not None else ()
    panel = Panel(space=space, marks=(*ground, heat, *marks), bar=color_bar(relevance, heat, row=row), keys=keys)
    return Drawing(
        panels=(panel,),
        title=_headline(relevance, row=row) if title is None else title,
        caption=describe(relevance, chosen, row=row) if caption is None else caption,
    )


def _scale(
    relevance: Relevance,
    values: Float[np.ndarray, "row col"],
    *,
    scale: str | Scale | Sequence[Relevance],
    percentile: float,
    row: int,
) -> Scale:
    known = values[~np.isnan(values)]
    signed = relevance.unit == "signed relevance"
    if isinstance(scale, str | Scale):
        uniform = uniform_share(relevance, row=row)
        return color.choose(known, how=scale, percentile=percentile, signed=signed, uniform=uniform)
    if not isinstance(scale, list | tuple) or not all(isinstance(one, Relevance) for one in scale):
        raise InputError(
            f"scale={scale!r:.60} is no scale. It is a word (percentile, max, absolute), a Scale, or the relevances to "
            "compare with. Pass one of those."
        )
    others = [content_values(one, row=index) for one in scale for index in range(len(one.labels))]
    if not others:
        raise InputError("scale=[] names no relevance to compare with. Pass those that share the scale, or a word.")
    return color.shared([grid[~np.isnan(grid)] for grid in others], percentile=percentile, signed=signed)


def picture_axis(relevance: Relevance) -> PatchGrid:
    """Return the axis as a grid of patches, or say what to use instead."""
    if not isinstance(relevance, Relevance):
        batch = " (a batch gives a list: draw each)" if isinstance(relevance, list | tuple) else ""
        raise InputError(
            f"A {type(relevance).__name__} cannot be overlaid{batch}. An overlay takes one relevance. "
            "Pass what mmattn.look or mmattn.rollout returned, or use mmattn.draw."
        )
    axis = relevance.axis
    if isinstance(axis, PatchGrid):
        return axis
    raise PlaceError(
        f"The tokens of this relevance are {axis!r}: they have no places in a picture. An overlay needs an axis of "
        "patches (PatchGrid). Use mmattn.attend(model, image=...) so that tokens know their places, or mmattn.draw."
    )


def picture(relevance: Relevance, *, on: "Photo | Image | np.ndarray | None") -> Photo | None:
    """Return the picture to draw on, checked against the axis; None when there is none."""
    grid = picture_axis(relevance)
    photo = as_photo(on) if on is not None else relevance.media if isinstance(relevance.media, Photo) else None
    if photo is None:
        return None
    (width, height), (wide, high) = grid.size_px, photo.size_px
    # The same aspect to within half a pixel of the smaller picture: rounding of a resize, no more.
    if abs(wide * height - high * width) > 0.5 * max(width, height, wide, high) + 1e-9:
        raise InputError(
            f"The picture is {wide} x {high} px, and the patches are places in one of {width} x {height} px. "
            f"It must have that size, or that aspect ({width / height:.4g}), because nothing is stretched to fit. "
            "Pass the picture that was given to the model, uncropped, with on=."
        )
    return photo


def muted(photo: Photo | None, *, saturation: float) -> Photo | None:
    """Return the photo with a share of its color, so that colors in the drawing mean heat."""
    if not 0.0 <= saturation <= 1.0:
        raise InputError(f"saturation={saturation} is out of range. It is a share from 0 (gray) to 1 (as it is).")
    if photo is None or saturation == 1.0:
        return photo
    import cv2

    gray = cv2.cvtColor(cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    pixels = cv2.addWeighted(photo.pixels, saturation, gray, 1.0 - saturation, 0.0, dst=gray)
    return Photo(pixels=np.asarray(pixels, np.uint8), name=photo.name)


def within_reach(relevance: Relevance, photo: Photo | None, *, row: int) -> Photo | None:
    """Return the photo with less light where the row could not look at all."""
    grid = picture_axis(relevance)
    reached = border.inside(relevance, grid, row=row)
    return photo if photo is None or reached is None else border.dimmed(photo, grid, reached)


def as_photo(source: "Photo | Image | np.ndarray") -> Photo:
    """Return a Photo, a PIL image or an array `[row, col]`, `[row, col, 3]` or `[row, col, 4]` as a Photo."""
    if isinstance(source, Photo):
        return source
    convert: Any = getattr(source, "convert", None)
    pixels = np.asarray(convert("RGB") if convert is not None else source)
    if np.issubdtype(pixels.dtype, np.floating) and pixels.size and 0.0 <= pixels.min() <= pixels.max() <= 1.0:
        pixels = np.round(pixels * 255.0).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise InputError(
            f"on= is an array of shape {pixels.shape} and type {pixels.dtype}. A picture is [row, col, 3], as 8-bit "
            "integers or as floats from 0 to 1. Convert it, or pass a PIL image."
        )
    return Photo(pixels=np.ascontiguousarray(pixels[:, :, :3]))


def content_values(relevance: Relevance, *, row: int) -> Float[np.ndarray, "row col"]:
    """Return one row as a grid, NaN where no token stands or where the row could not look."""
    grid = picture_axis(relevance)
    values = relevance.row(row).detach().cpu().double().numpy().copy()
    if relevance.reach is not None:
        values[~relevance.reach[row].cpu().numpy()] = np.nan
    return grid.grid(values)


def cells_to_input(grid: PatchGrid) -> Float[np.ndarray, "2 3"]:
    """Return the affine from cells (col, row, 1) to pixels of the original picture."""
    return np.asarray(grid.to_input * np.array([grid.patch_px[0], grid.patch_px[1], 1.0]), dtype=np.float64)


def heat_on(
    grid: PatchGrid,
    values: Float[np.ndarray, "row col"],
    *,
    scale: Scale,
    paint: Paint | None = None,
    smooth: bool = True,
) -> Heat:
    """Return the heat of values `[row, col]` at the places of a grid."""
    limits = None
    if grid.limits_px is not None:
        (x0, y0, x1, y1), (wide, high) = grid.limits_px, grid.patch_px
        limits = (x0 / wide, y0 / high, x1 / wide, y1 / high)
    return Heat(
        values=values,
        to_panel=cells_to_input(grid),
        scale=scale,
        paint=Paint() if paint is None else paint,
        smooth=smooth,
        limits=limits,
    )


def uniform_share(relevance: Relevance, *, row: int) -> float | None:
    """Return what a patch would get from a row that looks at everything alike, or None if that is unknown."""
    if relevance.uniform is not None:
        uniform = relevance.uniform[row].detach().cpu().double().numpy()
        reach = np.ones(len(uniform), dtype=bool) if relevance.reach is None else relevance.reach[row].cpu().numpy()
        uniform = uniform[relevance.axis.content][reach[relevance.axis.content]]
        return float(uniform.mean()) if uniform.size else None
    return 1.0 / len(relevance.axis) if relevance.unit == "share" else None


def color_bar(relevance: Relevance, heat: Heat, *, row: int = 0) -> ColorBar:
    """Return the legend of a heat: its unit, and the uniform share where it is known and on the scale."""
    uniform = uniform_share(relevance, row=row) if relevance.unit == "share" and relevance.uniform is not None else None
    on_scale = uniform is not None and heat.scale.vmin < uniform < heat.scale.vmax
    ticks = ((uniform, "uniform"),) if on_scale and uniform is not None else ()
    return ColorBar(scale=heat.scale, paint=heat.paint, label=UNITS[relevance.unit], ticks=ticks)


def describe(relevance: Relevance, scale: Scale, *, row: int | None) -> str:
    """Return the caption: how it was read, who asked, which model and weights, and how the scale was chosen.

    Without a `row` nobody in particular asked.
    """
    options = _options(relevance.parameters)
    toward = f" toward {relevance.target}" if relevance.target else ""
    parts = [relevance.method + toward + (f" ({options})" if options else "")]
    parts += [] if row is None else [f"query: {relevance.labels[row]}"]
    source = relevance.source
    parts.append(f"{source.model}, {source.weights}")
    if source.preprocessing:
        parts.append(source.preprocessing)
    if isinstance(relevance.media, Photo) and relevance.media.name != "image":
        parts.append(relevance.media.name)
    parts.append(f"scale: {scale.chosen}" + (", nearly flat map" if scale.flat else ""))
    return SEPARATOR.join(parts)


def _headline(relevance: Relevance, *, row: int) -> str:
    """Return what a picture is of in a few words: what it is read toward, else who asks."""
    return f"toward {relevance.target}" if relevance.target else relevance.labels[row]


def unseen(grid: PatchGrid) -> Float[np.ndarray, "box 4"]:
    """Return the boxes of the picture that the model did not see: what the crop cut off, and absent cells."""
    width, height = grid.size_px
    x0, y0, x1, y1 = grid.seen_box()
    strips = [(0.0, 0.0, width, y0), (0.0, y1, width, height), (0.0, y0, x0, y1), (x1, y0, width, y1)]
    boxes = [strip for strip in strips if strip[2] - strip[0] > 0.5 and strip[3] - strip[1] > 0.5]
    here = np.zeros(grid.rows * grid.cols, dtype=bool)
    here[grid.cells[grid.cells >= 0]] = True
    absent = np.argwhere(~here.reshape(grid.rows, grid.cols))
    if not boxes and not len(absent):  # the usual case, told early: a sheet asks for every tile
        return np.empty((0, 4))
    heat = heat_on(grid, here.reshape(grid.rows, grid.cols) * 1.0, scale=_ANY)
    boxes += [heat.cell_box(int(row), int(col)) for row, col in absent]
    inside = np.clip(np.array(boxes, dtype=np.float64).reshape(-1, 4), 0.0, [width, height, width, height])
    return inside[(inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])]


def query_marks(relevance: Relevance, *, row: int, width_px: float = 2.5) -> list[Mark]:
    """Return the outline of the patches that ask: a box, or a line round patches that form none."""
    grid = picture_axis(relevance)
    width_px = min(width_px, 1.5) if max(grid.rows, grid.cols) > _FINE else width_px
    places = relevance.query_places[row] if relevance.query_places is not None else ()
    if places:  # patches of another grid: as one box where they fill one
        boxes = np.array(places, dtype=np.float64).reshape(-1, 4)
        whole = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
        full = np.isclose(_area(boxes), _area(whole), rtol=1e-6)
        return [Boxes(boxes=whole if full else boxes, width_px=width_px, color=QUERY_COLOR, name="query")]
    asked = relevance.query_tokens[row] if relevance.query_tokens is not None else ()
    if not asked:
        return []
    boxes = np.array([grid.place(token) for token in asked], dtype=np.float64)
    cells = np.zeros((grid.rows, grid.cols), dtype=bool)
    cells.flat[grid.cells[list(asked)]] = True
    rows, cols = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    if cells.sum() == (rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1):
        whole = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
        return [Boxes(boxes=whole, width_px=width_px, color=QUERY_COLOR, name="query")]
    paths = _placed(contours.edges(cells), cells_to_input(grid))
    return [Lines(paths=paths, width_px=width_px, color=QUERY_COLOR, name="query")]


def _around(
    relevance: Relevance, heat: Heat, *, row: int, contour: float | None
) -> tuple[tuple[Mark, ...], tuple[Key, ...]]:
    """Return the marks over the heat and their legend: not seen, contour, the patch that asks."""
    grid = picture_axis(relevance)
    marks: list[Mark] = []
    keys: list[Key] = []
    dark = unseen(grid)
    if len(dark):
        veil = Unseen(boxes=dark)
        marks += [veil, Boxes(boxes=np.array([grid.seen_box()]), width_px=1.0, color=FRAME_COLOR, name="seen")]
        keys.append(Key(kind="unseen", word=veil.word))
    reached = border.inside(relevance, grid, row=row)
    if reached is not None:
        marks.append(border.line(reached, heat))
        keys.append(Key(kind="box", word=border.WORD, color=border.COLOR))
    if contour is not None:
        line = _contour(heat, contour)
        marks.append(line)
    if contour is not None and len(line.paths):  # a map without mass has no line, and the legend none of it
        keys.append(Key(kind="line", word=f"{100 * contour:.3g} % of the mass", color=CONTOUR_COLOR))
    asked = query_marks(relevance, row=row)
    if asked:
        marks += asked
        named = (relevance.query_tokens, relevance.query_places)
        several = any(len(found[row]) > 1 for found in named if found)
        keys.append(Key(kind="box", word=QUERIES_WORD if several else QUERY_WORD, color=QUERY_COLOR))
    return tuple(marks), tuple(keys)


def _area(boxes: Float[np.ndarray, "box 4"]) -> float:
    return float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum())


def _contour(heat: Heat, share: float) -> Lines:
    chosen = contours.mass_cells(heat.values, share=share)
    paths = contours.level_line(heat.values, chosen=chosen) if heat.smooth else contours.edges(chosen)
    return Lines(paths=_placed(paths, heat.to_panel), width_px=1.5, color=CONTOUR_COLOR, name="contour")


def _placed(
    paths: Float[np.ndarray, "line point 2"], affine: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "line point 2"]:
    placed: np.ndarray = paths @ affine[:, :2].T + affine[:, 2]
    return placed


def _options(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)

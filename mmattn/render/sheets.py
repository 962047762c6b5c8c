"""Many maps of one picture in one labelled sheet: layers down, heads across.

The photo is shrunk to a tile once, the scale is one for all (or one a tile, said in the caption),
and so a sheet of 144 heads is drawn in the time of a few overlays.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mmattn.errors import InputError
from mmattn.render import border, color
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import (
    QUERY_COLOR,
    QUERY_WORD,
    SATURATION,
    color_bar,
    content_values,
    describe,
    heat_on,
    muted,
    picture,
    picture_axis,
    query_marks,
    unseen,
    within_reach,
)
from mmattn.render.marks import Heat, Key, Mark, Raster, Scale, Unseen
from mmattn.render.parts import of_picture
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

TILE_PX = 112


def sheet(
    relevances: Sequence[Relevance | None],
    *,
    rows: int,
    cols: int,
    row_labels: Sequence[str] = (),
    col_labels: Sequence[str] = (),
    row: int = 0,
    scale: str | Scale = "shared",
    percentile: float = 99.0,
    smooth: bool = True,
    color_map: str | None = None,
    opacity: Literal["value"] | float = "value",
    saturation: float = SATURATION,
    tile_px: int = TILE_PX,
    title: str = "",
    caption: str | None = None,
) -> Drawing:
    """Return one small overlay for each relevance, row by row, with one legend.

    Parameters
    ----------
    relevances
        `rows * cols` of them, all on one picture, row by row; `row` of each is drawn. None leaves a tile empty.
    rows, cols
        Layers down and heads across, say.
    row_labels, col_labels
        Such as `layer 0` and `head 0`.
    scale
        `shared`: one by percentile over all tiles. `panel`: every tile its own, so that tiles show
        shape and cannot be compared in strength. Or a scale of your own.
    saturation
        Share of the picture's own color that is kept.
    tile_px
        Longer side of a tile.

    Raises
    ------
    InputError
        For no relevances, labels of another number, or pictures of different sizes.
    """
    shown = _checked(relevances, rows, cols, tile_px)
    if not isinstance(scale, Scale) and scale not in ("shared", "panel"):
        raise InputError(f'scale={scale!r} is not known. It is "shared", "panel" or a Scale. Pass one of those.')
    photo = picture(shown[0], on=None)
    tile = muted(_tile(photo, tile_px), saturation=saturation) if photo is not None else None
    grids = [content_values(one, row=row) for one in shown]
    signed = any(one.unit == "signed relevance" for one in shown)
    known = [grid[~np.isnan(grid)] for grid in grids]
    one_scale = scale if isinstance(scale, Scale) else color.shared(known, percentile=percentile, signed=signed)
    painted = color.paint(scale=one_scale, color_map=color_map, opacity=opacity)
    heats = [
        heat_on(
            picture_axis(one),
            grid,
            scale=color.choose(values, percentile=percentile, signed=signed) if scale == "panel" else one_scale,
            paint=painted,
            smooth=smooth,
        )
        for one, grid, values in zip(shown, grids, known, strict=True)
    ]
    filled = iter([_tile_panel(one, heat, tile, row) for one, heat in zip(shown, heats, strict=True)])
    empty = Panel(space=_space(shown[0]), marks=(), background=(255, 255, 255))
    panels = tuple(empty if one is None else next(filled) for one in relevances)
    named = "each tile its own, strengths cannot be compared" if scale == "panel" else one_scale.chosen
    said = describe(shown[0], replace(one_scale, chosen=named), row=row)
    return Drawing(
        panels=panels,
        cols=cols,
        title=title,
        caption=said if caption is None else caption,
        bar=None if scale == "panel" else color_bar(shown[0], heats[0], row=row),
        keys=_keys(panels),
        row_labels=tuple(row_labels),
        col_labels=tuple(col_labels),
        tight=True,
    )


def _checked(relevances: Sequence[Relevance | None], rows: int, cols: int, tile_px: int) -> list[Relevance]:
    """Return those that are there, on one picture and as many as the sheet has tiles."""
    shown = [of_picture(one) for one in relevances if one is not None]
    if not shown or len(relevances) != rows * cols or tile_px < 8:
        raise InputError(
            f"{len(relevances)} maps ({len(shown)} of them there) do not fill a sheet of {rows} rows x {cols} columns "
            f"with tiles of {tile_px} px. It takes rows * cols maps or None, at least one map, and tiles of at least "
            "8 px. Fill short rows with None."
        )
    sizes = sorted({picture_axis(one).size_px for one in shown})
    if len(sizes) > 1:
        raise InputError(
            f"The maps of this sheet lie on pictures of different sizes: {sizes}. A sheet shows one picture. "
            "Use side_by_side for several."
        )
    return shown


def _space(relevance: Relevance) -> tuple[float, float, float, float]:
    width, height = picture_axis(relevance).size_px
    return (0.0, 0.0, float(width), float(height))


def _tile(photo: Photo, tile_px: int) -> Photo:
    """Return the photo shrunk once, so that no tile shrinks it again; never enlarged."""
    import cv2

    width, height = photo.size_px
    shrink = tile_px / max(width, height)
    if shrink >= 1:
        return photo
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return Photo(pixels=np.asarray(cv2.resize(photo.pixels, size, interpolation=cv2.INTER_AREA), np.uint8))


def _tile_panel(relevance: Relevance, heat: Heat, tile: Photo | None, row: int) -> Panel:
    space = _space(relevance)
    tile = within_reach(relevance, tile, row=row)
    marks: list[Mark] = [Raster(pixels=tile.pixels, box=space)] if tile is not None else []
    marks.append(heat)
    dark = unseen(picture_axis(relevance))
    if len(dark):
        marks.append(Unseen(boxes=dark))
    reached = border.inside(relevance, picture_axis(relevance), row=row)
    if reached is not None:
        marks.append(border.line(reached, heat, width_px=0.75))
    marks += query_marks(relevance, row=row, width_px=1.0)
    return Panel(space=space, marks=tuple(marks))


def _keys(panels: Sequence[Panel]) -> tuple[Key, ...]:
    keys = []
    if any(isinstance(mark, Unseen) for panel in panels for mark in panel.marks):
        keys.append(Key(kind="unseen", word="not seen by the model"))
    if any(getattr(mark, "name", "") == "reach" for panel in panels for mark in panel.marks):
        keys.append(Key(kind="box", word=border.WORD, color=border.COLOR))
    if any(getattr(mark, "name", "") == "query" for panel in panels for mark in panel.marks):
        keys.append(Key(kind="box", word=QUERY_WORD, color=QUERY_COLOR))
    return tuple(keys)

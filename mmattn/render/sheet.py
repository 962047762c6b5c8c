"""Many maps of one picture in one labelled sheet: layers down, heads across.

The photo is shrunk to a tile once, the scale is one for all (or one a tile, said in the caption),
and so a sheet of 144 heads is drawn in the time of a few overlays.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mmattn.errors import InputError
from mmattn.render import color
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import (
    QUERY_COLOR,
    QUERY_WORD,
    cells_to_input,
    color_bar,
    content_values,
    describe,
    picture,
    picture_axis,
    query_marks,
    unseen,
)
from mmattn.render.marks import Heat, Key, Mark, Raster, Scale, Unseen
from mmattn.schema.axes import PatchGrid
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

TILE_PX = 112


def sheet(
    relevances: Sequence[Relevance],
    *,
    cols: int,
    row_labels: Sequence[str] = (),
    col_labels: Sequence[str] = (),
    row: int = 0,
    scale: Literal["shared", "each"] | Scale = "shared",
    percentile: float = 99.0,
    smooth: bool = True,
    color_map: str | None = None,
    opacity: Literal["value"] | float = "value",
    tile_px: int = TILE_PX,
    title: str = "",
    caption: str | None = None,
) -> Drawing:
    """Return one small overlay for each relevance, row by row, with one legend.

    Parameters
    ----------
    relevances
        All on one picture; `row` of each is drawn.
    cols
        Tiles in a row: heads, when rows are layers.
    row_labels, col_labels
        Such as `layer 0` and `head 0`.
    scale
        `shared`: one by percentile over all tiles. `each`: every tile its own, so that tiles show
        shape and cannot be compared in strength. Or a scale of your own.
    tile_px
        Longer side of a tile.

    Raises
    ------
    InputError
        For no relevances, labels of another number, or pictures of different sizes.
    """
    if not relevances or tile_px < 8:
        raise InputError(
            f"A sheet of {len(relevances)} maps with tiles of {tile_px} px shows nothing. It has at least one map and "
            "tiles of at least 8 px. Pass more."
        )
    first = picture_axis(relevances[0])
    if any(picture_axis(one).size_px != first.size_px for one in relevances):
        sizes = sorted({picture_axis(one).size_px for one in relevances})
        raise InputError(
            f"The maps of this sheet lie on pictures of different sizes: {sizes}. A sheet shows one picture. "
            "Use side_by_side for several."
        )
    photo = picture(relevances[0], on=None)
    tile = _tile(photo, tile_px) if photo is not None else None
    grids = [content_values(one, row=row) for one in relevances]
    signed = any(one.unit == "signed relevance" for one in relevances)
    known = [grid[~np.isnan(grid)] for grid in grids]
    one_scale = scale if isinstance(scale, Scale) else color.shared(known, percentile=percentile, signed=signed)
    scales = [
        color.choose(one, percentile=percentile, signed=signed) if scale == "each" else one_scale for one in known
    ]
    painted = color.paint(scale=one_scale, color_map=color_map, opacity=opacity)
    heats = [
        Heat(values=grid, to_panel=cells_to_input(picture_axis(one)), scale=own, paint=painted, smooth=smooth)
        for one, grid, own in zip(relevances, grids, scales, strict=True)
    ]
    panels = tuple(_tile_panel(one, heat, tile, row) for one, heat in zip(relevances, heats, strict=True))
    named = "each tile its own, strengths cannot be compared" if scale == "each" else one_scale.chosen
    said = describe(relevances[0], replace(one_scale, chosen=named), row=row)
    return Drawing(
        panels=panels,
        cols=cols,
        title=title,
        caption=said if caption is None else caption,
        bar=None if scale == "each" else color_bar(relevances[0], heats[0], row=row),
        keys=_keys(panels),
        row_labels=tuple(row_labels),
        col_labels=tuple(col_labels),
        tight=True,
    )


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
    grid: PatchGrid = picture_axis(relevance)
    space = (0.0, 0.0, float(grid.size_px[0]), float(grid.size_px[1]))
    marks: list[Mark] = [Raster(pixels=tile.pixels, box=space)] if tile is not None else []
    marks.append(heat)
    dark = unseen(grid, heat.values)
    if len(dark):
        marks.append(Unseen(boxes=dark))
    marks += query_marks(relevance, row=row, width_px=1.0)
    return Panel(space=space, marks=tuple(marks))


def _keys(panels: Sequence[Panel]) -> tuple[Key, ...]:
    keys = []
    if any(isinstance(mark, Unseen) for panel in panels for mark in panel.marks):
        keys.append(Key(kind="unseen", word="not seen by the model"))
    if any(getattr(mark, "name", "") == "query" for panel in panels for mark in panel.marks):
        keys.append(Key(kind="box", word=QUERY_WORD, color=QUERY_COLOR))
    return tuple(keys)

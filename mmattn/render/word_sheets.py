"""One small overlay for each word of a text, on one scale: which word looks where, without a line.

A sheet of heads has labels beside it; here every tile has its word over it, in reading order.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmattn.errors import InputError
from mmattn.render.drawing import Drawing
from mmattn.render.image import SATURATION, SEPARATOR, describe
from mmattn.render.marks import Heat, Scale
from mmattn.render.sheets import sheet
from mmattn.render.worded import Focus, numbered_phrase, of_word, word_rows
from mmattn.schema.results import Relevance

TILE_PX = 224
_MOST = 96  # tiles


def word_grid(
    relevance: Relevance,
    *,
    words: Sequence[Focus] | None = None,
    cols: int | None = None,
    scale: Literal["shared", "panel"] | Scale = "shared",
    percentile: float = 99.0,
    smooth: bool = True,
    color_map: str | None = None,
    opacity: Literal["value"] | float = "value",
    saturation: float = SATURATION,
    title: str = "",
    caption: str | None = None,
) -> Drawing:
    """Return one overlay for each word of a text, in one sheet.

    Parameters
    ----------
    relevance
        Rows are tokens of a text, columns patches of a picture.
    words
        Only these: each as typed, by its number or by its characters (start, end); by default all.
    cols
        Tiles in a row; by default as many as make the sheet about as wide as a page.
    scale, percentile
        `"shared"`: all tiles compare. `"panel"`: each has its own, said in the picture. Or a Scale.
    smooth, color_map, opacity, saturation
        As for `overlay`.

    Raises
    ------
    PlaceError
        When rows or columns have no places.
    NotFoundError
        For a word that is not there, or stands several times.
    InputError
        For more than 96 words, or none.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import PatchGrid, Tokens
    >>> text = Tokens.of("a dog", pieces=["a", "dog"], spans=[(0, 1), (2, 5)])
    >>> grid = PatchGrid.plain(rows=2, cols=3, patch_px=(16, 16), size_px=(96, 64))
    >>> one = Relevance(values=torch.rand(2, 6), axis=grid, query_axis=text, labels=("a", "dog"), method="cross")
    >>> [panel.title for panel in word_grid(one).panels]
    ['a', 'dog']
    """
    rows = word_rows(relevance)
    relevance = rows.relevance
    if words is not None and (isinstance(words, str) or not isinstance(words, Sequence)):
        raise InputError(f"words={words!r} is no list of words. Pass words=[{words!r}], or leave it out for all.")
    given = [None] if words is None else list(words)
    chosen = list(dict.fromkeys(index for one in given for index in rows.chosen(one)))
    if not 1 <= len(chosen) <= _MOST:
        raise InputError(
            f"{len(chosen)} words are to be drawn. A sheet has from 1 to {_MOST}. Choose some with words=[...]: "
            f"{rows.listed()}."
        )
    if cols is not None and (isinstance(cols, bool) or not isinstance(cols, int) or cols < 1):
        raise InputError(f"cols={cols!r} is no number of columns. Pass at least 1, or leave it out.")
    width, height = rows.grid.size_px
    across = min(len(chosen), cols or _across(len(chosen), aspect=width / height))
    down = -(-len(chosen) // across)
    one = [of_word(rows, index) for index in chosen]
    drawing = sheet(
        [*one, *(None,) * (down * across - len(one))],
        rows=down,
        cols=across,
        scale=scale,
        percentile=percentile,
        smooth=smooth,
        color_map=color_map,
        opacity=opacity,
        saturation=saturation,
        tile_px=TILE_PX,
        title=title,
        caption="",
    )
    named = [rows.called(index) for index in chosen]
    panels = [replace(panel, title=name) for panel, name in zip(drawing.panels, named, strict=False)]
    heat = next(mark for mark in panels[0].marks if isinstance(mark, Heat))
    how = "each tile its own, strengths cannot be compared" if scale == "panel" else heat.scale.chosen
    parts = [describe(relevance, replace(heat.scale, chosen=how), row=None), rows.special_phrase()]
    said = SEPARATOR.join(part for part in (*parts, numbered_phrase(rows.labels)) if part)
    return replace(
        drawing, panels=(*panels, *drawing.panels[len(panels) :]), caption=said if caption is None else caption
    )


def _across(count: int, *, aspect: float) -> int:
    """Return how many tiles stand in a row of a sheet about as wide as a page, its last row as full as can be."""
    near = math.sqrt(1.7 * count / aspect)
    tried = [cols for cols in range(round(near) - 1, round(near) + 2) if cols >= 1]
    return min(tried, key=lambda cols: (0.9 * (-count % cols) / cols + abs(math.log(cols / near)), -cols))

"""What words and patches weigh by themselves, to be drawn under the lines that join them: a heat on each side.

On the picture, what the words in question gave to each patch; beside it, what each word gave to the picture
(or to the place that asks), on a scale of its own: the one is a part of the other.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmattn.render import color
from mmattn.render.image import UNITS, heat_on
from mmattn.render.marks import ColorBar, Heat
from mmattn.render.strongest import signed
from mmattn.render.worded import WordRows


def of_picture(rows: WordRows, words: Sequence[int]) -> tuple[Heat, ColorBar]:
    """Return what some words together gave to each patch: the mean of shares, else the sum."""
    chosen = rows.values[list(words)]
    values = rows.grid.grid(chosen.mean(axis=0) if rows.relevance.unit == "share" else chosen.sum(axis=0))
    scale = color.choose(values[~np.isnan(values)], signed=signed(rows))
    heat = heat_on(rows.grid, values, scale=scale, paint=color.paint(scale=scale))
    return heat, ColorBar(scale=scale, paint=heat.paint, label=f"picture: {UNITS[rows.relevance.unit]}")


def of_words(rows: WordRows, asked: Int[np.ndarray, " patch"] | None) -> tuple[UInt8[np.ndarray, "word 3"], ColorBar]:
    """Return a color for what each word gave to the picture or to the patches that ask, and its legend."""
    given: Float[np.ndarray, " word"] = (rows.patches if asked is None else rows.patches[:, asked]).sum(axis=1)
    scale = color.choose(given, how="max", signed=signed(rows))
    paint = color.paint(scale=scale, color_map=color.paper_map(scale), opacity=1.0)
    at = np.round(np.clip((given - scale.vmin) / (scale.vmax - scale.vmin), 0.0, 1.0) * 255).astype(int)
    what = "to the picture" if asked is None else "to this place"
    inks: np.ndarray = color.table(paint.color_map)[at]
    return inks, ColorBar(scale=scale, paint=paint, label=f"words, {what}: {UNITS[rows.relevance.unit]}")

"""Boxes that somebody knows, drawn over a picture: where the thing is that a map should point at."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmattn.errors import InputError
from mmattn.render.arrange import one_panel
from mmattn.render.drawing import Drawing
from mmattn.render.marks import Box, Boxes, Color, Key
from mmattn.schema.media import Photo

NAME = "truth"
"""By which a panel's `boxes` finds them."""

BOX_COLOR = (120, 255, 130)
BOX_WORD, BOXES_WORD = "the true box", "the true boxes"


def outlined(
    drawing: Drawing | Photo, boxes: Sequence[Box], *, word: str | None = None, color: Color = BOX_COLOR
) -> Drawing:
    """Return a drawing of one panel (or a photo) with outlined boxes, and a legend that says what they are.

    Parameters
    ----------
    boxes
        x0, y0, x1, y1 each, in the panel's coordinates: pixels of the original picture.
    word
        What they are, for the legend; by default "the true box".

    Raises
    ------
    InputError
        For a sheet of several panels, no boxes, or a box that is none.

    Examples
    --------
    >>> photo = Photo(pixels=np.zeros((48, 64, 3), np.uint8))
    >>> outlined(photo, [(8, 8, 24, 40)]).panels[0].boxes("truth")
    [(8.0, 8.0, 24.0, 40.0)]
    """
    found = np.array(boxes, dtype=np.float64) if len(boxes) else np.empty((0, 4))
    if found.ndim != 2 or found.shape[1] != 4 or not len(found) or not (found[:, :2] < found[:, 2:]).all():
        raise InputError(
            f"boxes={list(boxes)!r:.80} are no boxes. Each is x0, y0, x1, y1 with x0 < x1 and y0 < y1, in pixels of "
            "the picture. Pass at least one."
        )
    whole = one_panel(drawing, "")  # or an error that says what can be drawn on
    panel = whole if isinstance(drawing, Photo) else drawing.panels[0]
    mark = Boxes(boxes=found, width_px=2.0, color=color, name=NAME)
    key = Key(kind="box", word=word or (BOX_WORD if len(found) == 1 else BOXES_WORD), color=color)
    marked = replace(panel, marks=(*panel.marks, mark), keys=(*panel.keys, key))
    return Drawing(panels=(marked,)) if isinstance(drawing, Photo) else replace(drawing, panels=(marked,))

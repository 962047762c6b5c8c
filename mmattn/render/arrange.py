"""Drawings beside one another."""

from collections.abc import Sequence
from dataclasses import replace

from mmattn.errors import InputError
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import SEPARATOR
from mmattn.render.marks import Raster
from mmattn.schema.media import Photo


def side_by_side(
    drawings: Sequence[Drawing | Photo], *, titles: Sequence[str] | None = None, cols: int | None = None
) -> Drawing:
    """Return drawings (or plain photos) beside one another, their pictures equally high.

    Legends and captions that all of them share are shown once, below.

    Parameters
    ----------
    titles
        One for each; by default a drawing's own title, and none over a photo.
    cols
        How many in a row; by default all of them.

    Raises
    ------
    InputError
        For no drawings, titles of another number, or a drawing that is a sheet itself.

    Examples
    --------
    >>> import numpy as np
    >>> photo = Photo(pixels=np.zeros((48, 64, 3), np.uint8))
    >>> side_by_side([photo, photo], titles=["one", "two"]).panels[1].title
    'two'
    """
    if isinstance(drawings, Drawing | Photo) or not hasattr(drawings, "__iter__"):
        raise InputError(
            f"side_by_side was given one {type(drawings).__name__}. It takes several drawings. Pass a list of them."
        )
    drawings = list(drawings)
    if cols is not None and (not isinstance(cols, int) or cols < 1):
        raise InputError(f"cols={cols} is no number of columns. Pass at least 1, or leave it out for all in one row.")
    if not drawings or (titles is not None and len(titles) != len(drawings)):
        given = "no titles" if titles is None else f"{len(titles)} titles"
        raise InputError(
            f"{len(drawings)} drawings and {given} cannot stand side by side. There is at least one drawing, and a "
            "title for each or none at all. Pass titles=None, or as many as drawings."
        )
    names = list(titles) if titles is not None else [getattr(drawing, "title", "") for drawing in drawings]
    panels = [one_panel(drawing, name) for drawing, name in zip(drawings, names, strict=True)]
    bars = {panel.bar for panel in panels if panel.bar is not None}
    bar = bars.pop() if len(bars) == 1 else None
    keys = tuple(dict.fromkeys(key for panel in panels for key in panel.keys)) if bar is not None else ()
    caption, rest = _shared([panel.caption for panel in panels])
    if bar is not None:
        panels = [replace(panel, bar=None, keys=()) for panel in panels]
    panels = [replace(panel, caption=own) for panel, own in zip(panels, rest, strict=True)]
    return Drawing(panels=tuple(panels), cols=cols or len(panels), bar=bar, keys=keys, caption=caption)


def _shared(captions: Sequence[str]) -> tuple[str, list[str]]:
    """Return the parts that all captions share (a photo has none), and what each says beyond them."""
    parts = [caption.split(SEPARATOR) for caption in captions]
    said = [own for own in parts if own != [""]]
    common = [part for part in said[0] if all(part in own for own in said)] if said else []
    return SEPARATOR.join(common), [SEPARATOR.join(part for part in own if part not in common) for own in parts]


def one_panel(drawing: Drawing | Photo, title: str) -> Panel:
    """Return the one panel that a drawing or a photo is, with its legend."""
    if not isinstance(drawing, Drawing | Photo):
        raise InputError(
            f"A {type(drawing).__name__} cannot stand in a drawing. Drawings and Photos can. Pass what mmattn.overlay "
            "returned, maps.media[0], or mmattn.readers.read_photo(picture)."
        )
    if isinstance(drawing, Photo):
        width, height = drawing.size_px
        space = (0.0, 0.0, float(width), float(height))
        return Panel(space=space, marks=(Raster(pixels=drawing.pixels, box=space),), title=title)
    if len(drawing.panels) != 1:
        raise InputError(
            f"One of the drawings has {len(drawing.panels)} panels. Only drawings of one panel stand in another. "
            "Save a sheet by itself."
        )
    panel = drawing.panels[0]
    return replace(
        panel,
        title=title,
        caption=drawing.caption or panel.caption,
        bar=panel.bar or drawing.bar,
        keys=panel.keys or drawing.keys,
    )

"""An overlay of a detector's regions: each box of the picture outlined in the color of what it has.

Regions overlap, so nothing is painted over the picture: the weakest outline lies lowest and is the
thinnest, the strongest on top. What a detector did not choose has no box, and no color.
"""

from typing import TYPE_CHECKING

import numpy as np

from mmattn.errors import InputError, PlaceError
from mmattn.render import color
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import SATURATION, UNITS, as_photo, describe, muted
from mmattn.render.marks import Boxes, ColorBar, Mark, Raster, Scale
from mmattn.schema.axes import Regions
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

if TYPE_CHECKING:
    from PIL.Image import Image

# Outlines from the weakest to the strongest, in pixels of the drawing.
_THIN_PX, _THICK_PX = 1.0, 4.0


def region_overlay(
    relevance: Relevance,
    *,
    on: "Photo | Image | np.ndarray | None" = None,
    row: int = 0,
    color_map: str | None = None,
    scale: str | Scale = "percentile",
    percentile: float = 99.0,
    saturation: float = SATURATION,
    title: str | None = None,
    caption: str | None = None,
) -> Drawing:
    """Return one row of a relevance over regions, as outlines on their picture.

    Parameters are those of `mmattn.render.image.overlay`.

    Raises
    ------
    PlaceError
        The columns are no regions.
    InputError
        The picture has another size than the axis names, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import Slots
    >>> axis = Regions.of(np.array([[0.0, 0, 80, 60], [10, 10, 30, 30]]), size_px=(80, 60))
    >>> one = Relevance(values=torch.tensor([[0.2, 0.8]]), axis=axis, query_axis=Slots.count(1), labels=("cat",),
    ...                 method="look")
    >>> [mark.boxes.tolist() for mark in region_overlay(one).panels[0].marks]  # the strongest last
    [[[0.0, 0.0, 80.0, 60.0]], [[10.0, 10.0, 30.0, 30.0]]]
    """
    axis = relevance.axis
    if not isinstance(axis, Regions):
        raise PlaceError(f"The columns are {axis!r}, no regions. Use mmattn.overlay, which chooses by the axis.")
    photo = as_photo(on) if on is not None else relevance.media if isinstance(relevance.media, Photo) else None
    if photo is not None and axis.size_px not in (photo.size_px, (1, 1)):
        raise InputError(
            f"The picture is {photo.size_px[0]} x {photo.size_px[1]} px, and the regions are boxes in one of "
            f"{axis.size_px[0]} x {axis.size_px[1]} px. Pass the picture that the detector saw."
        )
    values = relevance.row(row).detach().cpu().double().numpy()[axis.content]
    signed = relevance.unit == "signed relevance"
    chosen = color.choose(values, how=scale, percentile=percentile, signed=signed, uniform=None)
    paint = color.paint(scale=chosen, color_map=color_map, opacity=1.0)
    wide, high = axis.size_px if photo is None or axis.size_px != (1, 1) else photo.size_px
    boxes = axis.places() * (np.array([wide, high] * 2) if axis.size_px == (1, 1) else 1.0)
    space = (0.0, 0.0, float(wide), float(high))
    ground: list[Mark] = []
    if photo is not None:
        dim = muted(photo, saturation=saturation)
        assert dim is not None
        ground.append(Raster(pixels=dim.pixels, box=space))
    return Drawing(
        panels=(
            Panel(
                space=space,
                marks=(*ground, *_outlines(values, boxes, scale=chosen, colors=color.table(paint.color_map))),
                bar=ColorBar(scale=chosen, paint=paint, label=UNITS[relevance.unit]),
            ),
        ),
        title=(f"toward {relevance.target}" if relevance.target else relevance.labels[row]) if title is None else title,
        caption=describe(relevance, chosen, row=row) if caption is None else caption,
    )


def _outlines(values: np.ndarray, boxes: np.ndarray, *, scale: Scale, colors: np.ndarray) -> list[Mark]:
    at = scale.normalize(values[None])[0]
    strength = np.abs(at - 0.5) * 2 if scale.kind == "diverging" else at
    return [
        Boxes(
            boxes=boxes[n][None],
            width_px=float(_THIN_PX + (_THICK_PX - _THIN_PX) * strength[n]),
            color=tuple(int(part) for part in colors[round(float(at[n]) * 255)]),  # type: ignore[arg-type]
            name="region",
        )
        for n in np.argsort(strength, kind="stable")
    ]

"""The overlay that fits: a picture for columns that are patches or regions, a text for columns that are its tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmattn.errors import InputError
from mmattn.render import image, regions, text
from mmattn.render.drawing import Drawing
from mmattn.render.image import SATURATION
from mmattn.render.marks import Scale
from mmattn.render.parts import of_picture
from mmattn.schema.axes import Regions
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance
from mmattn.schema.tokens import Tokens

if TYPE_CHECKING:
    from PIL.Image import Image


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
    """Return one row of a relevance drawn over its picture, or over the words of its text.

    See `mmattn.render.image.overlay` and `mmattn.render.text.text_overlay`. Of a sequence that words and patches
    share the patches are drawn (`relevance.part("text")` chooses its words). On a text there is nothing to draw
    on, to smooth, to see through or to draw a contour round: these options are refused.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import Slots
    >>> words = Tokens.of("a dog", pieces=["a", "dog"], spans=[(0, 1), (2, 5)])
    >>> one = Relevance(values=torch.tensor([[0.1, 0.9]]), axis=words, query_axis=Slots.count(1), labels=("cls",),
    ...                 method="look")
    >>> overlay(one)
    Drawing: 1 panel(s) in 1 row(s) x 1 column(s)
      title    cls
      caption  look · query: cls · unknown model, weights not named · scale: percentile 99
      panel 0  ...: Fills (words), Labels (words), Labels (words)
    """
    relevance = of_picture(relevance)
    if isinstance(scale, list | tuple):
        scale = [of_picture(one) for one in scale]
    if isinstance(getattr(relevance, "axis", None), Regions):
        if smooth is not True or opacity != "value" or contour is not None or not isinstance(scale, str | Scale):
            raise InputError(
                "smooth=, opacity=, contour= and relevances as scale= belong to patches, and the columns of this "
                "relevance are regions, which are outlined. Leave them out."
            )
        return regions.region_overlay(
            relevance,
            on=on,
            row=row,
            color_map=color_map,
            scale=scale,
            percentile=percentile,
            saturation=saturation,
            title=title,
            caption=caption,
        )
    if not isinstance(getattr(relevance, "axis", None), Tokens):
        return image.overlay(
            relevance,
            on=on,
            row=row,
            smooth=smooth,
            color_map=color_map,
            opacity=opacity,
            scale=scale,
            percentile=percentile,
            contour=contour,
            saturation=saturation,
            title=title,
            caption=caption,
        )
    given = {
        "on": on is not None,
        "smooth": smooth is not True,
        "opacity": opacity != "value",
        "contour": contour is not None,
        "saturation": saturation != SATURATION,
    }
    if any(given.values()):
        names = ", ".join(f"{name}=" for name, is_given in given.items() if is_given)
        raise InputError(
            f"{names} belongs to a picture, and the columns of this relevance are words of a text. "
            "A text takes row=, color_map=, scale=, percentile=, title= and caption=. Leave it out."
        )
    return text.text_overlay(
        relevance,
        row=row,
        color_map=color_map,
        scale=scale,
        percentile=percentile,
        title=title,
        caption=caption,
    )

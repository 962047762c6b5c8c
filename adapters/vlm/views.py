"""What a processor makes of a picture for a vision tower: one view of it or several (tiles, and the whole).

    original --resize, pad--> view "image"           where each view's pixels lie in the picture is measured
             --resize, crop--> view "tile 1", ...    (`..measured`), one view after the other

No attribute of the processor is read: it runs on pictures of coordinates. Each family says only how
views are taken out of what the processor returns, since some cut them into patches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mmattn.errors import InputError, MmattnError
from mmattn.schema.media import Photo

from ..hub import said
from ..measured import measured_geometry
from ..pixels import Geometry, Size

#: Takes the views out of what a processor of pictures returned for one picture: [channel, row, col] each.
Cut = Callable[[Mapping[str, Any]], list[np.ndarray]]

# What is switched off so that coordinates arrive as they were written; padding is black then, which is told apart.
_RAW = {"do_rescale": False, "do_normalize": False, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A processor with its settings as a value: two that are set alike are one."""

    key: str
    processor: Any = field(compare=False, repr=False)
    cut: Cut = field(compare=False, repr=False)

    def views(self, pixels: UInt8[np.ndarray, "row col 3"]) -> list[np.ndarray]:
        """Return the views of a picture, in levels of eight bits."""
        return self.cut(processed(self.processor, pixels, _RAW))


def geometries_of(photo: Photo, *, processor: Any, cut: Cut) -> tuple[Geometry, ...]:
    """Return where the pixels of each view lie in a picture; measured once for each size of picture.

    Raises
    ------
    InputError
        The processor takes no such picture, or does more than resize, crop, pad and cut into tiles.
    """
    key = f"{type(processor).__module__}.{type(processor).__qualname__} {processor.to_json_string()}"
    return _measured(_Step(key=key, processor=processor, cut=cut), photo.size_px)


@lru_cache(maxsize=64)
def _measured(step: _Step, size_px: Size) -> tuple[Geometry, ...]:
    known: dict[bytes, list[np.ndarray]] = {}

    def views(pixels: UInt8[np.ndarray, "row col 3"]) -> list[np.ndarray]:
        key = pixels.tobytes()
        if key not in known:
            known[key] = step.views(pixels)
        return known[key]

    count = len(views(np.zeros((size_px[1], size_px[0], 3), np.uint8)))

    def one(number: int) -> Geometry:
        def run(pixels: UInt8[np.ndarray, "row col 3"]) -> Float[np.ndarray, "channel _row _col"]:
            return np.asarray(views(pixels)[number], dtype=np.float64)

        return measured_geometry(run, size_px=size_px, named=type(step.processor).__name__)

    return tuple(one(number) for number in range(count))


def processed(processor: Any, pixels: UInt8[np.ndarray, "row col 3"], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an image processor makes of one picture.

    Raises
    ------
    InputError
        It cannot take it.
    """
    size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
    try:
        encoded: Mapping[str, Any] = processor(images=[Image.fromarray(pixels)], return_tensors="pt", **settings)
    except MmattnError:
        raise
    except Exception as problem:  # whatever another library raises over a size or an option
        raise InputError(
            f"{type(processor).__name__} cannot take the picture of {size}: {said(problem)}. It takes pictures that "
            "its size allows. Pass a larger picture, or another processor."
        ) from problem
    return encoded

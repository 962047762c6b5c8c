"""What a processor makes of a picture for a vision tower: one view of it or several (tiles, and the whole).

    original --resize, pad--> view "image"           where each view's pixels lie in the picture is measured
             --resize, crop--> view "tile 1", ...    (`..measured`), one view after the other

Nothing is read off the processor's settings: a copy of it, told to leave colors alone, runs on pictures of
coordinates in a prompt that is nothing but the picture's mark. Each family says only how views are taken
out of what it returns, since some cut them into patches.
"""

import copy
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
from ..pixels import Geometry, Pad, Resize, Size

#: Takes the views of the first picture out of what a processor returned, for a tower's settings:
#: [channel, row, col] each.
Cut = Callable[[Mapping[str, Any], Any], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Looking:
    """A processor with its settings as a value: two that are set alike are one.

    Parameters
    ----------
    key
        All settings that matter.
    processor
        Of pictures and texts, told to leave colors alone.
    mark, count
        What stands for a picture in a text, and how many stand in one prompt.
    cut, settings
        How views are taken out, for the settings of the tower.
    """

    key: str
    processor: Any = field(compare=False, repr=False)
    mark: str
    count: int
    cut: Cut = field(compare=False, repr=False)
    settings: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, processor: Any, *, mark: str, count: int, cut: Cut, settings: Any) -> "Looking":
        """Return what a processor does where `count` pictures stand in one prompt."""
        images = processor.image_processor
        named = f"{type(processor).__qualname__} {type(images).__qualname__} {cut.__qualname__}"
        key = f"{named} {getattr(processor, 'images_kwargs', '')} {images.to_json_string()} {settings.to_json_string()}"
        return cls(key=key, processor=_raw(processor), mark=mark, count=count, cut=cut, settings=settings)

    def geometries(self, photo: Photo) -> tuple[Geometry, ...]:
        """Return where the pixels of each view lie in a picture; measured once for each size of picture.

        Raises
        ------
        InputError
            The processor takes no such picture, or does more than resize, crop, pad and cut into tiles.
        """
        return _measured(self, photo.size_px)

    def views(self, pixels: UInt8[np.ndarray, "row col 3"]) -> list[np.ndarray]:
        """Return the views of a picture, in levels of eight bits."""
        pictures = [Image.fromarray(pixels)] * self.count
        try:
            encoded = self.processor(images=[pictures], text=[self.mark * self.count], return_tensors="pt")
        except MmattnError:
            raise
        except Exception as problem:  # whatever another library raises over a size
            raise InputError(
                f"{type(self.processor).__name__} cannot take the picture of {pixels.shape[1]} x {pixels.shape[0]} px: "
                f"{said(problem)}. It takes pictures that its size allows. Pass a larger picture, or another processor."
            ) from problem
        return self.cut(encoded, self.settings)


def _raw(processor: Any) -> Any:
    """Return a copy that gives levels as they were, with padding that is black (some pad with the mean color)."""
    images = copy.copy(processor.image_processor)
    for name, value in (("do_rescale", False), ("do_normalize", False), ("image_mean", [0.0] * 3)):
        setattr(images, name, value)
    twin = copy.copy(processor)
    twin.image_processor = images
    return twin


@lru_cache(maxsize=64)
def _measured(looking: Looking, size_px: Size) -> tuple[Geometry, ...]:
    known: dict[bytes, list[np.ndarray]] = {}

    def views(pixels: UInt8[np.ndarray, "row col 3"]) -> list[np.ndarray]:
        key = pixels.tobytes()
        if key not in known:
            known[key] = looking.views(pixels)
        return known[key]

    count = len(views(np.full((size_px[1], size_px[0], 3), 128, np.uint8)))

    def one(number: int) -> Geometry:
        def run(pixels: UInt8[np.ndarray, "row col 3"]) -> Float[np.ndarray, "channel _row _col"]:
            return np.asarray(views(pixels)[number], dtype=np.float64)

        images = looking.processor.image_processor
        try:
            return measured_geometry(run, size_px=size_px, named=type(images).__name__)
        except InputError:
            white = views(np.full((size_px[1], size_px[0], 3), 255, np.uint8))[number]
            found = _squared(white, size_px=size_px) if hasattr(images, "pad_to_square") else None
            if found is None:
                raise
            return found

    return tuple(one(number) for number in range(count))


def _squared(white: Float[np.ndarray, "channel row col"], *, size_px: Size) -> Geometry | None:
    """Return the geometry of a picture in the middle of a square that is resized, if a white one shows so.

    Its edges are blurred across the padding before it is measured, so coordinates near them are lost.
    """
    side = max(size_px)
    left, top = ((side - one) // 2 for one in size_px)
    padded = Pad(left=left, top=top, right=side - left - size_px[0], bottom=side - top - size_px[1])
    model_px = (white.shape[2], white.shape[1])
    geometry = Geometry(size_px=size_px).then(padded).then(Resize(size_px=model_px))
    bright = white[0] > 127
    for axis in (0, 1):
        where = np.flatnonzero(bright.any(axis=axis))
        scale, shift = geometry.to_model[axis, axis], geometry.to_model[axis, 2]
        ends = (shift, shift + scale * size_px[axis])
        if not len(where) or max(abs(where[0] - ends[0]), abs(where[-1] + 1 - ends[1])) > 1:
            return None
    return geometry

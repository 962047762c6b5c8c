"""What a processor of pictures does to one of a size, where it returns more than a batch of one: tiles, a canvas."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..measured import measured_geometry
from ..pixels import Geometry, Size

#: Runs a processor of pictures on one, with settings of its own: what comes out is `[3, row, col]`.
ImageStep = Callable[[Any, Image.Image, Mapping[str, Any]], Tensor]


def stepped_geometry(images: Any, size_px: Size, *, step: ImageStep) -> Geometry:
    """Return what a processor of pictures does to those of a size, measured once."""
    key = f"{type(images).__module__}.{type(images).__qualname__} {images.to_json_string()}"
    return _measured(_Step(key=key, images=images, step=step), size_px)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A processor with its settings as a value: two that are set alike are one."""

    key: str
    images: Any = field(compare=False, repr=False)
    step: ImageStep = field(compare=False, repr=False)


@lru_cache(maxsize=256)
def _measured(one: _Step, size_px: Size) -> Geometry:
    def run(pixels: UInt8[np.ndarray, "row col 3"]) -> Float[np.ndarray, "channel _row _col"]:
        raw = {"do_rescale": False, "do_normalize": False}
        return np.asarray(one.step(one.images, Image.fromarray(pixels), raw).float().cpu().numpy())

    return measured_geometry(run, size_px=size_px, named=type(one.images).__name__)

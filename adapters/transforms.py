"""Transforms of torchvision, timm and open_clip, read as the steps of a `Geometry`, and run.

A transform is a list of steps. The geometric ones are inverted by the rule that the library itself
uses for its rounding; those that only change values (to tensor, normalize) are known by name. Any
other step is refused by name: a place that cannot be inverted exactly is an error, not a guess.
Classes are matched exactly: a subclass may do anything.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmattn.errors import InputError

from .elongated import resize_window
from .pixels import Crop, Geometry, Pad, Resize, Size

#: Beyond this a resized picture is not built whole: only the part that the crop keeps (see `elongated.py`).
LARGEST_PX = 1 << 26


def read_transform(transform: Any, *, size_px: Size) -> Geometry:
    """Return what `transform` does to a picture of `size_px` (width, height), as a geometry.

    Raises
    ------
    InputError
        A step that is not known, or that is random; the message names it.

    Examples
    --------
    >>> from torchvision.transforms import CenterCrop, Compose, Resize
    >>> print(read_transform(Compose([Resize(256), CenterCrop(224)]), size_px=(640, 480)))
    resized to 341 x 256 px, cropped to 224 x 224 px

    """
    geometry = Geometry(size_px=size_px)
    for step in _flat(transform):
        geometry = _reader(step)(step, geometry)
    return geometry


def run_transform(transform: Any, picture: Image.Image) -> Float[Tensor, "channel row col"]:
    """Return the tensor that `transform` makes of a picture: the same numbers, in bounded memory.

    The steps run one by one. A resize that would be larger than `LARGEST_PX` before a crop takes
    most of it away again (a picture of 1 x 50,000 px) is computed for the kept part alone.
    """
    steps = list(_flat(transform))
    image: Any = picture
    index = 0
    while index < len(steps):
        window = _window(steps, index, image) if isinstance(image, Image.Image) else None
        if window is None:
            image = steps[index](image)
        else:
            image = window
            index += 1
        index += 1
    return _checked(image, read_transform(transform, size_px=picture.size))


def _window(steps: Sequence[Any], index: int, image: Image.Image) -> Image.Image | None:
    """Return steps `index` (a resize) and `index + 1` (a crop) done at once, where the resize alone is too large."""
    if not _kind(steps[index]).endswith((".Resize", ".ResizeKeepRatio")):
        return None
    before = Geometry(size_px=image.size)
    resized = _reader(steps[index])(steps[index], before)
    if math.prod(resized.model_px) <= LARGEST_PX:
        return None
    cropped = _reader(steps[index + 1])(steps[index + 1], resized) if index + 1 < len(steps) else resized
    crop = cropped.steps[-1]
    if not isinstance(crop, Crop) or math.prod(crop.size_px) > LARGEST_PX:
        raise InputError(
            f"A picture of {image.width} x {image.height} px would be {resized}, too large to build. "
            "It is far longer than it is wide. Crop it first, or pass options with crop=False."
        )
    return resize_window(image, size_px=resized.model_px, crop=crop, interpolation=_interpolation(steps[index]))


def _checked(image: Any, geometry: Geometry) -> Float[Tensor, "channel row col"]:
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        raise InputError(
            f"The transform ends in a {type(image).__name__}, not in a float tensor [3, row, col]. "
            "Add ToTensor() and Normalize(...) at its end."
        )
    size = (int(image.shape[2]), int(image.shape[1]))
    if size != geometry.model_px:
        raise InputError(
            f"The transform gave {size[0]} x {size[1]} px where its steps ({geometry}) say {geometry.model_px[0]} x "
            f"{geometry.model_px[1]}. Places would be wrong. Please report this, with the transform."
        )
    return image.as_subclass(Tensor)  # torchvision's v2 makes a subclass of its own


def _flat(transform: Any) -> Iterable[Any]:
    """Yield the steps, nested compositions opened."""
    inner = getattr(transform, "transforms", None)
    if _kind(transform).endswith(".Compose") and inner is not None:
        for step in inner:
            yield from _flat(step)
    elif _kind(transform) == "torch.nn.modules.container.Sequential":
        for step in transform:
            yield from _flat(step)
    elif _kind(transform) == "torchvision.transforms._presets.ImageClassification":
        yield from _preset(transform)
    else:
        yield transform


def _preset(preset: Any) -> Iterable[Any]:
    """Yield the steps of ImageClassification, what torchvision's weights bring with them."""
    from torchvision import transforms  # type: ignore[import-untyped]

    yield transforms.Resize(preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias)
    yield transforms.CenterCrop(preset.crop_size)
    yield transforms.PILToTensor()
    yield transforms.ConvertImageDtype(torch.float)
    yield transforms.Normalize(mean=preset.mean, std=preset.std)


def _kind(step: Any) -> str:
    return f"{type(step).__module__}.{type(step).__qualname__}"


def _reader(step: Any) -> Callable[[Any, Geometry], Geometry]:
    reader = _READERS.get(_kind(step))
    if reader is None:
        known = sorted({name.rsplit(".", 1)[1] for name in _READERS})
        raise InputError(
            f"The transform has a step whose geometry is not known: {_named(step)}. Known are {', '.join(known)}. "
            "Leave it out, or prepare the tensor yourself and pass it as inputs=."
        )
    return reader


def _named(step: Any) -> str:
    text = repr(step).split("\n")[0]
    return f"{text[:80]} ({_kind(step)})"


def _same(step: Any, geometry: Geometry) -> Geometry:
    return geometry


def _resize(step: Any, geometry: Geometry) -> Geometry:
    """Resize of torchvision: a number is the shorter side, the longer is cut to an integer."""
    size = _numbers(step.size)
    if len(size) == 2:
        return geometry.then(Resize(size_px=(size[1], size[0])))
    width, height = geometry.model_px
    short, long = size[0], int(size[0] * max(width, height) / min(width, height))
    if step.max_size is not None and long > step.max_size:
        short, long = int(step.max_size * short / long), step.max_size
    return geometry.then(Resize(size_px=(short, long) if width <= height else (long, short)))


def _resize_keep_ratio(step: Any, geometry: Geometry) -> Geometry:
    """ResizeKeepRatio of timm: one ratio for both sides, each rounded to the nearest."""
    if step.random_scale_prob or step.random_aspect_prob:
        raise InputError(
            f"The transform is random: {_named(step)}. Places need the one that was used. Use an evaluation transform."
        )
    width, height = geometry.model_px
    ratios = height / step.size[0], width / step.size[1]
    ratio = max(ratios) * step.longest + min(ratios) * (1.0 - step.longest)
    return geometry.then(Resize(size_px=(round(width / ratio), round(height / ratio))))


def _center_crop(step: Any, geometry: Geometry) -> Geometry:
    """CenterCrop and CenterCropOrPad: pad to the size where smaller, then cut with rounding to even."""
    size = _numbers(step.size)
    height, width = size if len(size) == 2 else (size[0], size[0])
    (left, top), have = (0, 0), geometry.model_px
    pad_x, pad_y = max(0, width - have[0]), max(0, height - have[1])
    left, top = -(pad_x // 2), -(pad_y // 2)
    left += round((have[0] + pad_x - width) / 2.0)
    top += round((have[1] + pad_y - height) / 2.0)
    if (width, height) == have:
        return geometry
    return geometry.then(Crop(left=left, top=top, size_px=(width, height)))


def _trim_border(step: Any, geometry: Geometry) -> Geometry:
    """TrimBorder of timm; its left edge is bounded by the height (timm 1.0)."""
    (width, height), border = geometry.model_px, step.border_size
    size = (max(0, width - 2 * border), max(0, height - 2 * border))
    return geometry.then(Crop(left=min(border, height), top=min(border, height), size_px=size))


def _pad(step: Any, geometry: Geometry) -> Geometry:
    given = _numbers(step.padding)
    left, top, right, bottom = given * 4 if len(given) == 1 else given * 2 if len(given) == 2 else given
    return geometry.then(Pad(left=left, top=top, right=right, bottom=bottom))


def _numbers(size: Any) -> list[int]:
    return [int(number) for number in np.atleast_1d(np.asarray(size))]


def _interpolation(step: Any) -> str:
    return str(getattr(step.interpolation, "value", step.interpolation))


_V1, _V2, _TIMM = "torchvision.transforms.transforms.", "torchvision.transforms.v2._", "timm.data.transforms."
_OPEN_CLIP = "open_clip.transform."

_READERS: dict[str, Callable[[Any, Geometry], Geometry]] = {
    _V1 + "Resize": _resize,
    _V1 + "CenterCrop": _center_crop,
    _V1 + "Pad": _pad,
    _V1 + "ToTensor": _same,
    _V1 + "PILToTensor": _same,
    _V1 + "ConvertImageDtype": _same,
    _V1 + "Normalize": _same,
    _V1 + "Grayscale": _same,
    _V2 + "geometry.Resize": _resize,
    _V2 + "geometry.CenterCrop": _center_crop,
    _V2 + "geometry.Pad": _pad,
    _V2 + "type_conversion.ToImage": _same,
    _V2 + "type_conversion.PILToTensor": _same,
    _V2 + "type_conversion.ToPureTensor": _same,
    _V2 + "deprecated.ToTensor": _same,
    _V2 + "misc.ToDtype": _same,
    _V2 + "misc.Normalize": _same,
    _V2 + "misc.ConvertImageDtype": _same,
    _V2 + "color.RGB": _same,
    _TIMM + "ResizeKeepRatio": _resize_keep_ratio,
    _TIMM + "CenterCropOrPad": _center_crop,
    _TIMM + "TrimBorder": _trim_border,
    _TIMM + "ToTensor": _same,
    _TIMM + "MaybeToTensor": _same,
    _TIMM + "MaybePILToTensor": _same,
    _OPEN_CLIP + "ResizeKeepRatio": _resize_keep_ratio,
    _OPEN_CLIP + "CenterCropOrPad": _center_crop,
    _OPEN_CLIP + "MaybeConvertMode": _same,
    _OPEN_CLIP + "MaybeToTensor": _same,
}

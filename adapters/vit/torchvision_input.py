"""How a picture reaches a model of torchvision: the transform of its weights, at any size that the model takes.

The tensor equals `weights.transforms()(picture)`: the shorter side is resized, the center cut out. A
model that was built in Python does not know its weights. It gets the transform of torchvision's
default weights for its architecture and size; where several weights fit, of the first listed.
"""

import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms  # type: ignore[import-untyped]
from torchvision.transforms._presets import ImageClassification  # type: ignore[import-untyped]

from mmattn.schema.media import Photo

from ..pixels import Geometry, Size
from ..transforms import read_transform, run_transform
from .pictures import SizeOptions, given_transform, input_size
from .torchvision_names import ATTENTIVE

# The transform of the weights that a model was opened with.
_presets: "weakref.WeakKeyDictionary[nn.Module, ImageClassification]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class TorchvisionOptions(SizeOptions):
    """How a picture is brought to the model's size.

    Parameters
    ----------
    size_px
        Side of the model's square input, or (width, height); None: the size of the weights' own
        transform. With `keep_aspect`, the shorter side.
    keep_aspect
        The whole picture at its own aspect, each side rounded to what the model can divide. For
        models that take any size (Swin).
    crop
        False: the whole picture, squeezed to the input's shape, instead of a center crop.

    Examples
    --------
    >>> TorchvisionOptions(size_px=288)
    TorchvisionOptions(size_px=288, keep_aspect=False, crop=True)

    """


def remember_preset(model: nn.Module, preset: ImageClassification) -> None:
    """Keep the transform of the weights that a model was opened with, as long as the model lives."""
    _presets[model] = preset


def photo_tensor(
    photo: Photo, *, model: nn.Module, processor: Any, options: TorchvisionOptions, native_px: Size
) -> tuple[Float[Tensor, "channel row col"], Geometry]:
    """Return the tensor that the model gets for a photo, and where its pixels lie in the photo."""
    transform = given_transform(processor, options)
    if transform is None:
        size = input_size(photo.size_px, native_px=native_px, unit_px=unit_px(model), options=options)
        transform = sized(preset_of(model), size_px=size, whole=options.whole)
    tensor = run_transform(transform, Image.fromarray(photo.pixels))
    return tensor, read_transform(transform, size_px=photo.size_px)


def native_px(model: nn.Module) -> Size:
    """Return (width, height) that the model was built for: what it insists on, else its weights' crop."""
    fixed = getattr(model, "image_size", None)  # VisionTransformer
    side = fixed if isinstance(fixed, int) else int(preset_of(model).crop_size[0])
    return side, side


def unit_px(model: nn.Module) -> int:
    """Return the side of a cell of the model's last stage: sides of inputs are best multiples of it."""
    patch = getattr(model, "patch_size", None)
    return patch if isinstance(patch, int) else 32


def sized(preset: ImageClassification, *, size_px: Size, whole: bool) -> transforms.Compose:
    """Return the steps of a preset at another size; at its own size they make what the preset makes.

    Parameters
    ----------
    whole
        The whole picture, squeezed to that size, in place of a resize and a center crop.

    """
    width, height = size_px
    given = {"interpolation": preset.interpolation, "antialias": preset.antialias}
    steps: list[Any] = [transforms.Resize((height, width), **given)]
    if not whole:
        side = max(size_px) * preset.resize_size[0] / preset.crop_size[0]
        steps = [transforms.Resize(round(side), **given), transforms.CenterCrop((height, width))]
    steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    return transforms.Compose([*steps, transforms.Normalize(preset.mean, preset.std)])


def preset_of(model: nn.Module) -> ImageClassification:
    """Return the transform of the weights that a model was opened with, else that of weights which would fit it."""
    if model in _presets:
        return _presets[model]
    side, found = getattr(model, "image_size", None), _weights_of(_signature(model))
    same = [preset for preset in found if side in (None, preset.crop_size[0])]
    return (same or found or [ImageClassification(crop_size=224, resize_size=256)])[0]


def _signature(model: nn.Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Return what an architecture is told by: its weights' shapes without the classifier and the positions."""
    parts = model.named_parameters()
    return frozenset((name, tuple(p.shape)) for name, p in parts if not name.startswith(("head", "classifier", "fc")))


@lru_cache(maxsize=32)
def _weights_of(signature: frozenset[tuple[str, tuple[int, ...]]]) -> list[ImageClassification]:
    """Return the transforms of torchvision's weights for the architecture that has a signature, default first."""
    for name in ATTENTIVE:
        weights = models.get_model_weights(name)
        with torch.device("meta"):
            model = models.get_model(name)
        if len(_signature(model) - signature) <= 1:  # positions differ with the size
            return [entry.transforms() for entry in (weights.DEFAULT, *weights)]
    return []

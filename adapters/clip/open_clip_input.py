"""How a picture reaches the image tower of an open_clip model: the evaluation transform of its own config.

The config that open_clip keeps with a model (`get_model_preprocess_cfg`) says the size, the mean and
deviation, and how a picture becomes square: `shortest` cuts the middle out, `longest` pads, `squash`
squeezes. The geometry is read off the steps of the transform that ran.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.media import Photo

from ..hub import said
from ..pixels import Geometry, Size
from ..transforms import read_transform, run_transform
from ..vit.pictures import Brought, bring
from .spellers import is_tokenizer


@dataclass(frozen=True, kw_only=True)
class OpenClipOptions:
    """How a picture is brought to the model's size.

    Parameters
    ----------
    crop
        False: the whole picture, squeezed to the input's shape, where the model's own transform would cut
        its middle out.

    """

    crop: bool = True


def brought(media: MediaGiven, *, model: nn.Module, transform: Any, options: OpenClipOptions) -> Brought | None:
    """Return the pictures as the image tower gets them; None where there are none.

    Raises
    ------
    InputError
        No pictures, a transform that cannot be inverted, tensors that do not fit.

    """
    if media.image is None and media.inputs is None:
        return None
    chosen = _transform(model, transform, options)

    def make(photo: Photo) -> tuple[Tensor, Geometry]:
        return photo_tensor(photo, transform=chosen)

    visual: Any = model.visual
    first = next((part for part in visual.modules() if isinstance(part, nn.Conv2d)), None)
    channels = None if first is None else first.in_channels
    return bring(media, model=visual if first is None else first, make=make, channels=channels)


def photo_tensor(photo: Photo, *, transform: Any) -> tuple[Float[Tensor, "channel row col"], Geometry]:
    """Return the tensor that a transform makes of a photo, and where its pixels lie in the photo."""
    tensor = run_transform(transform, Image.fromarray(photo.pixels))
    return tensor, read_transform(transform, size_px=photo.size_px)


def own_transform(model: nn.Module, *, crop: bool = True) -> Any:
    """Return open_clip's evaluation transform of a model; without `crop`, one that sees the whole picture."""
    config = dict(get_model_preprocess_cfg(model))
    if not crop and config.get("resize_mode", "shortest") == "shortest":
        config["resize_mode"] = "squash"
    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def parts_of(processor: Any) -> tuple[Any, Any]:
    """Return the transform and the tokenizer of `processor=`: a pair, or either alone; None for what is not there.

    Raises
    ------
    InputError
        It is neither.

    """
    pair = list(processor) if isinstance(processor, tuple | list) else [processor]
    if len(pair) == 1:
        pair = [None, *pair] if is_tokenizer(pair[0]) else [*pair, None]
    if len(pair) != 2 or is_tokenizer(pair[0]) or not all(one is None or callable(one) for one in pair):
        named = ", ".join(type(one).__name__ for one in pair if one is not None)
        raise InputError(
            f"processor= holds {named}. It would be a transform of pictures, a tokenizer of "
            "open_clip.get_tokenizer or a fast one of transformers, or both as a pair. Leave it out for the model's."
        )
    return pair[0], pair[1]


def explained(size_px: Size) -> Callable[[nn.Module, Exception], InputError | None]:
    """Return what says which size there is, where a forward fails on another one than the model's own."""

    def explain(model: nn.Module, problem: Exception) -> InputError | None:
        native = native_px(model)
        if native is None or native == size_px:
            return None
        return InputError(
            f"The image tower cannot take pictures of {size_px[0]} x {size_px[1]} px: {said(problem)}. It was made for "
            f"{native[0]} x {native[1]} px. Leave processor= and inputs= out, or make pictures of that size."
        )

    return explain


def native_px(model: nn.Module) -> Size | None:
    """Return (width, height) that the image tower was made for, where it says so."""
    size = getattr(model.visual, "image_size", None)
    if size is None:
        return None
    high, wide = (size, size) if isinstance(size, int) else size
    return int(wide), int(high)


def _transform(model: nn.Module, given: Any, options: OpenClipOptions) -> Any:
    if given is not None and not options.crop:
        raise InputError(
            f"crop=False was asked for, and {type(given).__name__} cannot be told so. A transform of one's own makes "
            "its own size. Pass a transform that does not cut, or options without processor=."
        )
    return own_transform(model, crop=options.crop) if given is None else given

"""How a picture reaches a timm model: timm's own evaluation transform, at any size that the model takes.

The tensor equals what `timm.data.create_transform(**timm.data.resolve_model_data_config(model))`
gives for the upright RGB picture; the geometry is read off that transform's steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.media import Photo

from ..pixels import Geometry, Size
from ..transforms import read_transform, run_transform
from .pictures import SizeOptions, given_transform
from .timm_tokens import check_size, fixed_size

# Weights of one head at this many tokens are 1 GiB in single precision.
_MOST_PATCHES = 16_384


@dataclass(frozen=True, kw_only=True)
class TimmOptions(SizeOptions):
    """How a picture is brought to the model's size.

    Parameters
    ----------
    size_px
        Side of the model's square input, or (width, height); None: the size of the model's data
        config. With `keep_aspect`, the shorter side.
    keep_aspect
        The whole picture at its own aspect, each side rounded to whole patches (so that a scale is
        off by at most half a patch). For models that take any size.
    crop
        False: the whole picture, squeezed to the input's shape, instead of the config's center crop.

    Examples
    --------
    >>> TimmOptions(size_px=518, keep_aspect=True)
    TimmOptions(size_px=518, keep_aspect=True, crop=True)

    """


#: Says which (width, height) the model gets for a picture of some (width, height).
SizeOf = Callable[[Size], Size]


def photo_tensor(
    photo: Photo, *, model: nn.Module, processor: Any, options: TimmOptions, size_of: SizeOf
) -> tuple[Float[Tensor, "channel row col"], Geometry]:
    """Return the tensor that the model gets for a photo, and where its pixels lie in the photo."""
    transform = given_transform(processor, options)
    if transform is None:
        transform = own_transform(photo, model=model, options=options, size_of=size_of)
    tensor = run_transform(transform, Image.fromarray(photo.pixels))
    return tensor, read_transform(transform, size_px=photo.size_px)


def own_transform(photo: Photo, *, model: nn.Module, options: TimmOptions, size_of: SizeOf) -> Any:
    """Return timm's evaluation transform of a model, at the size that a photo is to have."""
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call] # timm 1.0
    channels = int(getattr(model, "in_chans", config["input_size"][0]))
    if channels != 3:
        raise InputError(
            f"This model takes {channels} channels and its data config does not say how a picture becomes those. "
            "Pass the prepared tensor as inputs=."
        )
    width, height = size_of(photo.size_px)
    config["input_size"] = (3, height, width)
    if options.whole:
        config.update(crop_mode="squash", crop_pct=1.0)
    return create_transform(**config, is_training=False)


def config_px(model: nn.Module) -> Size | None:
    """Return (width, height) of timm's data config of a model, if it has one of its own."""
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size")
    return (int(size[2]), int(size[1])) if size else None


def plain_size(size_px: Size, *, model: nn.Module, options: TimmOptions) -> Size:
    """Return (width, height) of the input of a plain vision transformer for a picture of `size_px`.

    Raises
    ------
    InputError
        The model cannot take it; the message says what it can.

    """
    given = options.size_px
    embed: Any = model.patch_embed
    native = fixed_size(model) or config_px(model) or (embed.img_size[1], embed.img_size[0])
    high, wide = embed.feat_ratio(as_scalar=False)
    if options.keep_aspect:
        short = given if isinstance(given, int) else min(native)
        scale = short / min(size_px)
        size = (max(1, round(size_px[0] * scale / wide)) * wide, max(1, round(size_px[1] * scale / high)) * high)
    else:
        size = options.asked_px or native
    check_size(model, size)
    patches = int(size[0] // wide) * int(size[1] // high)
    if patches > _MOST_PATCHES:
        raise InputError(
            f"An input of {size[0]} x {size[1]} px has {patches} patches, and attention between all of them does not "
            f"fit into memory; at most {_MOST_PATCHES} are taken. {_smaller(size_px, options)}"
        )
    return int(size[0]), int(size[1])


def _smaller(size_px: Size, options: TimmOptions) -> str:
    """Return what to do about an input that is too large."""
    if not options.keep_aspect:
        return "Pass a smaller size_px (--size)."
    long = "far longer than it is wide" if size_px[1] > size_px[0] else "far wider than it is long"
    shape = f"The picture, {size_px[0]} x {size_px[1]} px, is {long}. " if max(size_px) > 8 * min(size_px) else ""
    return f"{shape}Pass a smaller size_px (--size), or leave keep_aspect (--keep-aspect) out."

"""How a picture reaches a vision model of transformers: its image processor, and the way back.

The tensor is what `processor(images=picture, return_tensors="pt")` gives. Where its pixels lie in
the picture is measured (`adapters/measured.py`), not read off the processor's attributes, of which
there are some thirty dialects. A transform of torchvision or timm is taken as well.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from mmattn.errors import InputError, MmattnError
from mmattn.schema.media import Photo

from ..hub import said
from ..measured import THINNEST, measured_geometry
from ..pixels import Geometry, Pad, Resize, Size
from ..transforms import read_transform, run_transform
from .pictures import SizeOptions
from .transformers_patches import images_of, is_cut

# Of a picture that is thinner a crop would show a sliver, after a resize to millions of pixels.
_THINNEST_SHARE = 32

# Attributes by which a processor does more than resize; off where the whole picture is asked for.
_MORE = ("do_center_crop", "do_pad", "do_thumbnail", "do_align_long_axis", "keep_aspect_ratio")


@dataclass(frozen=True, kw_only=True)
class TransformersOptions(SizeOptions):
    """How a picture is brought to the model's size.

    Parameters
    ----------
    size_px
        Side of the model's square input, or (width, height); None: what the processor makes. With
        `keep_aspect`, the shorter side. Positions are interpolated where the model can.
    keep_aspect
        The whole picture at its own aspect, each side rounded to whole patches.
    crop
        False: the whole picture, squeezed to the input's shape, instead of the processor's crop.

    Examples
    --------
    >>> TransformersOptions(size_px=384)
    TransformersOptions(size_px=384, keep_aspect=False, crop=True)

    """


def photo_tensor(
    photo: Photo, *, model: nn.Module, processor: Any, options: TransformersOptions
) -> tuple[Float[Tensor, "channel row col"], Geometry]:
    """Return the tensor that the model gets for a photo, and where its pixels lie in the photo.

    Raises
    ------
    InputError
        No processor is known, it takes no such picture, or what it does cannot be inverted.

    """
    processor = _checked(processor_of(model) if processor is None else processor)
    transform = _transform(processor, options=options)
    if transform is not None:
        tensor = run_transform(transform, Image.fromarray(photo.pixels))
        return tensor, read_transform(transform, size_px=photo.size_px)
    overrides = _overrides(photo.size_px, model=model, processor=processor, options=options)
    _check_shape(photo.size_px, processor=processor, overrides=overrides)
    tensor = _processed(processor, photo.pixels, overrides)
    key = f"{type(processor).__module__}.{type(processor).__qualname__} {processor.to_json_string()} {overrides}"
    geometry = _padded_first(processor, photo.size_px, overrides)
    geometry = geometry or _measured(_Step(key=key, processor=processor, overrides=overrides), photo.size_px)
    _check_result(tensor, geometry, processor=processor, options=options)
    return tensor, geometry


def processor_of(model: nn.Module) -> Any:
    """Return the image processor saved where the model was, else the one of its class at its own size.

    Raises
    ------
    InputError
        transformers has none for this class.

    """
    from transformers import AutoImageProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]

    auto: Any = AutoImageProcessor

    name = str(getattr(model, "name_or_path", ""))
    try:
        if name:
            return auto.from_pretrained(name, local_files_only=True)
    except Exception:  # a folder without a processor, or a name that is not on this machine: many kinds
        pass
    config: Any = model.config
    names = next((known[kind] for kind in _kinds(model) if kind in (known := IMAGE_PROCESSOR_MAPPING_NAMES)), None)
    if names is None:
        raise InputError(
            f"transformers has no image processor for {type(model).__name__} ({config.model_type}), and none was "
            "saved with it. A picture needs the one that the model was trained with. Pass processor=, or inputs=."
        )
    import transformers

    made = getattr(transformers, names.get("torchvision") or names["pil"])
    if config.model_type == "timm_wrapper":
        return made(pretrained_cfg=_timm_config(model))
    processor = made()
    if hasattr(processor, "max_num_patches") and hasattr(config, "num_patches"):
        return made(max_num_patches=config.num_patches, patch_size=config.patch_size)
    size = native_size(model)
    return processor if size is None else made(**_sized(processor, size))


def _timm_config(model: Any) -> dict[str, Any]:
    """Return the data config of a timm model inside transformers' wrapper."""
    from timm.data.config import resolve_model_data_config

    return getattr(model.config, "pretrained_cfg", None) or dict(resolve_model_data_config(model.timm_model))  # type: ignore[no-untyped-call] # timm 1.0


def _kinds(model: nn.Module) -> list[str]:
    """Return under which names transformers may know a model: its type, its folder, and what these begin with.

    `clip_vision_model` lies in the folder `clip`; `dinov2_with_registers` begins with `dinov2`.
    """
    config: Any = model.config
    kinds = [config.model_type, type(model).__module__.split(".")[-2]]
    kinds.append(kinds[1].replace("_", "-"))
    words = kinds[0].split("_")
    return kinds + ["_".join(words[:count]) for count in range(len(words) - 1, 0, -1)]


def vision_setting(model: nn.Module, name: str) -> Any:
    """Return a setting of the model's config, or of the vision tower's or backbone's inside it; None without one."""
    config: Any = model.config
    inner = (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None))
    return next((value for one in inner if (value := getattr(one, name, None)) is not None), None)


def native_size(model: nn.Module) -> Size | None:
    """Return (width, height) of the input that the model was made for, where its config says so."""
    size = vision_setting(model, "image_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return int(size[1]), int(size[0])
    return (int(size), int(size)) if isinstance(size, int) and size > 0 else None


def _padded_first(processor: Any, size_px: Size, overrides: dict[str, Any]) -> Geometry | None:
    """Return what OWLv2's processor does, by its source: square at the right and bottom, blurred, resized.

    The blur reaches from the picture into its padding, so that where the picture ends cannot be measured; its
    kernel is even on both sides and moves nothing. None: another processor.
    """
    if type(processor).__name__ not in ("Owlv2ImageProcessor", "Owlv2ImageProcessorPil"):
        return None
    geometry, settings = Geometry(size_px=size_px), {**vars(processor), **overrides}
    if settings["do_pad"] and size_px[0] != size_px[1]:
        geometry = geometry.then(Pad(right=max(size_px) - size_px[0], bottom=max(size_px) - size_px[1]))
    sides = _sides(settings["size"])
    return geometry.then(Resize(size_px=(sides["width"], sides["height"]))) if settings["do_resize"] else geometry


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A processor with its settings as a value: two that are set alike are one."""

    key: str
    processor: Any = field(compare=False, repr=False)
    overrides: dict[str, Any] = field(compare=False, repr=False)


@lru_cache(maxsize=256)
def _measured(step: _Step, size_px: Size) -> Geometry:
    """Return what a processor does to pictures of a size; measured once."""

    def run(pixels: UInt8[np.ndarray, "row col 3"]) -> Float[np.ndarray, "channel _row _col"]:
        raw = {**step.overrides, "do_rescale": False, "do_normalize": False}
        return np.asarray(_processed(step.processor, pixels, raw).float().cpu().numpy())

    return measured_geometry(run, size_px=size_px, named=type(step.processor).__name__)


def _processed(
    processor: Any, pixels: UInt8[np.ndarray, "row col 3"], overrides: dict[str, Any]
) -> Float[Tensor, "channel _row _col"]:
    """Return what the processor makes of one picture."""
    named, size = type(processor).__name__, f"{pixels.shape[1]} x {pixels.shape[0]} px"
    try:
        encoded = processor(images=Image.fromarray(pixels), return_tensors="pt", **overrides)
    except MmattnError:
        raise
    except Exception as problem:  # whatever another library raises over a size or an option
        raise InputError(
            f"{named} cannot take the picture of {size}: {said(problem)}. It takes pictures that its size "
            f"({getattr(processor, 'size', None)}) allows. Pass a larger picture, or another processor."
        ) from problem
    values = images_of(encoded) if is_cut(encoded) else encoded.get("pixel_values")
    if not isinstance(values, Tensor) or values.ndim != 4 or len(values) != 1:
        found = f"{list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"{named} makes pixel_values {found} of one picture. It would be [1, channel, row, col]. "
            "Pass the tensors that the model takes as inputs=."
        )
    return values[0].float()


def _checked(processor: Any) -> Any:
    """Return the image processor: a processor of several modalities has one inside."""
    inner = getattr(processor, "image_processor", processor)
    if not callable(inner):
        raise InputError(
            f"processor= is a {type(processor).__name__}. It would be an image processor of transformers, or a "
            "transform of torchvision. Leave it out for the model's own."
        )
    return inner


def _transform(processor: Any, *, options: TransformersOptions) -> Any:
    """Return a torchvision or timm transform, the user's own or inside of timm's wrapper; None for all others."""
    from transformers.image_processing_utils import BaseImageProcessor

    transform = getattr(processor, "val_transforms", processor)
    if isinstance(transform, BaseImageProcessor):
        return None
    if options != TransformersOptions():
        raise InputError(
            f"The size asked for ({options}) cannot be told to {type(processor).__name__}. An image processor of "
            "transformers can be told. Pass a transform that makes that size, and no options."
        )
    return transform


def _overrides(size_px: Size, *, model: nn.Module, processor: Any, options: TransformersOptions) -> dict[str, Any]:
    """Return what to tell the processor so that it makes the size that was asked for."""
    size = options.asked_px
    if not options.whole:
        return {} if size is None else _sized(processor, size)
    size = size or native_size(model) or _output(processor)
    if size is None:
        raise InputError(
            f"{type(processor).__name__} has no size, so the whole picture has none to be brought to. "
            "A size is needed. Pass size_px (--size)."
        )
    if options.keep_aspect:
        unit, scale = _unit(model), min(size) / min(size_px)
        size = (_rounded(size_px[0] * scale, unit), _rounded(size_px[1] * scale, unit))
    off = {name: False for name in _MORE if getattr(processor, name, None)}
    return {"size": {"height": size[1], "width": size[0]}, **off}


def _rounded(side: float, unit: int) -> int:
    return max(1, round(side / unit)) * unit


def _unit(model: nn.Module) -> int:
    """Return the side to whose multiples an input is rounded: the patch; 32 for models in stages."""
    patch = vision_setting(model, "patch_size")
    patch = patch[0] if isinstance(patch, list | tuple) and patch else patch
    return patch if isinstance(patch, int) and patch >= 8 else 32


def _sized(processor: Any, size_px: Size) -> dict[str, Any]:
    """Return the processor's settings for an input of `size_px`, in its own words and proportions."""
    width, height = size_px
    size, crop = _sides(getattr(processor, "size", None)), _sides(getattr(processor, "crop_size", None))
    box = {"height": height, "width": width}
    cuts = bool(getattr(processor, "do_center_crop", None)) and "height" in crop
    settings: dict[str, Any] = {"crop_size": box} if cuts else {}
    if "height" in size:
        high, wide = (size[side] / crop[side] if cuts else 1.0 for side in ("height", "width"))
        settings["size"] = {"height": int(height * high), "width": int(width * wide)}
    elif "shortest_edge" in size:
        ratio = max(1.0, size["shortest_edge"] / min(crop.values())) if cuts else 1.0
        short = int(min(size_px) * ratio)
        settings["size"] = {"shortest_edge": short}
        if "longest_edge" in size:
            settings["size"]["longest_edge"] = max(*size_px, int(size["longest_edge"] * short / size["shortest_edge"]))
    elif "longest_edge" in size:
        settings["size"] = {"longest_edge": max(size_px)}
        settings.update({"pad_size": box} if "height" in _sides(getattr(processor, "pad_size", None)) else {})
    return settings


def _output(processor: Any) -> Size | None:
    """Return (width, height) of what the processor makes, as far as its settings name it."""
    for sides in (_sides(getattr(processor, "crop_size", None)), _sides(getattr(processor, "size", None))):
        if "height" in sides:
            return sides["width"], sides["height"]
        for edge in ("shortest_edge", "longest_edge"):
            if edge in sides:
                return sides[edge], sides[edge]
    return None


def _sides(size: Any) -> dict[str, int]:
    """Return a size's sides that are set, by name."""
    try:
        return {str(name): int(side) for name, side in dict(size).items() if side}
    except (TypeError, ValueError):
        return {}


def _check_shape(size_px: Size, *, processor: Any, overrides: dict[str, Any]) -> None:
    """Refuse a picture that is too thin to be measured, or that would grow beyond memory before it is cut."""
    sides = _sides(overrides.get("size") or getattr(processor, "size", None))
    grows = set(sides) == {"shortest_edge"} or bool(getattr(processor, "do_thumbnail", False))
    if min(size_px) < THINNEST or (grows and max(size_px) > _THINNEST_SHARE * min(size_px)):
        wide = "wider than it is long" if size_px[0] > size_px[1] else "longer than it is wide"
        raise InputError(
            f"The picture of {size_px[0]} x {size_px[1]} px is too thin for {type(processor).__name__}: far {wide}. "
            f"It would have {THINNEST} px on each side, and where the shorter side is brought to a size, the longer at "
            f"most {_THINNEST_SHARE} times as many. Crop it first, or pass options=TransformersOptions(crop=False)."
        )


def _check_result(
    tensor: Float[Tensor, "channel row col"], geometry: Geometry, *, processor: Any, options: TransformersOptions
) -> None:
    """Refuse where the processor did not do as it was told, or not what it was measured to do."""
    size = (int(tensor.shape[2]), int(tensor.shape[1]))
    named = type(processor).__name__
    if size != geometry.model_px:
        raise InputError(
            f"{named} gave {size[0]} x {size[1]} px for a picture and {geometry.model_px} for one of the same size. "
            "It would do the same to both. Pass another processor, or inputs=."
        )
    if options.whole and not all(isinstance(step, Resize) for step in geometry.steps):
        raise InputError(
            f"{named} cannot bring the whole picture to a size ({geometry}). One that resizes only could. "
            "Pass such a processor, or leave keep_aspect and crop=False out."
        )
    asked = None if options.keep_aspect else options.asked_px
    if asked is not None and size != asked:
        raise InputError(
            f"{named} gives {size[0]} x {size[1]} px where {asked[0]} x {asked[1]} px were asked for. It cannot be "
            "told that size. Leave size_px out, or pass a processor= that makes it."
        )

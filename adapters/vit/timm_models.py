"""timm's other models with token attention: windows, stages, pools, several grids, late class tokens.

Nothing is written down by family here. Which token stands where is found by the engine of
`layouts.py`, and which sizes a model takes by a rehearsal (`rehearsal.py`).
"""

import inspect
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.media import Photo

from ..pixels import Geometry, Size
from .layouts import PictureFacts, Traced
from .naflex import Packing, is_packed, unpacked
from .pictures import CallModel, bring, checked_options, input_size, phrase, runner
from .rehearsal import (
    attends,
    built_for,
    check_attends,
    check_size,
    explaining,
    forget,
    meta_twin,
    refuse_linear,
    takes_size,
)
from .timm import claims_plain
from .timm_input import TimmOptions, config_px, photo_tensor
from .timm_names import is_plain, labels_of, other_families
from .timm_open import is_ours, open_model
from .timm_run import call_timm, logits_timm, readout_of, score_timm

__all__ = ["TimmModels", "TimmOptions", "adapter"]


class TimmModels(Traced):
    """The adapter `timm.models`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "timm.models"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model is timm's, or registered with timm, and no plain vision transformer."""
        return self.claimed_class(model) is not None and not claims_plain(model)

    def claimed_class(self, model: nn.Module) -> type | None:
        """Return the class of timm that the model is of; of one that only has timm's config, the base of all."""
        own = (cls for cls in type(model).__mro__ if cls.__module__.startswith("timm.models."))
        return next(own, nn.Module if isinstance(getattr(model, "pretrained_cfg", None), dict) else None)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is that of a timm repository, and not of a plain vision transformer."""
        name = str(config.get("architecture", ""))
        return timm.is_model(name) and not is_plain(name)

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a model by timm's name, `NAME@FILE` for a local checkpoint, or with the catalog's weights."""
        return open_model(name, weights=weights, plain=False)

    def models(self) -> Iterable[ModelFamily]:
        """What timm has of these, by layout."""
        return other_families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures to the model as timm does, or take the user's own tensors.

        A model that was opened by name is set to another size where its class can be.

        Raises
        ------
        InputError
            No picture, another modality, a transform that cannot be inverted, a size that the
            model cannot take (the message says which it can), tensors that do not fit the pictures.
        NoAttentionError
            The model has no attention.
        ModelError
            Its attention is not between tokens.

        """
        options = checked_options(media, options, kind=TimmOptions)
        packing: Packing | None = None
        if is_packed(media.inputs):
            media, packing = _unpacked(media, model)
        channels, native = _channels(model), native_px(model)

        def size_of(size_px: Size) -> Size:
            return input_size(size_px, native_px=native, unit_px=unit_px(model), options=options)

        def make(photo: Photo) -> tuple[Tensor, Geometry]:
            return photo_tensor(photo, model=model, processor=processor, options=options, size_of=size_of)

        brought = bring(media, model=model, make=make, channels=channels)
        size = brought.size_px
        channels = channels or int(brought.inputs.shape[1])
        call: CallModel = call_timm
        if is_ours(model):
            _fit(model, size)
            call = _call_at(size)
        call = packing or call
        found = (
            None
            if packing
            else check_size(
                model,
                size,
                native_px=native,
                unit_px=unit_px(model),
                channels=channels,
                call=call,
                advice=lambda: _advice(model, size),
            )
        )
        if found is not None:
            check_attends(found, named=type(model).__name__)
        shape = tuple(brought.inputs.shape)
        facts = PictureFacts(
            model=weakref.ref(model),
            geometries=brought.geometries,
            shape=shape,
            call=call,
            form=packing.form if packing else (),
        )
        explain = explaining(size, native_px=native, advice=lambda: _advice(model, size))
        if not attends(facts):
            raise refuse_linear(found, named=type(model).__name__)
        return Prepared(
            run=runner(model, brought.inputs, call=call, explain=explain),
            inputs=(brought.inputs,),
            media=brought.photos,
            facts=facts,
            preprocessing=phrase(brought.geometries),
            readout=readout_of(model),
        )

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TimmOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TimmOptions(size_px=size_px, keep_aspect=keep_aspect)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a class, summed over the samples; see `timm_run.score_timm`."""
        return score_timm(output, target)

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return the class names in the model's config; see `protocol.NamesClasses`."""
        return labels_of(model)

    def logits(self, output: Any) -> Float[Tensor, "sample cls"]:
        """Return the class logits; see `protocol.Classifies`."""
        return logits_timm(output)


def _unpacked(media: MediaGiven, model: nn.Module) -> tuple[MediaGiven, Packing]:
    """Return packed patches as images, and how the model is called with these."""
    embeds: Any = getattr(model, "embeds", None)
    if embeds is None:
        raise InputError(
            f"inputs= are packed patches, and {type(model).__name__} takes images. Patches are for NaFlexViT. "
            "Pass a tensor [sample, 3, row, col], or image=."
        )
    high, wide = embeds.patch_size
    images, call = unpacked(media.inputs, patch_px=(high, wide), channels_last=getattr(embeds, "channels_last", True))
    return replace(media, inputs=images), call


def native_px(model: nn.Module) -> Size:
    """Return (width, height) that the model was built for.

    It is what the patch embedding insists on, else the size of timm's config if the model takes it.
    One that was built for another size (`img_size=`) mostly keeps it nowhere: then sizes are tried.
    """
    embed: Any = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    if isinstance(size, tuple) and (getattr(embed, "strict_img_size", False) or config_px(model) is None):
        return int(size[1]), int(size[0])
    said = config_px(model) or (224, 224)
    return said if is_ours(model) else built_for(model, said, channels=_channels(model) or 3, call=call_timm)


def _fits(model: nn.Module, size_px: Size) -> bool:
    return takes_size(model, size_px, channels=_channels(model) or 3, call=call_timm)


def unit_px(model: nn.Module) -> int:
    """Return the side of a cell of the model's last stage: sides of inputs are best multiples of it."""
    info: Any = getattr(model, "feature_info", None)
    info = getattr(info, "info", info)
    reduction = info[-1].get("reduction") if isinstance(info, list) and info and isinstance(info[-1], dict) else None
    return int(reduction) if isinstance(reduction, int | float) and reduction >= 1 else 32


def _channels(model: nn.Module) -> int | None:
    given = getattr(model, "in_chans", None)
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return int(given) if isinstance(given, int) else first.in_channels if first is not None else None


def _advice(model: nn.Module, size_px: Size) -> str:
    """Return how a model gets another size, as the end of a sentence; empty where it cannot."""
    high_wide = f"({size_px[1]}, {size_px[0]})"
    if hasattr(model, "set_input_size"):
        return f", or call model.set_input_size({high_wide}) before" if _settable(model, size_px) else ""
    if any("img_size" in inspect.signature(cls).parameters for cls in type(model).__mro__):
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "NAME")
        return f', or build it with timm.create_model("{name}", img_size={high_wide})'
    return ""


def _settable(model: nn.Module, size_px: Size) -> bool:
    """Whether a model would take a size if it were set to it; tried on a twin."""
    try:
        twin = meta_twin(model)
        _set_size(twin, size_px)
    except Exception:  # windows that do not divide the size, or a model that cannot be copied
        return False
    return _fits(twin, size_px)


# The size that a model of our own was set to.
_set_to: "weakref.WeakKeyDictionary[nn.Module, Size]" = weakref.WeakKeyDictionary()


def _fit(model: nn.Module, size_px: Size) -> None:
    """Set a model of our own to a size that it does not take as it is, where its class can be set."""
    if hasattr(model, "set_input_size") and not _fits(model, size_px) and _settable(model, size_px):
        _set(model, size_px)


def _set_size(model: Any, size_px: Size) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on how timm 1.0 resizes its tables
        model.set_input_size((size_px[1], size_px[0]))


def _set(model: nn.Module, size_px: Size) -> None:
    _set_size(model, size_px)
    _set_to[model] = size_px
    forget(model)


def _call_at(size_px: Size) -> CallModel:
    """Return how a model of our own is called: set back to the size of its input if another was drawn meanwhile."""

    def call(model: nn.Module, pixels: Tensor) -> Any:
        if _set_to.get(model, size_px) != size_px:
            _set(model, size_px)
        return call_timm(model, pixels)

    return call


adapter = TimmModels()

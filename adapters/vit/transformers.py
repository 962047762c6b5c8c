"""The vision models of transformers: ViT, DINOv2 and v3, BEiT, Swin, Hiera, PVT, SegFormer, SAM's encoder, ...

Any class that looks at one picture and at nothing else, with or without a head. Which token stands
where is found by the engine of `layouts.py`; here is how pictures come to the model, and what its
answer is read from.

Left to other parts: video, and models of picture and text (their vision towers are taken here).
Detectors with a decoder of object queries are in `transformers_detectors`.
"""

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError
from mmattn.interception.calls import Call
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.media import Photo

from ..hub import said
from ..pixels import Geometry, Size
from .layouts import PictureFacts, Traced
from .pictures import CallModel, bring, checked_options, class_score, phrase, runner
from .transformers_detectors import DetectorFacts, detector_layers, detector_left_out, detects, refuse_deformable
from .transformers_input import TransformersOptions, native_size, photo_tensor, vision_setting
from .transformers_open import families, is_picture_model, labels_of, open_model, opens_config, takes
from .transformers_patches import images_of, is_cut, patches_of

__all__ = ["TransformersOptions", "TransformersVit", "adapter"]


class TransformersVit(Traced):
    """The adapter `transformers.vit`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "transformers.vit"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model is one of transformers' that looks at single pictures alone, or a detector."""
        return is_picture_model(model) or detects(model)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names such a class."""
        return opens_config(config)

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a folder or a name on the Hugging Face hub, with its processor and class names."""
        return open_model(name, weights=weights)

    def models(self) -> Iterable[ModelFamily]:
        """What can be opened, by what the models are for."""
        return families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures to the model by its image processor, or take the user's own pixel values.

        Parameters
        ----------
        media
            `image`: a Photo or several; `inputs`: pixel values, or what an image processor returns.
        processor
            An image processor, or a transform of torchvision; None: the one saved with the model,
            else the one of its class.
        options
            TransformersOptions.

        Raises
        ------
        InputError
            No picture, another modality, a processor that cannot be inverted, a size that the model
            cannot take, tensors that do not fit the pictures.
        ModelError
            A model that hides patches at random, so that nobody knows which it sees; deformable attention.

        """
        refuse_deformable(type(model))
        options = checked_options(media, options, kind=TransformersOptions)
        _refuse_random_masks(model)

        def make(photo: Photo) -> tuple[Tensor, Geometry]:
            return photo_tensor(photo, model=model, processor=processor, options=options)

        given = replace(media, inputs=_pixel_values(media.inputs, model=model))
        channels = vision_setting(model, "num_channels")
        brought = bring(
            given,
            model=model,
            make=make,
            channels=channels if isinstance(channels, int) else None,
            maker="processor",
        )
        more = _in_order(model, brought.inputs)
        call = _call(model, brought.size_px, options=options, more=more)
        return Prepared(
            run=runner(model, brought.inputs, call=call, explain=_explained(brought.size_px, options=options)),
            inputs=(brought.inputs, *more.values()),
            media=brought.photos,
            facts=(DetectorFacts if detects(model) else PictureFacts)(
                model=weakref.ref(model),
                geometries=brought.geometries,
                shape=tuple(brought.inputs.shape),
                call=call,
            ),
            preprocessing=phrase(brought.geometries),
            readout="" if detects(model) else readout_of(model),
        )

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Join each call's queries and keys with the tokens of the model."""
        facts = prepared.facts
        return detector_layers(calls, facts) if isinstance(facts, DetectorFacts) else super().layers(calls, prepared)

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        facts = prepared.facts
        if isinstance(facts, DetectorFacts):
            return detector_left_out(calls, facts)
        return super().left_out(calls, prepared)

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TransformersOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TransformersOptions(size_px=size_px, keep_aspect=keep_aspect)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a class, summed over the samples; None: each sample's own top class.

        Raises
        ------
        ModelError
            The model has no classifier, or one that gives more than one answer a picture.
        InputError
            The target is no class index.

        """
        return class_score(self.logits(output), target)

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return the names of a classifier's classes, from its config; see `protocol.NamesClasses`."""
        return labels_of(model)

    def logits(self, output: Any) -> Float[Tensor, "sample cls"]:
        """Return the class logits; see `protocol.Classifies`."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = f"logits {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
            raise ModelError(
                f"The output {type(output).__name__} has {shape}, so a class target has nothing to point at. A model "
                "for image classification has logits [sample, class]. Use a method without a target (look, rollout)."
            )
        return logits


def readout_of(model: nn.Module) -> str:
    """Return what the model's answer is read from: `pool`, `cls`, `mean`, or empty where it is no one thing.

    Found out by what the class has: an attention pool with a learned query; a class token, unless
    its config or its classifier says that patches are averaged; else, with a pooler or a classifier
    and no class token, the mean. Models that answer for every place have none.
    """
    config: Any = model.config
    named = type(model).__name__
    if isinstance(inner := getattr(model, "timm_model", None), nn.Module):
        return {"token": "cls", "avg": "mean", "map": "pool"}.get(str(getattr(inner, "global_pool", "")), "")
    classifies = "ForImageClassification" in named
    if not classifies and ("For" in named or named.endswith(("Backbone", "Encoder"))):
        return ""
    if classifies and _averages(type(model)):
        return "mean"
    if any("Pooling" in type(part).__name__ and _learns(part) for part in model.modules()):
        return "pool"
    tokens = ("cls_token", "class_embedding", "class_token")
    if any(name.rsplit(".", 1)[-1] in tokens for name, _ in model.named_parameters()):
        return "mean" if getattr(config, "use_mean_pooling", False) else "cls"
    pools = any("pool" in name.rsplit(".", 1)[-1] for name, _ in model.named_modules())
    return "mean" if classifies or pools else ""


def _learns(part: nn.Module) -> bool:
    """Whether a pool has a query of its own."""
    return any(name in ("probe", "cls_token", "query", "latent") for name, _ in part.named_parameters(recurse=False))


def _averages(cls: type) -> bool:
    """Whether a classifier's forward averages the patches of its encoder itself, as CLIP's and SigLIP's do."""
    source = inspect.getsource(cls.forward)  # type: ignore[attr-defined]
    return "torch.mean(" in source or (".mean(dim=1)" in source and "cls_token" not in source)


def _refuse_random_masks(model: nn.Module) -> None:
    ratio = getattr(model.config, "mask_ratio", None)
    if ratio and takes(model, "noise") and all(part.is_mae for part in _hiera_parts(model)):
        raise ModelError(
            f"{type(model).__name__} hides {ratio:.0%} of the patches at random, others in every forward. Places need "
            "one forward that sees all. Open it by name, or build it with mask_ratio=0.0 in its config."
        )


def _hiera_parts(model: nn.Module) -> list[Any]:
    """Return the modules that mask only if they are told that this is pre-training."""
    return [part for part in model.modules() if hasattr(part, "is_mae")]


def _in_order(model: nn.Module, inputs: Float[Tensor, "sample channel row col"]) -> dict[str, Tensor]:
    """Return the noise by which an MAE that hides nothing also shuffles nothing: it sorts its patches by it."""
    if not takes(model, "noise") or _hiera_parts(model):
        return {}
    patch: Any = vision_setting(model, "patch_size")
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    count = (inputs.shape[2] // high) * (inputs.shape[3] // wide)
    return {"noise": torch.arange(count, device=inputs.device).float().expand(len(inputs), -1)}


def _pixel_values(inputs: Any, *, model: nn.Module) -> Any:
    """Return the pixel values of what the user passed: what an image processor returns has them inside."""
    if not isinstance(inputs, Mapping):
        return inputs
    if takes(model, "spatial_shapes") and is_cut(inputs) and "pixel_values" in inputs:
        return images_of(inputs)
    mask = inputs.get("pixel_mask")
    whole = isinstance(mask, Tensor) and bool(mask.bool().all())  # nothing is masked
    known = ("pixel_values", "pixel_mask") if whole else ("pixel_values",)
    more = [name for name, value in inputs.items() if name not in known and value is not None]
    more = [name for name in more if name != "labels" and takes(model, name)]
    if more or "pixel_values" not in inputs:
        raise InputError(
            f"inputs= holds {', '.join(map(str, inputs)) or 'nothing'}. This adapter runs the model on pixel_values "
            "alone. Pass those, or record your own call with mmattn.capture."
        )
    return inputs["pixel_values"]


def _call(model: nn.Module, size: Size, *, options: TransformersOptions, more: Mapping[str, Tensor]) -> CallModel:
    """Return how the model is called; positions are interpolated only if another size was asked for."""
    asked = options.size_px is not None or options.keep_aspect
    interpolates = asked and size != native_size(model) and takes(model, "interpolate_pos_encoding")
    settings: dict[str, Any] = {**more, "interpolate_pos_encoding": True} if interpolates else dict(more)

    def call(alive: nn.Module, pixels: Tensor) -> Any:
        _forget_hooks(alive)
        if takes(alive, "spatial_shapes"):
            return alive(**patches_of(pixels, patch_px=vision_setting(alive, "patch_size")), **settings)
        return alive(pixel_values=pixels, **settings)

    return call


def _forget_hooks(model: nn.Module) -> None:
    """Let a copy without hooks install transformers' own again, by which heads collect hidden states (5.23)."""
    if not any(module._forward_hooks for module in model.modules()):
        for module in model.modules():
            module.__dict__.pop("_output_capturing_hooks_installed", None)


def _explained(size: Size, *, options: TransformersOptions) -> Callable[[nn.Module, Exception], InputError | None]:
    """Return what says which sizes there are, where a forward fails on another one than the model's own."""
    asked = options.size_px is not None or options.keep_aspect

    def explain(model: nn.Module, problem: Exception) -> InputError | None:
        native = native_size(model)
        if size == native:
            return None
        fits = f"It was made for {native[0]} x {native[1]} px" if native else "Its config names no size"
        told = not asked and takes(model, "interpolate_pos_encoding")
        return InputError(
            f"{type(model).__name__} cannot take inputs of {size[0]} x {size[1]} px: {said(problem)}. {fits}"
            + ("; positions are interpolated for others where they are asked for. " if told else ". ")
            + (
                "Pass options=TransformersOptions(size_px=...)."
                if told
                else "Leave the size out, or pass a larger one."
            )
        )

    return explain


adapter = TransformersVit()

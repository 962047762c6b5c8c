"""timm's plain vision transformers: ViT, DeiT, DINOv2 and v3, EVA and EVA-02, BEiT, SigLIP, hybrids.

One sequence of tokens through every layer: some prefix tokens, then the patches row by row.
A layer joins that axis with itself; an attention pool joins its learned queries with it.
"""

import contextlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from mmattn.errors import ModelError
from mmattn.interception.blocks import to_blocks
from mmattn.interception.calls import Call, Emit
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.maps import AttentionLayer
from mmattn.schema.media import Photo
from mmattn.schema.weights import Blocks, Dense

from ..pixels import Geometry, Size
from .layouts import PictureFacts, left_out, picture_layers
from .pictures import Brought, bring, checked_options, phrase, runner
from .timm_input import TimmOptions, photo_tensor, plain_size
from .timm_names import is_plain, labels_of, plain_families
from .timm_open import open_model
from .timm_run import call_timm, logits_timm, readout_of, score_timm
from .timm_tokens import Layout, check_size, layout_of

__all__ = ["TimmOptions", "TimmVit", "adapter"]

PLAIN = (VisionTransformer, VisionTransformerRelPos, Eva, Beit)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `layers` needs: the tokens, where each sample's pixels came from, lambdas of differential attention."""

    layout: Layout
    geometries: tuple[Geometry, ...]
    lambdas: Mapping[str, float]


class TimmVit:
    """The adapter `timm.vit`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "timm.vit"
    default_stream = "vision"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model is one of timm's plain vision transformers, or derived from one."""
        return claims_plain(model)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is that of a timm repository with a plain vision transformer."""
        return is_plain(str(config.get("architecture", "")))

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a model by timm's name, `NAME@FILE` for a local checkpoint, or with the catalog's weights."""
        return open_model(name, weights=weights, plain=True)

    def models(self) -> Iterable[ModelFamily]:
        """What timm has of these, by family."""
        return plain_families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures to the model as timm does, or take the user's own tensors.

        Raises
        ------
        InputError
            No picture, another modality, a transform that cannot be inverted, a size that the
            model cannot take, tensors that do not fit the pictures.
        ModelError
            Patch dropout that is on, so that nobody knows which patches are seen.

        """
        options = checked_options(media, options, kind=TimmOptions)
        _refuse_patch_dropout(model)

        def size_of(size_px: Size) -> Size:
            return plain_size(size_px, model=model, options=options)

        def make(photo: Photo) -> tuple[Tensor, Geometry]:
            return photo_tensor(photo, model=model, processor=processor, options=options, size_of=size_of)

        # Of a hybrid's patch embedding the first convolution, not the last, sees the picture.
        channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), None)
        brought = bring(media, model=model, make=make, channels=channels)
        check_size(model, brought.size_px)
        return Prepared(
            run=runner(model, brought.inputs, call=call_timm),
            inputs=(brought.inputs,),
            media=brought.photos,
            facts=_facts(model, brought),
            preprocessing=phrase(brought.geometries),
            readout=readout_of(model),
        )

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TimmOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TimmOptions(size_px=size_px, keep_aspect=keep_aspect)

    def taps(self, model: nn.Module, emit: Emit) -> contextlib.AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return contextlib.nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Join each call's queries and keys with the tokens of the model."""
        facts: Facts | PictureFacts = prepared.facts
        if isinstance(facts, PictureFacts):
            return picture_layers(calls, facts)
        by_module: dict[str, list[Call]] = {}
        for call in calls:
            if call.kind == "token":
                by_module.setdefault(call.module, []).append(call)
        layers: list[AttentionLayer] = []
        for module, own in by_module.items():
            if module in facts.lambdas:
                layers.append(_layer(own[0], facts, storage=_difference(own, facts.lambdas[module]), signed=True))
            else:
                layers += [_layer(call, facts, storage=to_blocks(call, mask=_everything(call))) for call in own]
        return layers

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        return left_out(calls, prepared.facts) if isinstance(prepared.facts, PictureFacts) else ()

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a class, summed over the samples; None: each sample's own top class.

        Raises
        ------
        ModelError
            The model has no classifier.
        InputError
            The target is no class index.

        """
        return score_timm(output, target)

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        """Return the class names in the model's config; see `protocol.NamesClasses`."""
        return labels_of(model)

    def logits(self, output: Any) -> Float[Tensor, "sample cls"]:
        """Return the class logits; see `protocol.Classifies`."""
        return logits_timm(output)


def claims_plain(model: nn.Module) -> bool:
    """Whether a model is one of timm's plain vision transformers, or derived from one."""
    return isinstance(model, PLAIN) and hasattr(getattr(model, "patch_embed", None), "dynamic_feat_size")


def _facts(model: nn.Module, brought: Brought) -> Facts | PictureFacts:
    """Return what layers need; tokens behind a stem of convolutions lie where its kernels look, which a trace tells."""
    if _has_stem(model):
        return PictureFacts(
            model=weakref.ref(model),
            geometries=brought.geometries,
            shape=tuple(brought.inputs.shape),
            call=call_timm,
        )
    return Facts(
        layout=layout_of(model, size_px=brought.size_px),
        geometries=brought.geometries,
        lambdas={
            path: float(module._compute_lambda().detach())
            for path, module in model.named_modules()
            if hasattr(module, "_compute_lambda")
        },
    )


def _has_stem(model: nn.Module) -> bool:
    """Whether patches are made by more than one convolution that cuts the picture into them."""
    embed: Any = model.patch_embed
    convolutions = [part for part in embed.modules() if isinstance(part, nn.Conv2d)]
    return len(convolutions) > 1 or any(part.kernel_size != part.stride for part in convolutions)


def _refuse_patch_dropout(model: nn.Module) -> None:
    drop: Any = getattr(model, "patch_drop", None)
    if getattr(drop, "prob", 0) and getattr(drop, "training", False):
        raise ModelError(
            f"The model drops {drop.prob:.0%} of its patches at random (patch dropout, training mode), and does not "
            "say which. In eval mode every patch is seen. Call model.eval() first."
        )


def _layer(call: Call, facts: Facts, *, storage: Blocks, signed: bool = False) -> AttentionLayer:
    layout = facts.layout
    _, heads, queries, keys = storage.source.shape
    pooled = bool(layout.pool) and call.module.startswith(layout.pool)
    query: tuple[Axis, ...] = (Slots.count(layout.pool_slots),) if pooled else _axes(facts, queries, call)
    return AttentionLayer(
        name=call.module,
        stream="vision",
        kind="cross" if pooled else "self",
        query=query,
        key=_axes(facts, keys, call),
        heads=heads,
        residual="none" if pooled or (layout.refine and call.module.startswith(layout.refine)) else "identity",
        normalized="signed" if signed else "over_keys",
        error=call.error,
        storage=(storage,),
    )


def _everything(call: Call) -> Bool[Tensor, "1 1 1 key"] | None:
    """Return the mask of a softmax that was only seen: in plain transformers every token may look at every one."""
    if call.weights is None:
        return None
    everything: Tensor = torch.ones(1, 1, 1, call.weights.shape[-1], dtype=torch.bool, device=call.weights.device)
    return everything


def _axes(facts: Facts, length: int, call: Call) -> tuple[Axis, ...]:
    """Return the axis of `length` tokens, one alone if all samples share it."""
    layout = facts.layout
    content, special = layout.rows * layout.cols, len(layout.special)
    if length not in (content, content + special):
        raise ModelError(
            f"{call.module} attends over {length} tokens. Expected are {content} patches ({layout.rows} x "
            f"{layout.cols}), with {special} other tokens or without. Some were dropped or added on the way; "
            "mmattn.capture shows such a layer as it is."
        )
    with_special = length == content + special
    distinct = list(dict.fromkeys(facts.geometries))
    made = {geometry: layout.axis(geometry, with_special=with_special) for geometry in distinct}
    return tuple(made[geometry] for geometry in (distinct if len(distinct) == 1 else facts.geometries))


def _difference(calls: list[Call], factor: float) -> Blocks:
    """Return the signed map of differential attention, A1 - lambda A2 (Ye et al. 2024), dense.

    timm's fused path makes two calls; its plain path one, whose weights are the difference already.
    """
    first = to_blocks(calls[0])
    if len(calls) == 1:
        return first
    second = to_blocks(calls[1])
    return Blocks(source=Dense(weights=first.weights() - factor * second.weights()), sample=first.sample)


adapter = TimmVit()

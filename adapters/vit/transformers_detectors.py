"""Detectors of transformers with a decoder of object queries: DETR and those that attend as it does.

    vision     cells of the backbone's last map (one each 32 pixels) ask each other
    decoder    learned queries, one for each thing that may be found, ask each other and those cells

Queries are slots: they stand for no place until the model has answered. Where cells stand is found by
the run on indices, as for every vision model; queries and cells are then told by the modules' paths.

Deformable attention (Deformable DETR, RT-DETR, RF-DETR, D-FINE, Grounding DINO, ...) has no weights over cells: each
query reads a few points between them that it chose itself. It is refused by name, and so is the whole
model, whose other layers join the same points.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmattn.errors import ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.layers import AttentionLayer

from .layouts import PictureFacts, left_out, picture_layers

_DETR = re.compile(r"(Detr|ConditionalDetr|DabDetr|TableTransformer)(Model|ForObjectDetection)")
_DEFORMABLE = re.compile(
    r"(DeformableDetr|RTDetr|RTDetrV2|DFine|Deimv2|RfDetr|LwDetr|GroundingDino|MMGroundingDino|OmDetTurbo)"
    r"(Model|ForObjectDetection)"
)
_DECODER = re.compile(r"(.*\.)?decoder\.layers\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class DetectorFacts(PictureFacts):
    """What the layers of a detector need beside those of its encoder."""


def is_detector(cls: type) -> bool:
    """Whether a class is such a detector, deformable or not.

    Examples
    --------
    >>> import transformers
    >>> [is_detector(cls) for cls in (transformers.DetrModel, transformers.RTDetrModel, transformers.ViTModel)]
    [True, True, False]
    """
    return any(_DETR.fullmatch(name) or _DEFORMABLE.fullmatch(name) for name in _names(cls))


def refuse_deformable(cls: type) -> None:
    """Raise if a class attends by sampling.

    Raises
    ------
    ModelError
        It does, and is named.
    """
    if any(_DEFORMABLE.fullmatch(name) for name in _names(cls)):
        raise ModelError(
            f"{cls.__name__} attends by deformable sampling: each query reads a few points that it chose between the "
            "cells, and has no weights over them. Attention over cells is what is drawn. Use DETR, or see its other "
            "attention without places: mmattn.capture(model)."
        )


def detector_layers(calls: Sequence[Call], facts: DetectorFacts) -> tuple[AttentionLayer, ...]:
    """Return the layers of the encoder, and of a decoder whose queries ask each other and the encoder's cells."""
    within = [call for call in calls if not _DECODER.match(call.module)]
    found = list(picture_layers(within, facts))
    cells = next((layer.query for layer in reversed(found) if layer.kind == "self"), ())
    queries: dict[int, Slots] = {}
    for call in calls:
        if _DECODER.match(call.module) and call.kind == "token":
            found.append(_asked(call, cells=cells, queries=queries, samples=facts.shape[0]))
    order = {call.module: number for number, call in reversed(list(enumerate(calls)))}
    return tuple(sorted(found, key=lambda layer: order[layer.name]))


def detector_left_out(calls: Sequence[Call], facts: DetectorFacts) -> tuple[str, ...]:
    """Return what is no layer, with the reason; see `protocol.LeavesOut`."""
    return left_out([call for call in calls if not _DECODER.match(call.module)], facts)


def _asked(call: Call, *, cells: tuple[Axis, ...], queries: dict[int, Slots], samples: int) -> AttentionLayer:
    storage = to_blocks(call)
    blocks, _, asking, keys = storage.source.shape
    crosses = bool(cells) and keys == len(cells[0]) and "self_attn" not in call.module
    if blocks != samples or (not crosses and asking != keys):
        raise ModelError(
            f"The attention {call.module} joins {blocks} x {asking} queries and {keys} keys, and the encoder has "
            f"{samples} x {len(cells[0]) if cells else 0} cells. A decoder asks those, or its own queries. Use "
            "mmattn.capture, which knows positions only."
        )
    slots = queries.setdefault(asking, Slots.count(asking))
    return AttentionLayer(
        name=call.module,
        query=(slots,),
        key=cells if crosses else (slots,),
        heads=head_count(call),
        storage=(storage,),
        stream="decoder",
        kind="cross" if crosses else "self",
        error=call.error,
    )


def _names(cls: type) -> list[str]:
    return [base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0] == "transformers"]


def detects(model: nn.Module) -> bool:
    """Whether a model is such a detector."""
    cls: Any = type(model)
    return is_detector(cls)

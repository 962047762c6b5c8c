"""The layers of a model: those of its vision tower, and between all other sides that its form names.

Outside of the vision tower words ask words or patches, patches ask words, slots ask both, or all
stand in one sequence.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Attributed, Blocks, Factored

from ..vit.layouts import PictureFacts, left_out, picture_layers
from .transformers_forms import Form, Joins, Side

Sides = Mapping[Side, tuple[Axis, ...]]


def placed(
    calls: Sequence[Call],
    *,
    form: Form,
    picture: PictureFacts | None,
    sides: Sides,
    samples: int,
    notes: Mapping[str, str] | None = None,
    derived: Callable[[tuple[Axis, ...]], Sides] | None = None,
    blind: Bool[Tensor, "sample query"] | None = None,
) -> list[AttentionLayer]:
    """Return each call on the axes of those who ask and are asked, in the order in which they ran.

    Parameters
    ----------
    form
        Which modules join which sides.
    picture
        Of the vision tower that runs on indices; None without one.
    sides
        The axes of each side; `vision`, where it is not there, is what the vision tower's last layer has.
    samples
        Number of pairs.
    notes
        What a caption says of a layer, by its module's path.
    derived
        Makes further sides of the patches' axes.
    blind
        Which words look at no picture, whatever their rows of cross-attention say: these are left empty.
    """
    within, beside = _by_side(calls, form)
    found = [] if picture is None else list(picture_layers(within, picture))
    vision: tuple[Axis, ...] = next((layer.query for layer in reversed(found) if layer.kind == "self"), ())
    known = {"vision": vision, **sides}
    known |= {} if derived is None else derived(known["vision"])
    turns: Counter[str] = Counter()
    for call in beside:
        joins = form.joins_of(call.module, turn=turns[call.module])
        turns[call.module] += 1
        if joins is not None and call.kind == "token":
            layer = joined_layer(call, joins, sides=known, samples=samples)
            found.append(layer if blind is None or joins.key == joins.query else _without(layer, blind, joins))
    order = {call.module: number for number, call in reversed(list(enumerate(calls)))}
    told = [replace(layer, note=note) if (note := (notes or {}).get(layer.name)) else layer for layer in found]
    return sorted(told, key=lambda layer: order[layer.name])


def not_placed(calls: Sequence[Call], *, form: Form, picture: PictureFacts | None) -> tuple[str, ...]:
    """Return what is no token attention, or joins what is not known, with the reason; see `protocol.LeavesOut`."""
    within, beside = _by_side(calls, form)
    unknown = dict.fromkeys(call.module for call in beside if form.joins_of(call.module) is None)
    reasons = () if picture is None else left_out(within, picture)
    return (*reasons, *(f"{module}: which tokens it joins is not known" for module in unknown))


def _by_side(calls: Sequence[Call], form: Form) -> tuple[list[Call], list[Call]]:
    """Return the calls of the vision tower, and all others."""
    inside = [bool(form.vision) and call.module.startswith(f"{form.vision}.") for call in calls]
    within = [call for call, here in zip(calls, inside, strict=True) if here]
    return within, [call for call, here in zip(calls, inside, strict=True) if not here]


def joined_layer(call: Call, joins: Joins, *, sides: Sides, samples: int) -> AttentionLayer:
    """Return the layer of one attention between tokens of a text and patches.

    Parameters
    ----------
    sides
        The axes of each, one a sample or one for all.
    samples
        Number of pairs.

    Raises
    ------
    ModelError
        It joins something else: as many tokens as neither side has.
    """
    allowed = None if call.q is not None else _allowed(call, joins, sides)
    storage = _by_picture(to_blocks(call, mask=allowed), joins, sides=sides, samples=samples)
    blocks, _, queries, keys = storage.source.shape
    if storage.query_index is not None:
        blocks, queries, keys = samples, *(side.shape[1] * (blocks // samples) for side in _indices(storage))
    wanted = (samples, *(max((len(axis) for axis in sides[side]), default=0) for side in (joins.query, joins.key)))
    if (blocks, queries, keys) != wanted:
        raise ModelError(
            f"The attention {call.module} joins {blocks} x {queries} queries and {keys} keys. Between {joins.query} "
            f"and {joins.key} it would join {wanted[0]} x {wanted[1]} and {wanted[2]}. Use mmattn.capture, which knows "
            "positions only."
        )
    return AttentionLayer(
        name=call.module,
        query=sides[joins.query],
        key=sides[joins.key],
        heads=head_count(call),
        storage=(storage,),
        stream=joins.stream,
        kind="self" if joins.query == joins.key else "cross",
        error=call.error,
    )


def _without(layer: AttentionLayer, blind: Bool[Tensor, "sample query"], joins: Joins) -> AttentionLayer:
    """Return a layer in which the rows of words are empty that look at nothing."""
    if joins.query != "decoder":
        return layer
    return replace(layer, storage=tuple(_emptied(blocks, blind.to(blocks.device)) for blocks in layer.storages))  # type: ignore[arg-type]


def _emptied(blocks: Blocks, blind: Bool[Tensor, "sample query"]) -> Blocks:
    source, seen = blocks.source, ~blind[:, None, :, None]
    assert not isinstance(source, Attributed)
    mask = seen if source.mask is None else source.mask & seen
    if isinstance(source, Factored):
        return replace(blocks, source=replace(source, mask=mask))
    return replace(blocks, source=replace(source, weights=source.weights * seen, mask=mask))


def _by_picture(storage: Blocks, joins: Joins, *, sides: Sides, samples: int) -> Blocks:
    """Return blocks of the pictures or tiles of each sample, one behind the other, at their places on one axis."""
    blocks, _, queries, keys = storage.source.shape
    count = blocks // samples
    lengths = tuple(max((len(axis) for axis in sides[side]), default=0) for side in (joins.query, joins.key))
    if count < 2 or blocks % samples or lengths != (queries * count, keys * count):
        return storage
    number = torch.arange(blocks, device=storage.device)
    within = (number % count)[:, None]
    return replace(
        storage,
        sample=number // count,
        query_index=within * queries + torch.arange(queries, device=storage.device),
        key_index=within * keys + torch.arange(keys, device=storage.device),
    )


def _indices(storage: Blocks) -> tuple[Tensor, Tensor]:
    assert storage.query_index is not None
    assert storage.key_index is not None
    return storage.query_index, storage.key_index


def _allowed(call: Call, joins: Joins, sides: Sides) -> Bool[Tensor, "#sample #head #query #key"] | None:
    """Return which keys were allowed where only the softmax was seen; None where that is not known."""
    if joins.causal is None or call.weights is None:
        return None
    queries, keys = call.weights.shape[-2:]
    mask = torch.tensor([[role != "pad" for role in axis.roles] for axis in sides[joins.key]])[:, None, None]
    if joins.causal:
        mask = mask & (torch.ones(queries, keys, dtype=torch.bool).tril() | _together(joins, sides))
    return mask.to(call.weights.device)


def _together(joins: Joins, sides: Sides) -> Bool[Tensor, "#sample 1 #query #key"]:
    """Return which tokens belong to the part of a sequence that sees itself whole."""
    if not joins.together:
        return torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    inside = torch.zeros(len(sides[joins.key]), len(sides[joins.key][0]), dtype=torch.bool)
    for sample, axis in enumerate(sides[joins.key]):
        assert isinstance(axis, Joined)
        inside[sample, axis.part(joins.together)[1].tolist()] = True
    return (inside[:, :, None] & inside[:, None, :])[:, None]

"""Calls of the real pass and events of the trace become layers: weights from the one, places from the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Dense, Normalized

from ..pixels import Geometry
from .arrange import arranged, order_of
from .axes import Side, side_of
from .trace import Event, Trace

_CLOSE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A call and the event of the trace that is the same attention."""

    call: Call
    event: Event


def paired(calls: Sequence[Call], trace: Trace) -> tuple[list[Joined], list[Call]]:
    """Return each token call with its event, module by module in order, and the calls that have none."""
    waiting: dict[str, list[Event]] = {}
    for event in trace.events:
        waiting.setdefault(event.module, []).append(event)
    found: list[Joined] = []
    alone: list[Call] = []
    for call in calls:
        own = waiting.get(call.module, [])
        match = next((event for event in own if _fits(call, event)), None)
        if call.kind != "token" or match is None:
            alone.append(call)
            continue
        own.remove(match)
        found.append(Joined(call=call, event=match))
    return found, alone


def _sides(call: Call) -> tuple[int, int]:
    if call.q is not None and call.k is not None:
        return int(call.q.shape[-2]), int(call.k.shape[-2])
    assert call.weights is not None
    return int(call.weights.shape[-2]), int(call.weights.shape[-1])


def _fits(call: Call, event: Event) -> bool:
    return _sides(call) == (event.query.shape[-1], event.key.shape[-1])


def layer_of(joined: Joined, trace: Trace, geometries: tuple[Geometry, ...], *, stream: str) -> AttentionLayer:
    """Return the layer of one attention."""
    call, event = joined.call, _landed(joined.event)
    order = order_of(call, event)
    query_ids, key_ids = order.blocks_of(event.query), order.blocks_of(event.key)
    query_ids = _unique_queries(query_ids, key_ids)
    query, key = side_of(query_ids, trace.grids), side_of(key_ids, trace.grids)
    whys = list(dict.fromkeys(side.why for side in (query, key) if side.why))
    blocks = arranged(call, order, forbidden=event.forbidden)
    blocks = replace(
        blocks,
        sample=_samples(query, key, len(geometries)),
        query_index=_on_device(query.index, blocks.device),
        key_index=_on_device(key.index, blocks.device),
    )
    return AttentionLayer(
        name=call.module,
        stream=stream,
        kind="cross" if _is_cross(query, key) else "self",
        query=_axes(query, geometries),
        key=_axes(key, geometries),
        heads=blocks.head_count,
        residual=_residual(event, query, key),
        normalized="none" if event.folded else _normalized(blocks),
        error=call.error,
        storage=(blocks,),
        note="; ".join(whys),
    )


def _landed(event: Event) -> Event:
    """Return an event whose output is summed over neighbourhoods with the queries that the sums are: its keys."""
    return replace(event, query=event.key) if event.folded else event


def _unique_queries(query: Int[Tensor, "block query"], key: Int[Tensor, "block key"]) -> Int[Tensor, "block query"]:
    """Return each row's token; a query that asks in several windows is, in each, the token that it answers for."""
    if len(query) > 1 and query.shape == key.shape:
        real = query[query > 0]
        keys = key[key > 0]
        if len(torch.unique(real)) < len(real) and len(torch.unique(keys)) == len(keys):
            return key
    return query


def _samples(query: Side, key: Side, count: int) -> Tensor | None:
    sample = torch.maximum(query.sample, key.sample)
    return sample if count > 1 else None


def _on_device(index: Tensor | None, device: torch.device) -> Tensor | None:
    return None if index is None else index.to(device)


def _axes(side: Side, geometries: tuple[Geometry, ...]) -> tuple[object, ...]:
    distinct = list(dict.fromkeys(geometries))
    return tuple(side.spec.axis(geometry) for geometry in (distinct if len(distinct) == 1 else geometries))


def _is_cross(query: Side, key: Side) -> bool:
    return not query.spec.has_boxes and key.spec.has_boxes and not query.why


def _residual(event: Event, query: Side, key: Side) -> str:
    if event.residual != "identity" or not (query.spec.has_boxes and key.spec.has_boxes):
        return event.residual
    coarser = query.spec.patch_px[0] > key.spec.patch_px[0] and query.spec.rows > 1
    return "pooled" if coarser else "identity"


def _normalized(blocks: Blocks) -> Normalized:
    if isinstance(blocks.source, Dense):
        weights = blocks.source.weights[:4, :, :64]
        sums = weights.sum(-1)
        if not bool(((sums - 1).abs() < _CLOSE).all()):
            return "signed" if bool((weights < 0).any()) else "none"
    outside = blocks.key_index is not None and bool((blocks.key_index < 0).any())
    return "over_keys_and_outside" if outside else "over_keys"

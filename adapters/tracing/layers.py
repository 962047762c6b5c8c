"""Calls of the real pass and events of the trace become layers: weights from the one, places from the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer, Residual
from mmattn.schema.weights import Blocks, Dense, Normalized

from ..pixels import Geometry
from .arrange import arranged, order_of
from .axes import Side, side_of
from .trace import Event, Trace

# Rows of a distribution sum to one within this.
_ONE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """A call and the event of the trace that is the same attention."""

    call: Call
    event: Event


def joined(calls: Sequence[Call], trace: Trace) -> tuple[list[Joined], list[Call]]:
    """Return each token call with its event, module by module in order, and the calls that have none."""
    waiting: dict[str, list[Event]] = {}
    for event in trace.events:
        waiting.setdefault(event.module, []).append(event)
    found: list[Joined] = []
    alone: list[Call] = []
    for call in calls:
        own = waiting.get(call.module, [])
        match = next((event for event in own if _sides(call) == (event.query.shape[-1], event.key.shape[-1])), None)
        if call.kind != "token" or match is None:
            alone.append(call)
            continue
        own.remove(match)
        found.append(Joined(call=call, event=match))
    return found, alone


def _sides(call: Call) -> tuple[int, int]:
    """Return the numbers of queries and keys of a block."""
    if call.q is not None and call.k is not None:
        return call.q.shape[-2], call.k.shape[-2]
    assert call.weights is not None
    return call.weights.shape[-2], call.weights.shape[-1]


def layer_of(pair: Joined, trace: Trace, geometries: tuple[Geometry, ...], *, stream: str) -> AttentionLayer:
    """Return the layer of one attention; `geometries` has one entry a sample."""
    call, event = pair.call, pair.event
    order = order_of(call, event)
    query, key = (side_of(order.in_blocks(ids), trace.grids) for ids in (event.query, event.key))
    stored = arranged(call, order, forbidden=event.forbidden)
    blocks = replace(
        stored,
        sample=torch.maximum(query.sample, key.sample).to(stored.device) if len(geometries) > 1 else None,
        query_index=None if query.index is None else query.index.to(stored.device),
        key_index=None if key.index is None else key.index.to(stored.device),
    )
    return AttentionLayer(
        name=call.module,
        stream=stream,
        kind="cross" if key.spec.has_boxes and not query.spec.has_boxes and not query.why else "self",
        query=_axes(query, geometries),
        key=_axes(key, geometries),
        heads=blocks.head_count,
        residual=_residual(event, query, key),
        normalized="none" if event.folded else _normalized(blocks),
        error=call.error,
        storage=(blocks,),
        note="; ".join(dict.fromkeys(side.why for side in (query, key) if side.why)),
    )


def _axes(side: Side, geometries: tuple[Geometry, ...]) -> tuple[Axis, ...]:
    distinct = list(dict.fromkeys(geometries))
    return tuple(side.spec.axis(geometry) for geometry in (distinct if len(distinct) == 1 else geometries))


def _residual(event: Event, query: Side, key: Side) -> Residual:
    """Return what runs beside: pooled where the queries stand on a coarser grid than the keys."""
    if not event.residual:
        return "none"
    coarser = query.spec.patch_px[0] > key.spec.patch_px[0]
    return "pooled" if coarser and query.spec.has_cells and key.spec.has_cells else "identity"


def _normalized(blocks: Blocks) -> Normalized:
    if isinstance(blocks.source, Dense):
        weights = blocks.source.weights[:4, :, :64]
        if not bool(((weights.sum(-1) - 1).abs() < _ONE).all()):
            return "signed" if bool((weights < 0).any()) else "none"
    outside = blocks.key_index is not None and bool((blocks.key_index < 0).any())
    return "over_keys_and_outside" if outside else "over_keys"

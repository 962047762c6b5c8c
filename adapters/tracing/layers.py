"""Calls of the real pass and events of the trace become layers: weights from the one, places from the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer, Residual
from mmattn.schema.weights import Blocks, Dense, Normalized

from ..pixels import Geometry
from .arrange import arranged, lead_of, order_of
from .axes import Side, side_of
from .grids import MIXED, Grids
from .trace import Event, Trace

# Rows of a distribution sum to one within this.
_ONE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """A call and the event of the trace that is the same attention."""

    call: Call
    event: Event


@dataclass(frozen=True, kw_only=True, eq=False)
class Alone:
    """A call whose places are not known, and why; no reason where the trace saw nothing like it."""

    call: Call
    why: str = ""


def joined(calls: Sequence[Call], trace: Trace) -> tuple[list[Joined], list[Alone]]:
    """Return each token call with its event, module by module in order, and the calls that have none.

    A module whose calls of one size are more or fewer than its events of that size has none: which is
    which is not known.
    """
    events: dict[tuple[str, int, int], list[Event]] = {}
    for event in trace.events:
        events.setdefault((event.module, event.query.shape[-1], event.key.shape[-1]), []).append(event)
    alike: dict[tuple[int, str, int, int], list[Call]] = {}
    for call in calls:
        if call.kind == "token":
            alike.setdefault((call.pass_index, call.module, *_sides(call)), []).append(call)
    found: list[Joined] = []
    alone: list[Alone] = []
    for call in calls:
        own = [] if call.kind != "token" else alike[call.pass_index, call.module, *_sides(call)]
        known = events.get((call.module, *_sides(call)), []) if own else []
        if not known:
            alone.append(Alone(call=call))
        elif len(known) != len(own):
            alone.append(
                Alone(call=call, why=f"it attended {len(own)} times, of which {len(known)} were seen by the trace")
            )
        else:
            event = known[next(place for place, other in enumerate(own) if other is call)]
            why = objection(call, event, trace.grids)
            if why:
                alone.append(Alone(call=call, why=why))
            else:
                found.append(Joined(call=call, event=event))
    return found, alone


def objection(call: Call, event: Event, grids: Grids) -> str:
    """Return why an event says nothing of a call, or nothing where it does."""
    lead, seen = lead_of(call), tuple(event.query.shape[:-1])
    if not prod(seen) or prod(lead) % prod(seen):
        return f"it attended in {prod(lead)} blocks and heads, of which the trace saw {prod(seen)}"
    ends = [set(accumulate((size for size in shape if size > 1), mul)) for shape in (lead, seen)]
    if prod(lead) == prod(seen) and not (ends[0] <= ends[1] or ends[1] <= ends[0]):
        return "its blocks and heads stand in another order than the trace saw"
    mixed = prod(seen) > 1 and all(bool((side == MIXED).any()) for side in (event.query, event.key))
    if grids.samples == 1 and not mixed:
        return ""
    ids = torch.cat([side.reshape(-1, side.shape[-1]) for side in (event.query, event.key)], dim=-1)
    numbers, sample, _ = grids.decode(ids)
    if mixed and not _distinct(ids, numbers, grids):
        return "its tokens are mixtures, of which block and picture is not known"
    most = torch.where(numbers >= 0, sample, -1).amax(1)
    least = torch.where(numbers >= 0, sample, grids.samples).amin(1)
    if bool(((most >= 0) & (most != least)).any()):
        return "its sequences join tokens of several pictures"
    return ""


def _sides(call: Call) -> tuple[int, int]:
    """Return the numbers of queries and keys of a block."""
    if call.q is not None and call.k is not None:
        return call.q.shape[-2], call.k.shape[-2]
    assert call.weights is not None
    return call.weights.shape[-2], call.weights.shape[-1]


def _distinct(ids: Int[Tensor, "block token"], numbers: Int[Tensor, "block token"], grids: Grids) -> bool:
    """Whether the tokens of each block that are known tell it from other blocks: cells, or tokens of its own."""
    cells = torch.tensor([grid.kind == "cells" for grid in grids.known])
    if bool((cells[numbers.clamp(min=0)] & (numbers >= 0)).any(1).all()):
        return True
    return len(torch.unique(torch.where(ids > MIXED, ids, 0), dim=0)) == len(ids)


def layer_of(pair: Joined, trace: Trace, geometries: tuple[Geometry, ...], *, stream: str) -> AttentionLayer:
    """Return the layer of one attention; `geometries` has one entry a sample."""
    call, event = pair.call, pair.event
    order = order_of(call, event)
    query = side_of(order.in_blocks(event.query), trace.grids, once=not event.folded)
    key = side_of(order.in_blocks(event.key), trace.grids)
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
    coarser = prod(query.spec.patch_px) > prod(key.spec.patch_px)
    return "pooled" if coarser and query.spec.has_cells and key.spec.has_cells else "identity"


def _normalized(blocks: Blocks) -> Normalized:
    if isinstance(blocks.source, Dense):
        weights = blocks.source.weights[:4, :, :64]
        if not bool(((weights.sum(-1) - 1).abs() < _ONE).all()):
            return "signed" if bool((blocks.source.weights < 0).any()) else "none"
    outside = blocks.key_index is not None and bool((blocks.key_index < 0).any())
    return "over_keys_and_outside" if outside else "over_keys"

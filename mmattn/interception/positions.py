"""A recording as maps over bare Positions: what can be said of any model without an adapter."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Positions
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.source import Source, versions_of
from mmattn.schema.weights import Blocks


def positions_maps(calls: Sequence[Call], *, model: nn.Module, inputs: Sequence[Sequence[Tensor]]) -> AttentionMaps:
    """Return one layer a call, over positions.

    Blocks are samples where every call has as many blocks as one of the first two dimensions of the
    input has entries. Else nobody knows what they are (windows, say): they are laid one behind the
    other over one axis, each query seeing the keys of its own block only. A layer counts as `self`
    where it has as many queries as keys.
    """
    stored = [to_blocks(call) for call in calls]
    sizes = {size for tensors in inputs for tensor in tensors for size in tensor.shape[:2]}
    counts = {blocks.source.shape[0] for blocks in stored}
    batched = len(counts) == 1 and counts <= sizes
    return AttentionMaps(
        layers=tuple(_layer(call, blocks, batched=batched) for call, blocks in zip(calls, stored, strict=True)),
        source=Source(model=type(model).__name__, versions=versions_of("mmattn", "torch")),
        model_ref=weakref.ref(model),
    )


def _layer(call: Call, blocks: Blocks, *, batched: bool) -> AttentionLayer:
    count, _, queries, keys = blocks.source.shape
    if not batched and count > 1:
        place = torch.arange(count, device=blocks.device)[:, None]
        blocks = Blocks(
            source=blocks.source,
            query_index=place * queries + torch.arange(queries, device=blocks.device),
            key_index=place * keys + torch.arange(keys, device=blocks.device),
        )
        queries, keys = queries * count, keys * count
    return AttentionLayer(
        name=call.module,
        query=(Positions.count(queries),),
        key=(Positions.count(keys),),
        heads=head_count(call),
        kind="self" if queries == keys else "cross",
        normalized="over_keys" if call.q is not None else "over_keys_and_outside",
        storage=(blocks,),
        error=call.error,
        note="attention over channels, not tokens" if call.kind == "channel" else "",
    )

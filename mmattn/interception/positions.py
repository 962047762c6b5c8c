"""A recording as maps over bare Positions: what can be said of any model without an adapter."""

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmattn.errors import ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Positions
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.source import Source, versions_of
from mmattn.schema.weights import Blocks


def positions_maps(
    calls: Sequence[Call],
    *,
    model: nn.Module,
    inputs: Sequence[Sequence[Tensor]],
    sides: Mapping[str, set[str]] | None = None,
) -> AttentionMaps:
    """Return one layer a call, over positions.

    Blocks are samples where every call has as many blocks as an input has entries in its first dimension
    (or in the second of `[length, batch, dim]`). Else nobody knows what they are (windows, say): they are
    laid one behind the other over one axis, each query seeing the keys of its own block only.

    A layer counts as `self` where it has as many queries as keys and its module was not called with
    different tensors for them. Where that is not known either, its `note` says so: a rollout over it
    holds only if it is self-attention.

    Parameters
    ----------
    sides
        By module path what its calls were seen to be: `self`, `cross` or `unknown`.

    Raises
    ------
    ModelError
        The model ran on the meta device, where there are no numbers.
    """
    stored = [to_blocks(call) for call in calls]
    without = next((call for call, blocks in zip(calls, stored, strict=True) if blocks.device.type == "meta"), None)
    if without is not None:
        raise ModelError(
            f"The call of {without.module or 'the root'} ran on the meta device, whose tensors have shapes and no "
            "numbers. Maps need numbers. Run the model on a real device; recording.calls has the shapes."
        )
    batched = _is_batch([blocks.source.shape for blocks in stored], inputs)
    known = {} if sides is None else sides
    return AttentionMaps(
        layers=tuple(
            _layer(call, blocks, batched=batched, sides=known.get(call.module, set()))
            for call, blocks in zip(calls, stored, strict=True)
        ),
        source=Source(model=type(model).__name__, versions=versions_of("mmattn", "torch")),
        model_ref=weakref.ref(model),
    )


def _is_batch(shapes: Sequence[tuple[int, int, int, int]], inputs: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the blocks of all calls are the samples of the inputs."""
    counts = {shape[0] for shape in shapes}
    tensors = [tensor for given in inputs for tensor in given if tensor.dim()]
    if len(counts) != 1 or not tensors:
        return False
    count, lengths = counts.pop(), {length for shape in shapes for length in shape[2:]}
    if any(len(tensor) == count for tensor in tensors):
        return True
    return any(tensor.dim() == 3 and tensor.shape[1] == count and len(tensor) in lengths for tensor in tensors)


def _layer(call: Call, blocks: Blocks, *, batched: bool, sides: set[str]) -> AttentionLayer:
    count, _, queries, keys = blocks.source.shape
    is_self = queries == keys and "cross" not in sides
    notes = ["attention over channels, not tokens"] if call.kind == "channel" else []
    if is_self and sides != {"self"}:
        notes.append("as many queries as keys; whether they are the same tokens is not known")
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
        kind="self" if is_self else "cross",
        normalized="over_keys" if call.q is not None else "over_keys_and_outside",
        storage=(blocks,),
        error=call.error,
        note="; ".join(notes),
    )

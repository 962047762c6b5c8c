"""Layers outside of the vision tower: words that ask words or patches, patches that ask words, both in one sequence."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer

from .transformers_forms import Joins, Side

Sides = Mapping[Side, tuple[Axis, ...]]


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
    storage = to_blocks(call, mask=allowed)
    blocks, _, queries, keys = storage.source.shape
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


def _allowed(call: Call, joins: Joins, sides: Sides) -> Bool[Tensor, "#sample #head #query #key"] | None:
    """Return which keys were allowed where only the softmax was seen; None where that is not known."""
    if joins.causal is None or call.weights is None:
        return None
    queries, keys = call.weights.shape[-2:]
    mask = torch.tensor([[role != "pad" for role in axis.roles] for axis in sides[joins.key]])[:, None, None]
    if joins.causal:
        mask = mask & torch.ones(queries, keys, dtype=torch.bool).tril()
    return mask.to(call.weights.device)

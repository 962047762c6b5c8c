"""The weight below which the smallest share of a layer's fused weights lies, without holding them all.

Positive floats sort like the integers of their bits. Two counting passes over the rows, first of the
upper and then of the lower 16 bits, find the k-th smallest weight exactly in two tables of 65,536.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmattn.schema import stream
from mmattn.schema.layers import AttentionLayer

_HALF = 16


def discard_threshold(layer: AttentionLayer, *, heads: str, ratio: float) -> float | None:
    """Return the largest of the `ratio` smallest fused weights (those up to it are dropped), or None for ratio 0.

    The fused matrix counts as dense: `int(ratio * queries * keys)` weights are dropped, pairs that
    stand in no block being the first (they are 0 anyway). Weights that are equal are dropped together
    or kept together: where only some of them would go, none does.
    """
    total = len(layer.query_axis) * len(layer.key_axis)
    drop = int(total * ratio)
    if drop == 0:
        return None
    stored = 0
    upper = torch.zeros(1 << _HALF, dtype=torch.long)
    for bits in _bits(layer, heads):
        stored += bits.numel()
        upper += torch.bincount(bits >> _HALF, minlength=1 << _HALF).cpu()
    drop -= total - stored
    if drop <= 0:
        return None
    bucket, before = _bucket(upper, drop)
    lower = torch.zeros(1 << _HALF, dtype=torch.long)
    for bits in _bits(layer, heads):
        inside = bits[(bits >> _HALF) == bucket]
        lower += torch.bincount(inside & ((1 << _HALF) - 1), minlength=1 << _HALF).cpu()
    low, below = _bucket(lower, drop - before)
    largest = (bucket << _HALF) | low
    if below + int(lower[low]) > drop - before and largest:
        largest -= 1  # the next smaller float
    return float(torch.tensor(largest, dtype=torch.int32).view(torch.float32))


def _bits(layer: AttentionLayer, heads: str) -> Iterator[Tensor]:
    for weights in stream.fused_rows(layer, heads, absolute=not layer.has_shares):
        yield weights.float().clamp(min=0).flatten().view(torch.int32)


def _bucket(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Return the bucket that holds the wanted-th entry, and how many entries lie before it."""
    reached = torch.cumsum(counts, 0)
    bucket = int(torch.searchsorted(reached, wanted))
    return bucket, int(reached[bucket] - counts[bucket])

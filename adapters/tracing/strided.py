"""Convolutions, pooling and resizing: which token stands where on the new map.

A token of the new map is the cell around the middle of its kernel, as large as the stride: its own
cell, not its receptive field. So a stride of one keeps tokens where they are, whatever the kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .grids import MIXED, Grids, ravel, unravel
from .ids import Ids, Story, first, make, plain, told
from .merge import Serial, merged


def several(value: Any, dims: int) -> tuple[int, ...]:
    """Return an option of a convolution for each dimension."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def strided(
    ids: Ids,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    lengths: Sequence[int],
    grids: Grids,
    serial: Serial,
) -> Ids:
    """Return `[..., *lengths]`: the tokens of the new map, for ids `[..., *map]`."""
    dims = len(kernel)
    values, axes = plain(ids), range(ids.dim() - dims, ids.dim())
    if dims == 1 and kernel[0] == stride[0] > 1 and not padding[0]:
        return _runs(ids, kernel[0], lengths[0], grids=grids, serial=serial)
    for axis, k, s, p, d, n in zip(axes, kernel, stride, padding, dilation, lengths, strict=True):
        middle = torch.arange(n) * s - p + (k - 1) * d // 2
        if n == values.shape[axis] and bool((middle == torch.arange(n)).all()):
            continue
        values = values.index_select(axis, middle.clamp(0, values.shape[axis] - 1))
    if all(s == 1 for s in stride):
        return make(values, ids.story)
    small = first(values)
    story = Story(events=ids.story.events, softmax=ids.story.softmax, merged=serial.next())
    return make(grids.coarsened(small, stride), story)


def _runs(ids: Ids, kernel: int, length: int, *, grids: Grids, serial: Serial) -> Ids:
    """Return the runs of `kernel` tokens along the last dimension, each merged."""
    cut = plain(ids)[..., : kernel * length].unflatten(-1, (length, kernel))
    return make(plain(merged(make(cut, ids.story), [-1], grids=grids, serial=serial)).squeeze(-1), told([ids]))


def resized(ids: Ids, lengths: Sequence[int], *, grids: Grids, serial: Serial) -> Ids:
    """Return the tokens of a map that was resized (or adaptively pooled) to other lengths."""
    dims = len(lengths)
    values = plain(ids)
    old = tuple(values.shape[-dims:])
    if old == tuple(lengths):
        return ids
    story = Story(events=ids.story.events, softmax=ids.story.softmax, merged=serial.next())
    if all(n == 1 for n in lengths):
        return merged(ids, list(range(-dims, 0)), grids=grids, serial=serial)
    if all(a % b == 0 for a, b in zip(old, lengths, strict=True)):
        cut = values
        for place, (a, b) in enumerate(zip(old, lengths, strict=True)):
            cut = cut.unflatten(cut.dim() - dims + place, (b, a // b)).movedim(cut.dim() - dims + place + 1, 0)
        return make(
            plain(merged(make(cut), list(range(dims)), grids=grids, serial=serial)).flatten(0, dims - 1)[0], story
        )
    lead = values.reshape(-1, *old)
    small = first(lead)
    out = torch.full((len(lead), *lengths), MIXED, dtype=torch.int64)
    numbers, sample, index = grids.decode(small.flatten(1))
    number = int(numbers.max())
    whole = number >= 0 and grids.known[number].shape == old and grids.known[number].kind == "cells"
    if whole and bool((index == torch.arange(grids.known[number].count)).all()):
        target = grids.resampled(number, lengths)
        cells = torch.arange(grids.known[target].count).expand(len(lead), -1)
        out = grids.ids(target, sample=sample[:, :1], index=cells).reshape(out.shape)
    return make(out.reshape(*values.shape[:-dims], *lengths), story)


def refined(ids: Ids, factor: Sequence[int], *, grids: Grids, serial: Serial) -> Ids:
    """Return the tokens of a map whose every cell was split, as transposed convolutions do."""
    lengths = [side * f for side, f in zip(ids.shape[-len(factor) :], factor, strict=True)]
    return resized(ids, lengths, grids=grids, serial=serial)


def one_channel(ids: Ids, axis: int, *, grids: Grids, serial: Serial) -> Ids:
    """Return the ids with channels merged to one."""
    return merged(ids, [axis], grids=grids, serial=serial)


def widened(ids: Tensor, axis: int, count: int) -> Ids:
    """Return the ids repeated along a dimension of one, without memory."""
    shape = list(ids.shape)
    shape[axis] = count
    return make(plain(ids).expand(shape), told([ids]))


__all__ = ["one_channel", "ravel", "refined", "resized", "several", "strided", "unravel", "widened"]

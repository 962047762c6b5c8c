"""Convolutions, pooling and resizing: which token stands where on the new map.

A token of the new map is the cell around the middle of its kernel, as large as the stride: its own
cell, not its receptive field. So a stride of one keeps tokens where they are, whatever the kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .grids import MIXED, Grids, ravel, unravel
from .ids import Ids, Story, first, make, plain, thin, told
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
    story = Story(events=ids.story.events, softmax=ids.story.softmax, merged=serial.next())
    # The middle of a kernel, less half a stride: where its token's cell begins on the old map.
    shift = [(k - 1) * d / 2 + 0.5 - p - s / 2 for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)]
    coarser = any(s > 1 for s in stride)
    if coarser:
        maps = first(thin(values).reshape(-1, *thin(values).shape[-dims:]).expand(-1, *values.shape[-dims:]))
        number = grids.whole(maps)
        if number is not None:
            target = grids.coarse(number, stride, shift=shift, shape=lengths)
            _, sample, _ = grids.decode(maps.flatten(1)[:, :1])
            cells = torch.arange(grids.known[target].count)
            out = grids.ids(target, sample=sample, index=cells).to(torch.float64)
            lead = thin(values).shape[:-dims]
            return make(out.reshape(*lead, *lengths).expand(*values.shape[:-dims], *lengths), story)
    for axis, k, s, p, d, n in zip(axes, kernel, stride, padding, dilation, lengths, strict=True):
        middle = torch.arange(n) * s - p + (k - 1) * d // 2
        if n == values.shape[axis] and bool((middle == torch.arange(n)).all()):
            continue
        values = values.index_select(axis, middle.clamp(0, values.shape[axis] - 1))
    return make(grids.coarsened(first(values), stride, shift=shift), story) if coarser else make(values, ids.story)


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
    number = grids.whole(first(lead))
    if number is None:
        return make(torch.full((), float(MIXED), dtype=torch.float64).expand(*values.shape[:-dims], *lengths), story)
    target = grids.resampled(number, lengths)
    _, sample, _ = grids.decode(first(lead).flatten(1)[:, :1])
    cells = grids.ids(target, sample=sample, index=torch.arange(grids.known[target].count))
    return make(cells.to(torch.float64).reshape(*values.shape[:-dims], *lengths), story)


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

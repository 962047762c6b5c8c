"""Convolutions, pooling and resizing: which token stands where on the new map.

A token of the new map is the cell around the middle of its kernel, as large as the stride: its own
cell, not its receptive field. So a stride of one keeps tokens where they are, whatever the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .grids import MIXED, Grids
from .ids import Ids, Story, first, make, plain, thin, thinned, told
from .merge import merged


def several(value: Any, dims: int) -> tuple[int, ...]:
    """Return an option of a convolution for each dimension."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A moving window: one number a dimension of the map."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def lengths(self, sides: Sequence[int], *, ceil: bool = False) -> list[int]:
        """Return the sides of the new map, as torch counts them."""
        out = []
        for side, k, s, p, d in zip(sides, self.size, self.stride, self.padding, self.dilation, strict=True):
            span = side + 2 * p - d * (k - 1) - 1
            length = (span + s - 1 if ceil else span) // s + 1
            out.append(length - 1 if ceil and (length - 1) * s >= side + p else length)
        return out

    @property
    def middles(self) -> list[float]:
        """Where the middle of the first window lies on the old map, in cells from its first cell's middle."""
        return [(k - 1) * d / 2 - p for k, p, d in zip(self.size, self.padding, self.dilation, strict=True)]


def strided(ids: Ids, kernel: Kernel, *, lengths: Sequence[int], grids: Grids) -> Ids:
    """Return `[..., *lengths]`: the tokens of the new map, for ids `[..., *map]`."""
    if len(lengths) == 1 and kernel.size == kernel.stride != (1,) and kernel.padding == (0,):
        return _runs(ids, kernel.size[0], lengths[0], grids=grids)
    ids = make(thinned(ids, -len(lengths) - 1), ids.story)
    if all(s == 1 for s in kernel.stride):
        return make(_picked(plain(ids), kernel, lengths), ids.story)
    # A cell begins half a stride before the middle of its window.
    shift = [middle + 0.5 - s / 2 for middle, s in zip(kernel.middles, kernel.stride, strict=True)]
    story = ids.story.after(grids.step())
    small = thin(plain(ids)).clone()
    lead = small.shape[: small.dim() - len(lengths)]
    maps = first(small.expand(*lead, *ids.shape[len(lead) :]).reshape(-1, *ids.shape[len(lead) :]))
    number = grids.whole(maps)
    if number is None:
        picked = thin(_picked(plain(ids), kernel, lengths))
        coarse = grids.coarsened(first(picked), kernel.stride, shift=shift)
        return make(coarse.to(torch.float64).expand(*ids.shape[: len(lead)], *lengths), story)
    target = grids.coarse(number, kernel.stride, shift=shift, shape=lengths)
    return _map_of(target, maps, lead=lead, shape=(*ids.shape[: len(lead)], *lengths), story=story, grids=grids)


def _picked(values: Float[Tensor, "..."], kernel: Kernel, lengths: Sequence[int]) -> Float[Tensor, "..."]:
    """Return the token in the middle of each window; windows whose middle lies outside take the nearest."""
    for place, (middle, s, n) in enumerate(zip(kernel.middles, kernel.stride, lengths, strict=True)):
        axis = values.dim() - len(lengths) + place
        chosen = torch.arange(n) * s + int(middle)
        if n != values.shape[axis] or not torch.equal(chosen, torch.arange(n)):
            small = thin(values).expand(*thin(values).shape[: -len(lengths)], *values.shape[-len(lengths) :])
            shape = (*values.shape[:axis], n, *values.shape[axis + 1 :])
            values = small.index_select(axis, chosen.clamp(0, values.shape[axis] - 1)).expand(shape)
    return values


def _map_of(
    number: int,
    maps: Int[Tensor, "map *any"],
    *,
    lead: Sequence[int],
    shape: Sequence[int],
    story: Story,
    grids: Grids,
) -> Ids:
    """Return a whole grid in place of each old map, of the same sample."""
    _, sample, _ = grids.decode(maps.flatten(1)[:, :1])
    cells = grids.ids(number, sample=sample, index=torch.arange(grids.known[number].count))
    return make(cells.reshape(*lead, *shape[len(lead) :]).to(torch.float64).expand(*shape), story)


def _runs(ids: Ids, kernel: int, length: int, *, grids: Grids) -> Ids:
    """Return the runs of `kernel` tokens along the last dimension, each merged."""
    cut = plain(ids)[..., : kernel * length].unflatten(-1, (length, kernel))  # type: ignore[no-untyped-call]
    return make(plain(merged(make(cut, ids.story), [-1], grids=grids)).squeeze(-1), told([ids]))


def resized(ids: Ids, lengths: Sequence[int], *, grids: Grids) -> Ids:
    """Return the tokens of a map that was resized (or adaptively pooled) to other lengths."""
    dims, values = len(lengths), plain(ids)
    old = tuple(values.shape[-dims:])
    if old == tuple(lengths):
        return ids
    if all(n == 1 for n in lengths):
        return merged(ids, list(range(-dims, 0)), grids=grids)
    if all(a % b == 0 for a, b in zip(old, lengths, strict=True)):
        for a, b in zip(old, lengths, strict=True):  # each dimension in turn to the front: cells of a block first
            values = values.unflatten(-dims, (b, a // b))  # type: ignore[no-untyped-call]
            values = values.movedim(-dims, 0).movedim(-dims, -1)
        blocks = plain(merged(make(values, ids.story), list(range(dims)), grids=grids))
        return make(blocks.flatten(0, dims - 1)[0], ids.story.after(grids.step()))
    maps = first(values.reshape(-1, *old))
    number = grids.whole(maps)
    shape = (*values.shape[:-dims], *lengths)
    story = ids.story.after(grids.step())
    if number is None:
        return make(torch.full((), float(MIXED), dtype=torch.float64).expand(shape), story)
    target = grids.resampled(number, lengths)
    return _map_of(target, maps, lead=shape[:-dims], shape=shape, story=story, grids=grids)


def refined(ids: Ids, factor: Sequence[int], *, grids: Grids) -> Ids:
    """Return the tokens of a map whose every cell was split, as transposed convolutions do."""
    lengths = [side * f for side, f in zip(ids.shape[-len(factor) :], factor, strict=True)]
    return resized(ids, lengths, grids=grids)


def widened(ids: Ids, axis: int, count: int) -> Ids:
    """Return the ids repeated along a dimension of one, without memory."""
    shape = list(ids.shape)
    shape[axis] = count
    return make(plain(ids).expand(shape), ids.story)

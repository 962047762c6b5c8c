"""Convolutions, pooling and resizing: which token stands where on the new map.

A token of the new map is the cell around the middle of its kernel, as large as the stride: its own
cell, not its receptive field. So a stride of one keeps tokens where they are, whatever the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from .grids import MIXED, NOTHING, Grids, ravel, unravel
from .ids import Ids, Story, first, make, plain, thin, thinned, told
from .merge import merged

_FAR = 1 << 40


def several(value: Any, dims: int) -> tuple[int, ...]:
    """Return an option of a convolution for each dimension."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def several_numbers(value: Any, dims: int) -> tuple[float, ...]:
    """Return a scale for each dimension."""
    return (float(value),) * dims if isinstance(value, int | float) else tuple(float(v) for v in value)


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

    def widths(self, sides: Sequence[int], extra: Sequence[int]) -> list[int]:
        """Return the sides of the new map of a transposed convolution."""
        shown = zip(sides, self.size, self.stride, self.padding, self.dilation, extra, strict=True)
        return [(side - 1) * s - 2 * p + d * (k - 1) + more + 1 for side, k, s, p, d, more in shown]

    @property
    def middles(self) -> list[float]:
        """Where the middle of the first window lies on the old map, in cells from its first cell's middle."""
        return [(k - 1) * d / 2 - p for k, p, d in zip(self.size, self.padding, self.dilation, strict=True)]

    def keeps(self, sides: Sequence[int], lengths: Sequence[int]) -> bool:
        """Whether with a stride of one each window has its middle on a token of its own."""
        return all(
            side == n or (middle == int(middle) and 0 <= middle <= side - n)
            for side, n, middle in zip(sides, lengths, self.middles, strict=True)
        )


def strided(ids: Ids, kernel: Kernel, *, lengths: Sequence[int], grids: Grids) -> Ids:
    """Return `[..., *lengths]`: the tokens of the new map, for ids `[..., *map]`."""
    plainly = kernel.padding == (0,) and kernel.dilation == (1,)
    if len(lengths) == 1 and kernel.size == kernel.stride != (1,) and plainly:
        return _runs(ids, kernel.size[0], lengths[0], grids=grids)
    ids = make(thinned(ids, -len(lengths) - 1), ids.story)
    if all(s == 1 for s in kernel.stride) and kernel.keeps(ids.shape[-len(lengths) :], lengths):
        return make(_picked(plain(ids), kernel, lengths), ids.story)
    # A cell begins half a stride before the middle of its window.
    shift = [middle + 0.5 - s / 2 for middle, s in zip(kernel.middles, kernel.stride, strict=True)]
    small = thin(plain(ids)).clone()
    lead = small.shape[: small.dim() - len(lengths)]
    maps = first(small.expand(*lead, *ids.shape[len(lead) :]).reshape(-1, *ids.shape[len(lead) :]))
    number = grids.whole(maps)
    if number is None:
        cells = _parts(maps, kernel, lengths, shift=shift, grids=grids)
        cells = cells.reshape(*lead, *lengths).expand(*ids.shape[: len(lead)], *lengths)
        return make(cells, ids.story)
    target = grids.coarse(number, kernel.stride, shift=shift, shape=lengths)
    return _map_of(target, maps, lead=lead, shape=(*ids.shape[: len(lead)], *lengths), story=ids.story, grids=grids)


def _parts(
    maps: Int[Tensor, "map *any"], kernel: Kernel, lengths: Sequence[int], *, shift: Sequence[float], grids: Grids
) -> Int[Tensor, "..."]:
    """Return the new cells of maps that are parts of a grid in its order (padded ones, windows); mixed for others."""
    seen = _reached(maps > 0, kernel, lengths)
    nowhere = torch.where(seen, MIXED, NOTHING)
    numbers, sample, index = grids.decode(maps)
    real = numbers != -1
    number = int(numbers.max())
    if number < 0 or not bool((numbers[real] == number).all()) or len(grids.known[number].shape) != len(lengths):
        return nowhere
    samples = torch.where(real, sample, -1).flatten(1).amax(1)
    offsets = [_offset(along, real, dim) for dim, along in enumerate(unravel(index, grids.known[number].shape), 1)]
    if not bool((sample == samples.reshape(-1, *[1] * len(lengths)))[real].all()) or any(o is None for o in offsets):
        return nowhere
    filled = samples >= 0
    base = [int(o[filled].min()) for o in offsets if o is not None]
    steps = [o - start for o, start in zip(offsets, base, strict=True) if o is not None]
    if any(bool((step[filled] % s).any()) for step, s in zip(steps, kernel.stride, strict=True)):
        return nowhere
    counts = [int(step[filled].max()) // s + n for step, s, n in zip(steps, kernel.stride, lengths, strict=True)]
    target = grids.coarse(number, kernel.stride, shift=[a + b for a, b in zip(shift, base, strict=True)], shape=counts)
    coords = []
    for dim, (step, s, n) in enumerate(zip(steps, kernel.stride, lengths, strict=True)):
        one = [-1 if place == dim else 1 for place in range(len(lengths))]
        coords.append(torch.arange(n).reshape(1, *one) + (step // s).reshape(-1, *[1] * len(lengths)))
    cells = ravel(list(torch.broadcast_tensors(*coords)), counts)  # type: ignore[no-untyped-call]
    out = grids.ids(target, sample=samples.reshape(-1, *[1] * len(lengths)), index=cells)
    return torch.where(seen, out, NOTHING)


def _offset(along: Int[Tensor, "map *any"], real: Tensor, dim: int) -> Int[Tensor, " map"] | None:
    """Return by how much each map's coordinates are ahead of its own places; None where they run otherwise."""
    one = [-1 if place == dim else 1 for place in range(along.dim())]
    ahead = along - torch.arange(along.shape[dim]).reshape(one)
    most = torch.where(real, ahead, -_FAR).flatten(1).amax(1)
    least = torch.where(real, ahead, _FAR).flatten(1).amin(1)
    return most if bool(((most == least) | (most == -_FAR)).all()) else None


def _reached(real: Bool[Tensor, "map *any"], kernel: Kernel, lengths: Sequence[int]) -> Bool[Tensor, "..."]:
    """Return which windows hold anything."""
    convolution = [functional.conv1d, functional.conv2d, functional.conv3d][len(lengths) - 1]
    # Padding on the far side up to the last window, which ceil_mode may put beyond it.
    sides: list[int] = []
    shown = zip(real.shape[1:], kernel.size, kernel.stride, kernel.padding, kernel.dilation, lengths, strict=True)
    for side, k, s, p, d, n in reversed(list(shown)):
        sides += [p, max(0, (n - 1) * s + d * (k - 1) + 1 - side - p)]
    ones = torch.ones(1, 1, *kernel.size)
    padded = functional.pad(real.to(torch.float32), sides)[:, None]
    found = convolution(padded, ones, stride=kernel.stride, dilation=kernel.dilation)[:, 0] > 0
    return found[(slice(None), *(slice(n) for n in lengths))]


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


def resized(
    ids: Ids,
    lengths: Sequence[int],
    *,
    grids: Grids,
    factor: Sequence[float] | None = None,
    shift: Sequence[float] = (),
) -> Ids:
    """Return the tokens of a map that was resized (or adaptively pooled) to other lengths.

    `factor` and `shift`: how large a new cell is and where the first begins, in old cells, where new
    cells do not share out the old map.
    """
    dims, values = len(lengths), plain(ids)
    old = tuple(values.shape[-dims:])
    if old == tuple(lengths):
        return make(values, ids.story)
    if factor is None and all(n == 1 for n in lengths):
        return merged(ids, list(range(-dims, 0)), grids=grids)
    if factor is None and all(a % b == 0 for a, b in zip(old, lengths, strict=True)):
        for a, b in zip(old, lengths, strict=True):  # each dimension in turn to the front: cells of a block first
            values = values.unflatten(-dims, (b, a // b))  # type: ignore[no-untyped-call]
            values = values.movedim(-dims, 0).movedim(-dims, -1)
        blocks = plain(merged(make(values, ids.story), list(range(dims)), grids=grids))
        return make(blocks.flatten(0, dims - 1)[0], ids.story)
    maps = first(values.reshape(-1, *old))
    number = grids.whole(maps)
    shape = (*values.shape[:-dims], *lengths)
    if number is None:
        return make(torch.full((), float(MIXED), dtype=torch.float64).expand(shape), ids.story)
    if factor is None:
        target = grids.resampled(number, lengths)
    else:
        target = grids.coarse(number, factor, shift=shift, shape=lengths)
    return _map_of(target, maps, lead=shape[:-dims], shape=shape, story=ids.story, grids=grids)


def refined(ids: Ids, kernel: Kernel, *, lengths: Sequence[int], grids: Grids) -> Ids:
    """Return the tokens of the map of a transposed convolution: a kernel lies around the middle of each old cell."""
    size = [1 / s for s in kernel.stride]
    starts = [-middle / s + 0.5 - f / 2 for middle, s, f in zip(kernel.middles, kernel.stride, size, strict=True)]
    return resized(ids, lengths, grids=grids, factor=size, shift=starts)


def widened(ids: Ids, axis: int, count: int) -> Ids:
    """Return the ids repeated along a dimension of one, without memory."""
    shape = list(ids.shape)
    shape[axis] = count
    return make(plain(ids).expand(shape), ids.story)

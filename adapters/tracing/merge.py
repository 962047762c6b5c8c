"""Several tokens become one: patch embedding, patch merging, pooling, a mean over the picture.

If the merged tokens fill a block of their grid, the new token is a cell of the coarser grid of such
blocks; if they are the whole grid, it is the mean token; else it is a loose token without a box.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .grids import MIXED, NOTHING, Grids, ravel, unravel
from .ids import Ids, first, is_constant, make, plain, thin

_LARGE = 1 << 62


def merged(ids: Ids, dims: Sequence[int], *, grids: Grids) -> Ids:
    """Return the ids with `dims` merged, each kept as a dimension of one."""
    values = plain(ids)
    dims = sorted(dim % values.dim() for dim in dims)
    if is_constant(values, dims):
        for dim in dims:
            values = values.narrow(dim, 0, 1)
        return make(values, ids.story)
    small = thin(values)
    kept = [dim for dim in range(small.dim()) if dim not in dims]
    flat = first(small).permute(*kept, *dims).flatten(len(kept))
    out = _merge(flat.reshape(-1, flat.shape[-1]), grids)
    shape = [1 if dim in dims else small.shape[dim] for dim in range(small.dim())]
    full = [1 if dim in dims else values.shape[dim] for dim in range(values.dim())]
    result = out.reshape(shape).to(torch.float64).expand(full)
    return make(result, ids.story)


def _merge(sets: Int[Tensor, "set part"], grids: Grids) -> Int[Tensor, " set"]:
    """Return the token that each set of tokens becomes."""
    low = torch.where(sets > 0, sets, _LARGE).amin(1)
    high = sets.amax(1)
    out = torch.where(high > 0, MIXED, NOTHING)
    same = (low == high) & (high > 0)
    if bool((~same & (high > 0)).any()):  # a token beside padding is a block that the edge cut off
        same &= (sets > 0).all(1)
    out = torch.where(same, high, out)
    todo = torch.nonzero((high > 0) & ~same).flatten()
    if not len(todo):
        return out
    numbers, sample, index = grids.decode(sets[todo])
    real = numbers >= 0
    only = torch.where(real, numbers, -1).amax(1)
    unmixed = (torch.where(real, numbers, _LARGE).amin(1) == only) & (only >= 0) & (numbers != -2).all(1)
    unmixed &= torch.where(real, sample, -1).amax(1) == torch.where(real, sample, _LARGE).amin(1)
    for number in torch.unique(only[unmixed]).tolist():
        if grids.known[number].kind == "cells":
            here = unmixed & (only == number)
            out[todo[here]] = _blocks(number, sample[here], index[here], real[here], grids)
    return out


def _blocks(
    number: int,
    sample: Int[Tensor, "set part"],
    index: Int[Tensor, "set part"],
    real: Tensor,
    grids: Grids,
) -> Int[Tensor, " set"]:
    grid = grids.known[number]
    samples = torch.where(real, sample, 0).amax(1)
    ordered = torch.where(real, index, -1).sort(dim=1).values
    fresh = torch.cat([ordered[:, :1] >= 0, (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)], dim=1)
    count = fresh.sum(1)
    if bool((count == grid.count).all()) and grid.count > 1:
        mean = grids.number(kind="special", shape=(1,), role="mean", name=number)
        return grids.ids(mean, sample=samples, index=torch.zeros_like(samples))
    coords = unravel(index, grid.shape)
    low = [torch.where(real, along, _LARGE).amin(1) for along in coords]
    high = [torch.where(real, along, -1).amax(1) for along in coords]
    factor = [int((hi - lo).max()) + 1 for lo, hi in zip(low, high, strict=True)]
    fits, expected = torch.ones_like(samples, dtype=torch.bool), torch.ones_like(samples)
    block = []
    for lo, hi, f, side in zip(low, high, factor, grid.shape, strict=True):
        start = lo // f * f
        fits &= hi < start + f
        expected = expected * ((start + f).clamp(max=side) - start)
        block.append(lo // f)
    if bool((fits & (count == expected)).all()):
        target = grids.coarse(number, factor)
        return grids.ids(target, sample=samples, index=ravel(block, grids.known[target].shape))
    return _loose(number, samples, ordered, grids)


def _loose(
    number: int, samples: Int[Tensor, " set"], members: Int[Tensor, "set part"], grids: Grids
) -> Int[Tensor, " set"]:
    """Return tokens without a box, numbered by their parts in reading order."""
    kinds, which = torch.unique(members, dim=0, return_inverse=True)
    target = grids.number(kind="loose", shape=(len(kinds),), name=(number, hash(tuple(kinds.flatten().tolist()))))
    return grids.ids(target, sample=samples, index=which)

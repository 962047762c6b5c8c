"""What does one thing to every element: the token stays; and joining of tensors, where new tokens come in."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .grids import MIXED, MOST_IDS, NOTHING, Grids
from .ids import Ids, first, is_pair, make, plain, thin, told

_CELL = 3  # rank of a cell: it says most


def combined(left: Tensor, right: Tensor, *, grids: Grids) -> Ids:
    """Return the ids of a sum or product of two tensors, of which one may not be of the picture.

    Where both are, and say different things, logits come before tokens, cells before learned tokens
    (which scale or shift them), and the left before the right. Cells that lie a little apart, as two ways
    round a block with stride put them, lie in the middle between.
    """
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]
    if not isinstance(right, Ids) or not isinstance(left, Ids):
        known = left if isinstance(left, Ids) else right
        assert isinstance(known, Ids)
        return make(plain(known).expand(shape), known.story)
    story = told([left, right])
    a, b = plain(left), plain(right)
    if is_pair(left) != is_pair(right):
        logits = left if is_pair(left) else right
        return make(plain(logits).expand(shape), replace(story, softmax=logits.story.softmax))
    story = replace(story, softmax=left.story.softmax and right.story.softmax)  # a gate makes no distribution
    small_a, small_b = thin(a), thin(b)
    if a.shape == b.shape and torch.equal(small_a, small_b):
        return make(a.expand(shape), story)
    grid_a, grid_b = _only_grid(small_a, grids), _only_grid(small_b, grids)
    between = None if grid_a is None or grid_b is None or grid_a == grid_b else grids.between(grid_a, grid_b)
    if between is not None and a.shape == b.shape:
        same = _same_cells(small_a, small_b, grids)
        if same is not None:
            return make(grids.ids(between, sample=same[0], index=same[1]).to(torch.float64).expand(shape), story)
    if grid_a is not None:  # two cells of one grid in one token: it has no place of its own
        own = small_a if grid_a != grid_b else torch.where(small_a == small_b, small_a, float(MIXED))
        return make(own.expand(shape), story)
    if is_pair(left):
        return make(a.expand(shape), story)
    rank_a, rank_b = _rank(small_a, grids), _rank(small_b, grids)
    numbers = grids.decode(first(small_a))[0], grids.decode(first(small_b))[0]
    clash = (rank_a == _CELL) & (numbers[0] == numbers[1]) & (small_a != small_b)
    found = torch.where(rank_a < rank_b, small_b, small_a)
    return make(torch.where(clash, float(MIXED), found).expand(shape), story)


def _same_cells(
    left: Float[Tensor, "..."], right: Float[Tensor, "..."], grids: Grids
) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]] | None:
    """Return sample and index of cells that are the same cells of two grids; None where they are others."""
    _, sample, index = grids.decode(first(left))
    _, other_sample, other_index = grids.decode(first(right))
    alike = bool((sample == other_sample).all()) and bool((index == other_index).all())
    return (sample, index) if alike else None


def _only_grid(values: Float[Tensor, "..."], grids: Grids) -> int | None:
    """Return the grid that all are cells of, told by the smallest and largest id; None if there is none."""
    ends = torch.stack([values.min(), values.max()]) if values.numel() else values.new_zeros(2)
    if float(ends[1]) >= MOST_IDS:
        return None
    numbers, _, _ = grids.decode(ends.to(torch.int64))
    number = int(numbers[0])
    return number if number == int(numbers[1]) >= 0 and grids.known[number].kind == "cells" else None


def _rank(values: Float[Tensor, "..."], grids: Grids) -> Int[Tensor, "..."]:
    """Return how much an id says: nothing, mixed, a learned or pooled token, a cell."""
    ids = first(values)
    numbers, _, _ = grids.decode(ids)
    cells = torch.tensor([grid.kind == "cells" for grid in grids.known] + [False])
    rank = torch.where(cells[numbers.clamp(min=0)], _CELL, 2)
    return torch.where(ids == NOTHING, 0, torch.where(ids == MIXED, 1, rank))


def joined(parts: Sequence[Tensor], dim: int, *, roles: Sequence[str], grids: Grids) -> Ids:
    """Return tensors one behind the other; parts that are not of the picture are learned tokens, or nothing.

    Parameters
    ----------
    parts, dim
        As torch.cat takes them.
    roles
        What each part is as a token, empty where it has no name.
    grids
        Takes the learned tokens.

    """
    known = next(part for part in parts if isinstance(part, Ids))
    dim %= known.dim()
    sequence = known.dim() == 3 and dim == 1  # [sample, token, channel]
    made = []
    for part, role in zip(parts, roles, strict=True):
        if isinstance(part, Ids):
            made.append(plain(part))
        elif role or sequence:
            made.append(_learned(part, known, dim, role=role or "learned", grids=grids))
        else:
            made.append(torch.zeros(part.shape, dtype=torch.float64))
    return make(torch.cat(made, dim), told(parts))


def _learned(part: Tensor, known: Ids, dim: int, *, role: str, grids: Grids) -> Float[Tensor, "..."]:
    """Return the ids of learned tokens that stand along `dim`."""
    name = (role, part.untyped_storage().data_ptr())  # two branches may each have a class token
    number = grids.number(kind="special", shape=(part.shape[dim],), role=role, name=name)
    sample = _samples(known, part.shape[0], grids=grids).reshape([-1, *[1] * (part.dim() - 1)])
    index = torch.arange(part.shape[dim]).reshape([-1 if place == dim else 1 for place in range(part.dim())])
    return grids.ids(number, sample=sample, index=index).to(torch.float64).expand(part.shape)


def _samples(known: Ids, count: int, *, grids: Grids) -> Int[Tensor, " count"]:
    """Return the sample of each of `count` entries that stand beside the first dimension of `known`."""
    flat = first(thin(plain(known)).flatten(1))
    _, sample, _ = grids.decode(flat.amax(1))
    if len(sample) == 1:
        return sample.expand(count)
    return sample.repeat_interleave(count // len(sample)) if count % len(sample) == 0 else sample[:1].expand(count)


def as_queries(tensor: Tensor, known: Ids, *, grids: Grids, role: str = "query") -> Ids:
    """Return learned queries `[*lead, query, dim]` as tokens: one for each query and sample of `known`."""
    lead = tensor.shape[:-2]
    _, present, _ = grids.decode(first(thin(plain(known))).flatten().amax()[None])
    number = grids.number(kind="special", shape=(tensor.shape[-2],), role=role, name=role)
    count = lead[0] if lead else 1
    sample = _samples(known, count, grids=grids) if int(present) or count > 1 else torch.zeros(count, dtype=torch.int64)
    shape = [count, *[1] * len(lead[1:]), 1, 1]
    ids = grids.ids(number, sample=sample.reshape(shape), index=torch.arange(tensor.shape[-2])[:, None])
    return make(ids.to(torch.float64).expand(*(lead or (1,)), *tensor.shape[-2:]).reshape(tensor.shape))

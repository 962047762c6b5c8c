"""What does one thing to every element: the token stays; and joining of tensors, where new tokens come in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .grids import MIXED, NOTHING, Grids
from .ids import Ids, Story, first, is_pair, make, plain, thin, told


def combined(left: Tensor, right: Tensor, *, grids: Grids) -> Ids:
    """Return the ids of a sum or product of two tensors, of which one may not be of the picture."""
    shape = torch.broadcast_shapes(left.shape, right.shape)
    if not isinstance(right, Ids) or not isinstance(left, Ids):
        known = left if isinstance(left, Ids) else right
        assert isinstance(known, Ids)
        return make(plain(known).expand(shape), known.story)
    story = told([left, right])
    a, b = plain(left), plain(right)
    if a is b or (a.shape == b.shape and torch.equal(thin(a), thin(b))):
        return make(a.expand(shape), story)
    if is_pair(left) != is_pair(right):
        return make((a if is_pair(left) else b).expand(shape), story)
    small_a, small_b = thin(a), thin(b)
    worse = _rank(small_a, grids) < _rank(small_b, grids)
    return make(torch.where(worse, small_b, small_a).expand(shape), story)


def _rank(values: Tensor, grids: Grids) -> Tensor:
    """Return how much an id says: nothing, mixed, a special token, a cell."""
    ids = first(values)
    numbers, _, _ = grids.decode(ids)
    cells = torch.tensor([grid.kind == "cells" for grid in grids.known] + [False])
    rank = torch.where(cells[numbers.clamp(min=0)], 3, 2)
    return torch.where(ids == NOTHING, 0, torch.where(ids == MIXED, 1, rank))


def joined(parts: Sequence[Tensor], dim: int, *, roles: Sequence[str], grids: Grids) -> Ids:
    """Return tensors one behind the other; parts that are not of the picture are learned tokens, or nothing.

    Parameters
    ----------
    parts, dim
        As torch.cat takes them.
    roles
        What each part is as a token, empty where it has no name.

    """
    known = next(part for part in parts if isinstance(part, Ids) and part.dim() > 1)
    dim %= known.dim()
    grows = known.dim() == 3 and dim == 1
    made = [
        plain(part)
        if isinstance(part, Ids)
        else _learned(part, known, dim, role=role if grows or role else "", grows=grows, grids=grids)
        for part, role in zip(parts, roles, strict=True)
    ]
    return make(torch.cat(made, dim), told(parts))


def _learned(part: Tensor, known: Ids, dim: int, *, role: str, grows: bool, grids: Grids) -> Tensor:
    if not role and not grows:
        return torch.zeros(part.shape, dtype=torch.float64)
    number = grids.number(kind="special", shape=(part.shape[dim],), role=role or "learned", name=role)
    sample = samples_of(known, grids=grids).reshape([-1, *[1] * (part.dim() - 1)])
    index = torch.arange(part.shape[dim]).reshape([-1 if place == dim else 1 for place in range(part.dim())])
    ids = grids.ids(number, sample=sample, index=index)
    return ids.to(torch.float64).expand(len(sample) if part.shape[0] == 1 else part.shape[0], *part.shape[1:])


def samples_of(known: Ids, *, grids: Grids) -> Tensor:
    """Return the sample of each entry of the first dimension."""
    flat = first(thin(plain(known)).flatten(1))
    _, sample, _ = grids.decode(flat.amax(1))
    return sample.expand(known.shape[0]) if len(sample) == 1 else sample


def as_queries(tensor: Tensor, known: Ids, *, grids: Grids, role: str = "query") -> Ids:
    """Return learned queries `[..., query, dim]` as tokens, one number a query."""
    number = grids.number(kind="special", shape=(tensor.shape[-2],), role=role, name=role)
    sample = samples_of(known, grids=grids).reshape([-1, *[1] * (max(tensor.dim(), 3) - 1)])
    ids = grids.ids(number, sample=sample, index=torch.arange(tensor.shape[-2])[:, None])
    shape = list(tensor.shape) if tensor.dim() > 2 else [1, *tensor.shape]
    shape[0] = max(shape[0], len(sample) if shape[0] == 1 else 1)
    values = ids.to(torch.float64)
    if shape[0] % len(values):
        values = values[:1]
    return make(
        values.expand(shape)
        if shape[0] == len(values) or len(values) == 1
        else values.repeat_interleave(shape[0] // len(values), 0).expand(shape),
        Story(),
    )

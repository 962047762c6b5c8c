"""Between layers whose axes differ: how relevance over one axis becomes relevance over another.

Rollout goes from the last layer to the first. Where a stage merged patches, pooled keys or added a
class token late, the tokens that a layer reads are not those that the layer before it wrote, and
what moves relevance across is the overlap of their places:

    T[i, j] = |place(i) and place(j)| / |place(i)|,          row over `to` = row over `from` . T

so that a row keeps its mass where the places of `to` cover those of `from`, and loses (and says)
what they do not. Places are products of intervals, so T is found dimension by dimension and kept
as its non-zero entries: never from x to.

- A dimension that only `from` has (the time of tubelets that become patches) is summed over.
- A dimension that only `to` has is spread over evenly: a patch without a time stands for all times.
- Special tokens go to special tokens of the same role, in order; where the counts differ, their
  mass is dealt out in order; where `to` has no such role it is lost, and `note` says so.
- Nodes go by their id; positions and slots only to as many of their own kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import (
    Axis,
    Joined,
    Nodes,
    PatchGrid,
    Positions,
    SpectrogramGrid,
    Timeline,
    Tokens,
    TubeletGrid,
)
from mmattn.schema.lattices import Lattice

# From-token, to-token, and the share of the from-token's mass that goes there.
_Entries: TypeAlias = tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"], Float[np.ndarray, " entry"]]

_OnLattice = PatchGrid | TubeletGrid | SpectrogramGrid | Timeline | Tokens

# Overlaps below this share of a cell are rounding of the edges, not places.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """A sparse matrix `[from, to]` that moves rows of relevance from one axis to another.

    Parameters
    ----------
    from_tokens, to_tokens, shares
        Its entries: the share of each from-token's mass that goes to a to-token.
    from_axis, to_axis
        What the rows are over before and after.

    """

    from_tokens: Int[Tensor, " entry"]
    to_tokens: Int[Tensor, " entry"]
    shares: Float[Tensor, " entry"]
    from_axis: Axis
    to_axis: Axis

    @property
    def is_identity(self) -> bool:
        """Whether every token stays itself."""
        return self.from_axis is self.to_axis or self.from_axis == self.to_axis

    def move(self, rows: Float[Tensor, "*row from_token"]) -> Float[Tensor, "*row to_token"]:
        """Return rows over `to_axis`: `rows . T`, differentiable, on the device of the rows."""
        if self.is_identity:
            return rows
        device = rows.device
        parts = rows[..., self.from_tokens.to(device)] * self.shares.to(device, rows.dtype)
        out = rows.new_zeros(*rows.shape[:-1], len(self.to_axis))
        return out.index_add(-1, self.to_tokens.to(device), parts)

    def matrix(self) -> Tensor:
        """Return T as a sparse COO tensor `[from, to]`."""
        index = torch.stack([self.from_tokens, self.to_tokens])
        size = (len(self.from_axis), len(self.to_axis))
        return torch.sparse_coo_tensor(index, self.shares, size, check_invariants=True).coalesce()

    @cached_property
    def lost(self) -> Float[Tensor, " from_token"]:
        """For each from-token the share of its mass that goes nowhere."""
        kept = torch.zeros(len(self.from_axis), dtype=self.shares.dtype)
        return (1.0 - kept.index_add(0, self.from_tokens, self.shares)).clamp(min=0.0)

    def lost_by_role(self, row: Float[Tensor, " from_token"]) -> dict[str, float]:
        """Return how much of a row goes nowhere, by the role of the tokens that had it."""
        lost = (row.detach().cpu().to(self.lost.dtype) * self.lost).clamp(min=0.0)
        tokens = {"content": self.from_axis.content.tolist(), **self.from_axis.special()}
        masses = {role: float(lost[own].sum()) for role, own in tokens.items() if own}
        return {role: mass for role, mass in masses.items() if mass > 0.0}

    @property
    def note(self) -> str:
        """One phrase on what is not passed on, for captions; empty where everything is."""
        lost = self.lost > 1e-6
        counts: dict[str, int] = {}
        for token in torch.nonzero(lost).flatten().tolist():
            role = self.from_axis.roles[token]
            counts[role] = counts.get(role, 0) + 1
        listed = ", ".join(f"{count} {role}" for role, count in counts.items())
        return f"not passed on (whole or in part): {listed} token(s)" if counts else ""

    def __repr__(self) -> str:
        return f"Transfer({self.from_axis!r} -> {self.to_axis!r}, {len(self.shares)} entries)"


def transfer(from_axis: Axis, to_axis: Axis) -> Transfer:
    """Return how rows of relevance over `from_axis` become rows over `to_axis`, by overlap of places.

    Raises
    ------
    InputError
        Where the places of the two cannot be compared (slots and patches, two different pictures).

    Examples
    --------
    >>> fine = PatchGrid.plain(rows=4, cols=4, patch_px=(8, 8), size_px=(32, 32), special=("cls",))
    >>> merged = PatchGrid.plain(rows=2, cols=2, patch_px=(16, 16), size_px=(32, 32))
    >>> transfer(merged, fine).move(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0, :7]
    tensor([0.0000, 0.2500, 0.2500, 0.0000, 0.0000, 0.2500, 0.2500])
    >>> transfer(fine, merged).note
    'not passed on (whole or in part): 1 cls token(s)'

    """
    if from_axis == to_axis:
        every = np.arange(len(from_axis))
        entries: _Entries = (every, every, np.ones(len(every)))
    else:
        entries = _entries(from_axis, to_axis)
    sources, targets, shares = (torch.as_tensor(np.ascontiguousarray(part)) for part in entries)
    return Transfer(from_tokens=sources, to_tokens=targets, shares=shares, from_axis=from_axis, to_axis=to_axis)


def _entries(one: Axis, two: Axis) -> _Entries:
    """Return the entries for content by place and for special tokens by role."""
    if isinstance(one, Joined) or isinstance(two, Joined):
        return _joined(one, two)
    return _concatenate([_content(one, two), _special(one.special(), two.special())])


def _content(one: Axis, two: Axis) -> _Entries:
    if isinstance(one, _OnLattice) and isinstance(two, _OnLattice) and set(one.lattice.dims) & set(two.lattice.dims):
        _check_same_input(one, two)
        return _overlap(one.lattice, two.lattice)
    if isinstance(one, Nodes) and isinstance(two, Nodes) and one.node_type == two.node_type:
        _, at_one, at_two = np.intersect1d(one.places(), two.places(), return_indices=True)
        return one.content[at_one], two.content[at_two], np.ones(len(at_one))
    if isinstance(one, Positions) and type(one) is type(two) and len(one.content) == len(two.content):
        return one.content, two.content, np.ones(len(one.content))
    raise InputError(
        f"Relevance over {one!r} cannot be moved to {two!r}: their places do not compare. "
        "Both need places in the same input (or as many slots). Start after that layer, or use the adapter's transfer."
    )


def _check_same_input(one: _OnLattice, two: _OnLattice) -> None:
    for noun, name in (("pictures", "size_px"), ("texts", "text")):
        first, second = getattr(one, name, None), getattr(two, name, None)
        if first is not None and second is not None and first != second:
            raise InputError(
                f"The axes lie on different {noun}: {str(first)[:40]!r} and {str(second)[:40]!r}. Places compare "
                "on one input only. Pass two axes of the same sample."
            )


def _overlap(one: Lattice, two: Lattice) -> _Entries:
    """Return the overlap of two lattices: the product of the overlaps along each dimension."""
    source = target = np.zeros(1, dtype=np.int64)
    share = np.ones(1)
    for dim in dict.fromkeys(one.dims + two.dims):
        i, j, part = _along(one, two, dim)
        i, j = i * _stride(one, dim), j * _stride(two, dim)
        source = (source[:, None] + i[None, :]).ravel()
        target = (target[:, None] + j[None, :]).ravel()
        share = (share[:, None] * part[None, :]).ravel()
    sources, targets = one.tokens.ravel()[source], two.tokens.ravel()[target]
    real = (sources >= 0) & (targets >= 0)
    return sources[real], targets[real], share[real]


def _along(one: Lattice, two: Lattice, dim: str) -> _Entries:
    """Return which cells meet along one dimension and the share of the first's length that they share."""
    if dim not in two.dims:
        cells = np.arange(len(one.intervals[one.dims.index(dim)]))
        return cells, np.zeros_like(cells), np.ones(len(cells))
    spans = two.intervals[two.dims.index(dim)]
    if dim not in one.dims:
        lengths = spans[:, 1] - spans[:, 0]
        return np.zeros(len(spans), dtype=np.int64), np.arange(len(spans)), lengths / max(lengths.sum(), 1e-300)
    return interval_overlap(one.intervals[one.dims.index(dim)], spans)


def interval_overlap(one: Float[np.ndarray, "a 2"], two: Float[np.ndarray, "b 2"]) -> _Entries:
    """Return pairs (i, j) of ascending disjoint intervals that meet, and the share of i that j covers.

    Examples
    --------
    >>> interval_overlap(np.array([[0.0, 3.0]]), np.array([[0.0, 1.0], [1.0, 4.0]]))[2].round(3).tolist()
    [0.333, 0.667]

    """
    first = np.searchsorted(two[:, 1], one[:, 0], side="right")
    last = np.searchsorted(two[:, 0], one[:, 1], side="left")
    counts = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(one)), counts)
    j = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts) + first[i]
    shared = np.minimum(one[i, 1], two[j, 1]) - np.maximum(one[i, 0], two[j, 0])
    share = shared / (one[i, 1] - one[i, 0])
    real = share > _ROUNDING
    return i[real], j[real], share[real]


def _stride(lattice: Lattice, dim: str) -> int:
    if dim not in lattice.dims:
        return 0
    return int(np.prod(lattice.tokens.shape[lattice.dims.index(dim) + 1 :], dtype=np.int64))


def _special(one: dict[str, list[int]], two: dict[str, list[int]]) -> _Entries:
    """Deal out special tokens to those of the same role: token i of n lies at i/n to (i + 1)/n of the role."""
    parts = []
    for role in [role for role in one if role in two]:
        sources, targets = np.array(one[role]), np.array(two[role])
        a = np.arange(len(sources) + 1, dtype=np.float64) * len(targets)
        b = np.arange(len(targets) + 1, dtype=np.float64) * len(sources)
        i, j, share = interval_overlap(np.stack([a[:-1], a[1:]], axis=1), np.stack([b[:-1], b[1:]], axis=1))
        parts.append((sources[i], targets[j], share))
    return _concatenate(parts)


def _joined(one: Axis, two: Axis) -> _Entries:
    """Return the entries part by part; a plain axis goes to (or comes from) the one part that it compares with."""
    parts = [
        (where_one[i], where_two[j], share)
        for (part_one, where_one), (part_two, where_two) in _paired(one, two)
        for i, j, share in [_entries(part_one, part_two)]
    ]
    return _concatenate([*parts, _special(_loose(one), _loose(two))])


_Standing: TypeAlias = tuple[Axis, Int[np.ndarray, " _"]]


def _paired(one: Axis, two: Axis) -> list[tuple[_Standing, _Standing]]:
    """Return which part goes to which, each with where it stands in its sequence."""
    if isinstance(one, Joined) and isinstance(two, Joined):
        names = [name for name in one.names if name in two.names]
        if not names:
            raise InputError(
                f"The parts {', '.join(one.names)} and {', '.join(two.names)} have no name in common. "
                "Parts go to parts of the same name. Name them alike."
            )
        return [(one.part(name), two.part(name)) for name in names]
    pairs: list[tuple[_Standing, _Standing]] = []
    for first in _standing(one):
        for second in _standing(two):
            if _compares(first[0], second[0]):
                pairs.append((first, second))
    if len(pairs) != 1:
        raise InputError(
            f"Relevance over {one!r} cannot be moved to {two!r}: {len(pairs)} of the parts compare. "
            "Exactly one must. Move from or to that part's own axis: axis.part(name)."
        )
    return pairs


def _standing(axis: Axis) -> list[_Standing]:
    if isinstance(axis, Joined):
        return [axis.part(name) for name in axis.names]
    return [(axis, np.arange(len(axis)))]


def _compares(one: Axis, two: Axis) -> bool:
    if one == two:
        return True
    try:
        _content(one, two)
    except InputError:
        return False
    return True


def _loose(axis: Axis) -> dict[str, list[int]]:
    """Return the special tokens of no part, by role."""
    if not isinstance(axis, Joined):
        return {}
    special = axis.special()
    loose = {role: [token for token in tokens if axis.part_of(token) is None] for role, tokens in special.items()}
    return {role: tokens for role, tokens in loose.items() if tokens}


def _concatenate(parts: Sequence[tuple[Any, Any, Any]]) -> _Entries:
    none = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([none, *(part[0] for part in parts)]),
        np.concatenate([none, *(part[1] for part in parts)]),
        np.concatenate([np.zeros(0), *(part[2] for part in parts)]),
    )

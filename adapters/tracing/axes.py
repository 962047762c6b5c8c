"""From the ids on one side of an attention to an axis, and to where each of its positions stands on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.schema.axes import Axis, PatchGrid, Slots

from ..pixels import Geometry
from .grids import MIXED, NOTHING, Grid, Grids, unravel


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An axis before it is laid over a picture; equal specs are the same axis.

    Parameters
    ----------
    rows, cols, patch_px, origin_px
        The grid in model pixels (x, y); no rows for tokens without a box.
    cells
        Cell of each token, -1 for special ones.
    roles
        Role of each token.

    """

    rows: int = 0
    cols: int = 0
    patch_px: tuple[float, float] = (1.0, 1.0)
    origin_px: tuple[float, float] = (0.0, 0.0)
    cells: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()

    @property
    def has_cells(self) -> bool:
        """Whether any of its tokens is a cell."""
        return "content" in self.roles and self.has_boxes

    @property
    def has_boxes(self) -> bool:
        """Whether its tokens stand on a grid."""
        return self.rows > 0

    def axis(self, geometry: Geometry) -> Axis:
        """Return the axis for a picture that came to the model by `geometry`: one object for all layers."""
        return _axis(self, geometry)


@lru_cache(maxsize=256)
def _axis(spec: Spec, geometry: Geometry) -> Axis:
    if not spec.has_boxes:
        return Slots.count(len(spec.roles))
    to_input = geometry.to_input.copy()
    to_input[:, 2] += to_input[:, :2] @ np.array(spec.origin_px)
    width, height = geometry.model_px
    x, y = spec.origin_px
    ends = (x + spec.cols * spec.patch_px[0], y + spec.rows * spec.patch_px[1])
    filling = (x, y, *ends) == (0, 0, width, height)
    return PatchGrid(
        rows=spec.rows,
        cols=spec.cols,
        patch_px=spec.patch_px,
        size_px=geometry.size_px,
        to_input=to_input,
        cells=np.array(spec.cells, dtype=np.int64),
        roles=spec.roles,
        limits_px=None if filling else (-x, -y, width - x, height - y),
    )


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of an attention.

    Parameters
    ----------
    spec
        Its axis.
    index
        `[block, position]`: the token at each position, -1 for none; None where position i is token i.
    sample
        Sample of each block, -1 where a block holds no token.
    why
        Why its tokens have no box; empty where they have.

    """

    spec: Spec
    index: Int[Tensor, "block position"] | None
    sample: Int[Tensor, " block"]
    why: str = ""


def side_of(ids: Int[Tensor, "block position"], grids: Grids, *, once: bool = False) -> Side:
    """Return the axis of the tokens `[block, position]` of one side, and where each stands.

    Parameters
    ----------
    ids, grids
        What they are.
    once
        Whether each token stands in one block only, as those that ask do.

    """
    numbers, sample, index = grids.decode(ids)
    if grids.samples == 1:  # also of tokens whose sample is not known
        sample, samples = torch.zeros_like(sample), torch.where(ids > NOTHING, 0, -1).amax(1)
    else:
        samples = torch.where(numbers >= 0, sample, -1).amax(1)
    kinds = {number: grids.known[number] for number in torch.unique(numbers).tolist() if number >= 0}
    boxes = [number for number, grid in kinds.items() if grid.kind == "cells" and len(grid.shape) == 2]
    learned = [number for number, grid in kinds.items() if grid.kind == "special" and grid.role == "query"]
    apart = bool((numbers == -2).any())
    why = _why(kinds, boxes, apart)
    if not why and _repeats(ids if not once else ids.reshape(1, -1)):
        why, apart = "several tokens stand for one place", True
    if why or (learned and not boxes):
        return _loose(ids, samples, why=why, apart=apart)
    here = numbers == boxes[0] if boxes else torch.zeros_like(numbers, dtype=torch.bool)
    spec, cell = _lattice(index, here, grids.known[boxes[0]] if boxes else None)
    tokens = torch.where(here, cell, -1)  # cells are 0, 1, ...; special tokens -2, -3, ...; nothing -1
    special: dict[tuple[int, int], int] = {}
    for number in kinds:
        if number in boxes:
            continue
        for one in torch.unique(index[numbers == number]).tolist():
            special[number, one] = -2 - len(special)
            tokens = torch.where((numbers == number) & (index == one), special[number, one], tokens)
    roles = {code: kinds[number].role_at(index) for (number, index), code in special.items()}
    return _ordered(tokens, samples, spec=spec, roles=roles)


def _repeats(ids: Int[Tensor, "block position"]) -> bool:
    """Whether any token stands twice in a block."""
    ordered = ids.sort(dim=1).values
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > MIXED)).any())


def _why(kinds: dict[int, Grid], boxes: list[int], mixed: bool) -> str:
    loose = [grid for grid in kinds.values() if grid.kind == "loose"]
    if loose:
        return f"{loose[0].count} tokens are made of patches that form no box"
    if mixed:
        return "tokens are mixtures that cannot be placed"
    other = [len(grid.shape) for grid in kinds.values() if grid.kind == "cells" and len(grid.shape) != 2]
    if other:
        return f"tokens stand on a grid of {other[0]} dimensions"
    if len(boxes) > 1:
        return "tokens of several grids stand in one sequence"
    return ""


def _lattice(index: Int[Tensor, "block position"], here: Tensor, grid: Grid | None) -> tuple[Spec, Tensor]:
    """Return the grid of the cells that are there, coarser where only every n-th row and column of all is."""
    if grid is None:
        return Spec(rows=1, cols=1), torch.full_like(index, -1)
    along = unravel(index, grid.shape)
    present = [torch.unique(coords[here]) for coords in along]
    whole = len(torch.unique(index[here])) == len(present[0]) * len(present[1])
    counts, steps, starts, cells = [], [], [], []
    for coords, found, side in zip(along, present, grid.shape, strict=True):
        gaps = found.diff().unique()
        step = int(gaps[0]) if whole and len(gaps) == 1 else 1
        if int(found[0]) >= step or int(found[-1]) + step < side:  # only a part of the map is there
            step = 1
        start = int(found[0]) if step > 1 else 0
        counts.append(len(found) if step > 1 else side)
        steps.append(step)
        starts.append(start)
        cells.append((coords - start) // step)
    cell, origin = grid.cell, grid.origin
    spec = Spec(
        rows=counts[0],
        cols=counts[1],
        patch_px=(cell[1] * steps[1], cell[0] * steps[0]),
        origin_px=(
            origin[1] + (starts[1] + 0.5 - steps[1] / 2) * cell[1],
            origin[0] + (starts[0] + 0.5 - steps[0] / 2) * cell[0],
        ),
    )
    return spec, cells[0] * counts[1] + cells[1]


def _ordered(
    tokens: Int[Tensor, "block position"], samples: Int[Tensor, " block"], *, spec: Spec, roles: dict[int, str]
) -> Side:
    """Return the side with tokens in the order of the sequence where that is plain, else special ones first."""
    sequence = tokens[0].tolist()
    same = bool((tokens == tokens[0]).all()) and len(torch.unique(samples)) == len(samples)
    plain = same and -1 not in sequence and len(set(sequence)) == len(sequence)
    content = [token for token in sequence if token >= 0]
    if plain and content == sorted(content):
        return Side(spec=_spec(spec, sequence, roles), index=None, sample=samples)
    present = torch.unique(tokens).tolist()
    order = sorted((t for t in present if t < -1), reverse=True) + [t for t in present if t >= 0]
    place = torch.full((max([*order, 0]) + 2 + len(roles) + 1,), -1, dtype=torch.long)
    shift = 2 + len(roles)  # codes start at -1 - number of roles
    place[torch.tensor(order) + shift] = torch.arange(len(order))
    index = torch.where(tokens == -1, -1, place[tokens + shift])
    return Side(spec=_spec(spec, order, roles), index=index, sample=samples)


def _spec(spec: Spec, order: Sequence[int], roles: dict[int, str]) -> Spec:
    return Spec(
        rows=spec.rows,
        cols=spec.cols,
        patch_px=spec.patch_px,
        origin_px=spec.origin_px,
        cells=tuple(max(token, -1) for token in order),
        roles=tuple("content" if token >= 0 else roles[token] for token in order),
    )


def _loose(ids: Int[Tensor, "block position"], samples: Int[Tensor, " block"], *, why: str, apart: bool) -> Side:
    """Return a side whose tokens are only counted, in the order of their ids, or each by itself (`apart`)."""
    alone = len(torch.unique(samples)) == len(samples)
    if alone:
        return Side(spec=Spec(roles=("slot",) * ids.shape[1]), index=None, sample=samples, why=why)
    index = torch.full_like(ids, -1)
    longest = 0
    for sample in torch.unique(samples[samples >= 0]).tolist():
        own = samples == sample
        each = torch.arange(1, ids[own].numel() + 1).reshape(ids[own].shape)
        given = torch.where(ids[own] > NOTHING, each, NOTHING) if apart else ids[own]
        found, which = torch.unique(given, return_inverse=True)
        skip = int(bool(len(found)) and int(found[0]) == 0)
        index[own] = which - skip
        longest = max(longest, len(found) - skip)
    return Side(spec=Spec(roles=("slot",) * longest), index=index, sample=samples, why=why)

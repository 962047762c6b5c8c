"""The tokens that a trace can name: cells of grids laid over the input, learned tokens, tokens without a box.

Every token of every sample has one number, its id. 0 is nothing (padding, constants), 1 is a token
that is made of several others and has no place of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.errors import InputError

NOTHING, MIXED = 0, 1

# Two ids are packed into one double, which holds numbers up to 2^51 and halves beside them.
MOST_IDS = 1 << 25

Kind = Literal["cells", "special", "loose"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A family of tokens with neighbouring ids, the same for each sample.

    Parameters
    ----------
    kind
        `cells` of a grid; `special`: learned or pooled tokens of one role; `loose`: tokens made of
        parts that form no box.
    shape
        Cells along each dimension; for the other kinds one number.
    cell, origin
        Extent of a cell and start of the first one along each dimension, in model pixels.
    role
        What special tokens are: `cls`, `register`, `mean`, ...; a word for each where they differ.
    offset
        Its first id.

    """

    kind: Kind
    shape: tuple[int, ...]
    cell: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    role: str = ""
    offset: int = 0

    def role_at(self, index: int) -> str:
        """Return the role of one special token."""
        words = self.role.split()
        return words[index] if len(words) == self.count else self.role

    @property
    def count(self) -> int:
        """Tokens a sample."""
        total = 1
        for side in self.shape:
            total *= side
        return total


class Grids:
    """All grids of one trace, by number and by id."""

    def __init__(self, *, samples: int) -> None:
        self.samples = samples
        self.known: list[Grid] = []
        self._next = 2
        self._found: dict[tuple[object, ...], int] = {}
        self._made_of: dict[int, int] = {}

    def number(
        self,
        *,
        kind: Kind = "cells",
        shape: Sequence[int],
        cell: Sequence[float] = (),
        origin: Sequence[float] = (),
        role: str = "",
        name: object = "",
    ) -> int:
        """Return the number of a grid; a grid of the same extent (and name) is the same grid."""
        cell, origin = tuple(round(float(v), 6) for v in cell), tuple(round(float(v), 6) for v in origin)
        key = (kind, tuple(shape), cell, origin, role, name)
        if key not in self._found:
            grid = Grid(kind=kind, shape=tuple(shape), cell=cell, origin=origin, role=role, offset=self._next)
            self._next += grid.count * self.samples
            if self._next >= MOST_IDS:
                raise InputError(
                    f"{self.samples} pictures of this size have more than {MOST_IDS} tokens and pixels, more than can "
                    "be told apart at once. Attend fewer pictures at a time, or smaller ones."
                )
            self.known.append(grid)
            self._found[key] = len(self.known) - 1
        return self._found[key]

    def ids(self, number: int, *, sample: Int[Tensor, "*#any"], index: Int[Tensor, "*#any"]) -> Int[Tensor, "..."]:
        """Return the ids of tokens of a grid."""
        grid = self.known[number]
        return grid.offset + sample * grid.count + index

    def decode(self, ids: Int[Tensor, "*any"]) -> tuple[Int[Tensor, "*any"], Int[Tensor, "*any"], Int[Tensor, "*any"]]:
        """Return the grid (-1: nothing, -2: mixed), the sample and the index in the grid of each id."""
        offsets = torch.tensor([grid.offset for grid in self.known] + [self._next])
        counts = torch.tensor([grid.count for grid in self.known] + [1])
        grid = torch.searchsorted(offsets, ids.contiguous(), right=True) - 1
        safe = grid.clamp(min=0)
        within = ids - offsets[safe]
        sample, index = within // counts[safe], within % counts[safe]
        grid = torch.where(ids == MIXED, -2, torch.where(ids == NOTHING, -1, grid))
        return grid, sample, index

    def coarse(
        self, number: int, factor: Sequence[float], *, shift: Sequence[float] = (), shape: Sequence[int] = ()
    ) -> int:
        """Return the grid whose cells are `factor` cells of this one along each dimension.

        Parameters
        ----------
        number, factor
            Which grid, and how many of its cells.
        shift
            Where the first new cell begins, in cells of this grid; none: with the first of its own.
        shape
            New cells along each dimension; none: as many as hold all of its own.

        """
        grid = self.known[number]
        shift = shift or [0.0] * len(grid.shape)
        made = self.number(
            shape=shape or [int(-(-side // f)) for side, f in zip(grid.shape, factor, strict=True)],
            cell=[extent * f for extent, f in zip(grid.cell, factor, strict=True)],
            origin=[start + extent * by for start, extent, by in zip(grid.origin, grid.cell, shift, strict=True)],
        )
        if made > number:  # an older grid was there first
            self._made_of.setdefault(made, number)
        return made

    def between(self, one: int, two: int) -> int | None:
        """Return where the sum of two maps lies that are less than a cell apart; None for other maps.

        It is the one that the other was made of (the stream that runs beside a block), else the middle.
        """
        left, right = self.known[one], self.known[two]
        apart = [abs(a - b) / cell for a, b, cell in zip(left.origin, right.origin, left.cell, strict=True)]
        if left.shape != right.shape or left.cell != right.cell or max(apart) >= 1:
            return None
        for older, newer in ((one, two), (two, one)):
            if older in self._ancestors(newer):
                return older
        middle = [(a + b) / 2 for a, b in zip(left.origin, right.origin, strict=True)]
        return self.number(shape=left.shape, cell=left.cell, origin=middle)

    def _ancestors(self, number: int) -> set[int]:
        found: set[int] = set()
        while number in self._made_of and self._made_of[number] not in found:
            number = self._made_of[number]
            found.add(number)
        return found

    def resampled(self, number: int, shape: Sequence[int]) -> int:
        """Return the grid of another number of cells over the same extent."""
        grid = self.known[number]
        made = self.number(
            shape=shape,
            cell=[extent * old / new for extent, old, new in zip(grid.cell, grid.shape, shape, strict=True)],
            origin=grid.origin,
        )
        if made > number:  # an older grid was there first
            self._made_of.setdefault(made, number)
        return made

    def whole(self, ids: Int[Tensor, "map *any"]) -> int | None:
        """Return the grid that every map is, cell by cell in order; None if they are something else."""
        numbers, _, index = self.decode(ids.flatten(1))
        number = int(numbers.max())
        if number < 0 or self.known[number].shape != tuple(ids.shape[1:]) or self.known[number].kind != "cells":
            return None
        plain = bool((numbers == number).all()) and bool((index == torch.arange(index.shape[1])).all())
        return number if plain else None


def unravel(index: Int[Tensor, "*any"], shape: Sequence[int]) -> list[Int[Tensor, "*any"]]:
    """Return the coordinates of row-major indices."""
    coords = []
    for side in reversed(shape):
        coords.append(index % side)
        index = index // side
    return coords[::-1]


def ravel(coords: Sequence[Int[Tensor, "*any"]], shape: Sequence[int]) -> Int[Tensor, "*any"]:
    """Return the row-major indices of coordinates."""
    index = torch.zeros_like(coords[0])
    for along, side in zip(coords, shape, strict=True):
        index = index * side + along
    return index

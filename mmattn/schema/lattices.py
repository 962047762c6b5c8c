"""The lattice under an axis with places: sorted, disjoint intervals along each dimension of the input.

A patch is an interval of x times an interval of y; a tubelet has t beside them; a word piece has
characters alone. Cells are products of intervals, so `place`, `token_at` and `tokens_in` are one
binary search a dimension, and they read the *same* numbers: a point that `place` gives as a left
edge is in that cell, exactly, whatever the rounding of the affine was. `transfer` overlaps two
lattices dimension by dimension for the same reason.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """Cells as products of half-open intervals, and the token that stands in each.

    Parameters
    ----------
    dims
        One name a dimension: `x`, `y` (pixels), `t` (seconds), `hz`, `char`.
    intervals
        For each dimension `[cell, 2]`, (start, end), ascending and disjoint.
    tokens
        One dimension each for `dims`; -1 where no token stands.

    """

    dims: tuple[str, ...]
    intervals: tuple[Float[np.ndarray, "_ 2"], ...]
    tokens: Int[np.ndarray, "..."]

    def __post_init__(self) -> None:
        for dim, spans in zip(self.dims, self.intervals, strict=True):
            flat = spans.ravel()
            if not np.isfinite(flat).all() or (np.diff(flat) < 0).any() or (spans[:, 0] >= spans[:, 1]).any():
                raise InputError(
                    f"The cells along {dim} are not ascending intervals: {_excerpt(spans)}. "
                    "Each starts before it ends and ends before the next one starts. "
                    "Check the sizes and times that the axis was built from."
                )

    @cached_property
    def _cell_of_token(self) -> Int[np.ndarray, " token"]:
        flat = self.tokens.ravel()
        cells = np.full(int(flat.max(initial=-1)) + 1, -1, dtype=np.int64)
        filled = np.flatnonzero(flat >= 0)
        cells[flat[filled]] = filled
        return cells

    def bounds(self, tokens: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim 2"]:
        """Return (start, end) along each dimension for tokens that stand in a cell."""
        index = np.unravel_index(self._cell_of_token[tokens], self.tokens.shape)
        return np.stack([spans[i] for spans, i in zip(self.intervals, index, strict=True)], axis=1)

    def token_at(self, point: tuple[float, ...]) -> int:
        """Return the token whose half-open cell holds the point, -1 where none does."""
        index = []
        for spans, value in zip(self.intervals, point, strict=True):
            i = int(np.searchsorted(spans[:, 0], value, side="right")) - 1
            if i < 0 or not value < spans[i, 1]:
                return -1
            index.append(i)
        return int(self.tokens[tuple(index)])

    def tokens_in(self, low: tuple[float, ...], high: tuple[float, ...]) -> Int[np.ndarray, " found"]:
        """Return the tokens whose centre lies in [low, high), ascending."""
        chosen = []
        for spans, start, end in zip(self.intervals, low, high, strict=True):
            centers = spans.mean(axis=1)
            chosen.append(np.flatnonzero((centers >= start) & (centers < end)))
        found = self.tokens[np.ix_(*chosen)].ravel()
        return np.sort(found[found >= 0])

    def tokens_over(self, low: tuple[float, ...], high: tuple[float, ...]) -> Int[np.ndarray, " found"]:
        """Return the tokens whose cell overlaps [low, high), ascending."""
        chosen = [
            np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start))
            for spans, start, end in zip(self.intervals, low, high, strict=True)
        ]
        found = self.tokens[np.ix_(*chosen)].ravel()
        return np.sort(found[found >= 0])

    def extent(self) -> tuple[tuple[float, float], ...]:
        """Return first start and last end along each dimension."""
        return tuple(
            (float(spans[0, 0]), float(spans[-1, 1])) if len(spans) else (0.0, 0.0) for spans in self.intervals
        )


def token_of_cell(
    *, roles: tuple[str, ...], cells: Int[np.ndarray, " token"], shape: tuple[int, ...]
) -> Int[np.ndarray, "..."]:
    """Return the token that stands in each cell of a grid, -1 where none; raises where roles and cells disagree."""
    content = np.asarray(roles, dtype=object) == "content"
    if len(cells) != len(roles) or not np.array_equal(content, cells >= 0):
        raise InputError(
            f"{len(roles)} roles and {len(cells)} cells do not agree. Every content token has one "
            "cell and every special token has cell -1. Build the axis from the model's own token order."
        )
    count = int(np.prod(shape))
    placed = cells[content]
    if placed.size and (placed.max() >= count or len(np.unique(placed)) != placed.size):
        raise InputError(
            f"Cells of a {' x '.join(map(str, shape))} grid lie in 0 to {count - 1}, each at most once; "
            f"given are {placed.size} cells up to {int(placed.max())}. Check the grid of the model."
        )
    tokens = np.full(count, -1, dtype=np.int64)
    tokens[placed] = np.flatnonzero(content)
    return tokens.reshape(shape)


def plane(
    tokens: Int[np.ndarray, "*other row col"],
    *,
    patch_px: tuple[float, float],
    to_input: Float[np.ndarray, "2 3"],
    limits_px: tuple[float, float, float, float] | None = None,
) -> tuple[Float[np.ndarray, "x 2"], Float[np.ndarray, "y 2"], Int[np.ndarray, "*other x y"]]:
    """Return x intervals, y intervals and `[..., x, y]` tokens of a grid in the original picture.

    With `limits_px` (x0, y0, x1, y1) the outermost cells begin and end there.
    The affine may scale, shift, flip and turn by right angles. Any other turn or shear would make
    cells that are no boxes, and is refused.
    """
    straight = np.abs(np.diag(to_input[:, :2]))
    crossed = np.abs(np.diag(to_input[:, 1::-1]))
    swapped = bool(crossed.max() > straight.max())
    main, off = (crossed, straight) if swapped else (straight, crossed)
    if not np.isfinite(to_input).all() or min(main) < 1e-12 or max(off) > 1e-9 * min(main):
        raise InputError(
            f"The affine {to_input.tolist()} does not take a grid of patches to boxes. It may scale, shift, flip and "
            "turn by right angles, and takes model pixels to pixels of the original. "
            "Check the resize and crop that it was built from."
        )
    rows, cols = tokens.shape[-2:]
    across = np.arange(cols + 1) * float(patch_px[0])
    down = np.arange(rows + 1) * float(patch_px[1])
    if limits_px is not None:
        across = _limited(across, limits_px[0], limits_px[2])
        down = _limited(down, limits_px[1], limits_px[3])
    along_x, along_y = (down, across) if swapped else (across, down)
    if not swapped:
        tokens = np.swapaxes(tokens, -1, -2)
    x, tokens = _ascending(to_input[0, int(swapped)] * along_x + to_input[0, 2], tokens, axis=-2)
    y, tokens = _ascending(to_input[1, int(not swapped)] * along_y + to_input[1, 2], tokens, axis=-1)
    return x, y, np.ascontiguousarray(tokens)


def _limited(edges: Float[np.ndarray, " edge"], start: float, end: float) -> Float[np.ndarray, " edge"]:
    """Return edges whose first and last are moved to limits, as far as a cell is left between."""
    edges = edges.copy()
    if start < edges[1]:
        edges[0] = start
    if end > edges[-2]:
        edges[-1] = end
    return edges


def spans_of(edges: Float[np.ndarray, " edge"]) -> Float[np.ndarray, "cell 2"]:
    """Return neighbouring edges as (start, end)."""
    return np.stack([edges[:-1], edges[1:]], axis=1).astype(np.float64)


def _ascending(
    edges: Float[np.ndarray, " edge"], tokens: Int[np.ndarray, "..."], *, axis: int
) -> tuple[Float[np.ndarray, "cell 2"], Int[np.ndarray, "..."]]:
    # Rounded so that 13 * (1 / 3) * 3 is the 13 that a person would type as a cell's left edge.
    edges = np.round(edges, 9)
    if len(edges) > 1 and edges[0] > edges[-1]:
        return spans_of(edges[::-1]), np.flip(tokens, axis=axis)
    return spans_of(edges), tokens


def _excerpt(spans: Float[np.ndarray, "cell 2"]) -> str:
    shown = ", ".join(f"[{a:g}, {b:g})" for a, b in spans[:4].tolist())
    return shown + (", ..." if len(spans) > 4 else "")

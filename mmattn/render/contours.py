"""The contour of a mass: around the smallest set of cells that holds a share of the whole.

As DINO draws its masks (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
Transformers", keeping 60 % of the mass). Over a block map the line runs along the edges of those
cells; over a smooth map it is the level line half-way between the weakest cell in the set and the
strongest one outside. Coordinates are cells: x = col, y = row.
"""

import numpy as np
from jaxtyping import Bool, Float

from mmattn.errors import InputError
from mmattn.render import field


def mass_cells(values: Float[np.ndarray, "row col"], *, share: float) -> Bool[np.ndarray, "row col"]:
    """Return the smallest set of cells that together hold at least `share` of all (negative values count as none).

    Examples
    --------
    >>> mass_cells(np.array([[5.0, 1.0], [3.0, 1.0]]), share=0.75).tolist()
    [[True, False], [True, False]]
    """
    if not isinstance(share, int | float) or not 0.0 < share < 1.0:
        raise InputError(f"contour={share} is not a share of the mass. It lies between 0 and 1. Try 0.6, as DINO does.")
    mass = np.clip(np.nan_to_num(values.ravel()), 0.0, None)
    order = np.argsort(-mass, kind="stable")
    running = np.cumsum(mass[order])
    chosen = np.zeros(mass.size, dtype=bool)
    if running[-1] > 0:
        enough = int(np.searchsorted(running, share * running[-1] * (1 - 1e-12))) + 1
        chosen[order[:enough]] = True
    return chosen.reshape(values.shape)


def edges(cells: Bool[np.ndarray, "row col"]) -> Float[np.ndarray, "line 2 2"]:
    """Return the edges between chosen cells and others, one unit of length each."""
    padded = np.pad(cells, 1)
    rows, cols = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([cols, rows], axis=1), np.stack([cols, rows + 1], axis=1)], axis=1)
    rows, cols = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([cols, rows], axis=1), np.stack([cols + 1, rows], axis=1)], axis=1)
    return np.concatenate([upright, level]).astype(np.float64)


def level_line(
    values: Float[np.ndarray, "row col"], *, chosen: Bool[np.ndarray, "row col"]
) -> Float[np.ndarray, "line point 2"]:
    """Return the line round the chosen cells in the refined field; closed at the border of the grid."""
    from contourpy import contour_generator

    known = field.filled(values)
    if not chosen.any():
        return np.zeros((0, 2, 2))
    outside = known[~chosen & ~np.isnan(values)]
    inner = float(known[chosen].min())
    level = (inner + float(outside.max())) / 2 if outside.size else inner
    fine = field.refine(np.where(np.isnan(values), min(level, float(known.min())), known)).astype(np.float64)
    below = min(level, float(fine.min())) - max(abs(level), 1e-12)
    x = np.concatenate([[0.0], (np.arange(fine.shape[1]) + 0.5) * values.shape[1] / fine.shape[1], [values.shape[1]]])
    y = np.concatenate([[0.0], (np.arange(fine.shape[0]) + 0.5) * values.shape[0] / fine.shape[0], [values.shape[0]]])
    generator = contour_generator(x=x, y=y, z=np.pad(fine, 1, constant_values=below))
    return _padded([np.asarray(line, dtype=np.float64) for line in generator.lines(level)])


def _padded(lines: list[np.ndarray]) -> Float[np.ndarray, "line point 2"]:
    """Make the paths equally long by repeating their last points."""
    if not lines:
        return np.zeros((0, 2, 2))
    longest = max(len(line) for line in lines)
    return np.stack([np.concatenate([line, np.repeat(line[-1:], longest - len(line), axis=0)]) for line in lines])

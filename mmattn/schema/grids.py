"""Axes whose tokens are cells of a grid laid over the input: patches of a picture.

The grid lives in the coordinates of what the model was given (model pixels); one affine takes
those back to the user's original picture, through crop, pad, resize and rotation. Nothing after
the adapter guesses a grid, a stride or a number of special tokens.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.places import AxisBase

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PatchGrid(AxisBase):
    """Tokens that are patches of a picture.

    Parameters
    ----------
    rows, cols
        Patches down and across.
    patch_px
        Width and height of one cell (the stride) in model pixels.
    size_px
        Width and height of the user's original picture.
    to_input
        `[2, 3]`: model pixels (x, y, 1) to pixels of the original picture.
    cells
        For each token the cell it stands for, `row * cols + col`; -1 for special tokens. A cell
        may be missing (masked or dropped patches), never there twice.

    Examples
    --------
    >>> grid = PatchGrid.plain(rows=14, cols=14, patch_px=(16, 16), size_px=(448, 448), special=("cls",))
    >>> len(grid), grid.place(1), grid.token_at((40.0, 0.0))
    (197, (0.0, 0.0, 32.0, 32.0), 2)
    """

    noun: ClassVar[str] = "the picture"

    rows: int
    cols: int
    patch_px: tuple[float, float]
    size_px: tuple[int, int]
    to_input: Float[np.ndarray, "2 3"]
    cells: Int[np.ndarray, " token"]
    _token_of_cell: Int[np.ndarray, " cell"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        content = np.asarray(self.roles, dtype=object) == "content"
        if len(self.cells) != len(self.roles) or not np.array_equal(content, self.cells >= 0):
            raise InputError(
                f"{len(self.roles)} roles and {len(self.cells)} cells do not agree. Every content token has one "
                "cell and every special token has cell -1. Build the axis from the model's own token order."
            )
        token_of_cell = np.full(self.rows * self.cols, -1, dtype=np.int64)
        placed = self.cells[content]
        if placed.size and (placed.max() >= len(token_of_cell) or len(np.unique(placed)) != placed.size):
            raise InputError(
                f"Cells of a {self.rows} x {self.cols} grid lie in 0 to {len(token_of_cell) - 1}, each at most once; "
                f"given are {placed.size} cells up to {int(placed.max())}. Check the grid of the model."
            )
        token_of_cell[placed] = np.flatnonzero(content)
        object.__setattr__(self, "_token_of_cell", token_of_cell)
        if abs(np.linalg.det(self.to_input[:, :2])) < 1e-12:
            raise InputError(
                f"The affine {self.to_input.tolist()} cannot be inverted. It takes model pixels to pixels of the "
                "original. Check the resize that it was built from."
            )

    @classmethod
    def plain(
        cls,
        *,
        rows: int,
        cols: int,
        patch_px: tuple[float, float],
        size_px: tuple[int, int],
        to_input: Float[np.ndarray, "2 3"] | None = None,
        special: tuple[str, ...] = (),
    ) -> "PatchGrid":
        """Return row-major patches behind the `special` tokens; without `to_input` the grid fills the picture."""
        if to_input is None:
            to_input = np.array(
                [[size_px[0] / (cols * patch_px[0]), 0.0, 0.0], [0.0, size_px[1] / (rows * patch_px[1]), 0.0]]
            )
        cells = np.concatenate([np.full(len(special), -1), np.arange(rows * cols)]).astype(np.int64)
        roles = special + ("content",) * (rows * cols)
        return cls(
            rows=rows, cols=cols, patch_px=patch_px, size_px=size_px, to_input=to_input, cells=cells, roles=roles
        )

    @property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, row by row."""
        return self._token_of_cell[self._token_of_cell >= 0]

    def places(self) -> Float[np.ndarray, "content 4"]:
        """Return the boxes (x0, y0, x1, y1) of all content tokens, in the order of `content`."""
        return self._boxes(self.cells[self.content])

    def place(self, token: int) -> Box:
        """Return the box (x0, y0, x1, y1) of a patch in pixels of the original picture."""
        cell = self.cells[self._content_token(token)]
        x0, y0, x1, y1 = self._boxes(np.array([cell]))[0].tolist()
        return (x0, y0, x1, y1)

    def token_at(self, point: tuple[float, float]) -> int:
        """Return the patch whose half-open cell holds (x, y), in pixels of the original picture."""
        linear, shift = self.to_input[:, :2], self.to_input[:, 2]
        x, y = np.linalg.solve(linear, np.asarray(point, dtype=np.float64) - shift) / np.asarray(self.patch_px)
        # Undo float error of the inverse: a point on a cell's left edge belongs to that cell.
        col, row = (int(np.floor(v + 1e-9 * max(1.0, abs(v)))) for v in (x, y))
        token = self._token_of_cell[row * self.cols + col] if 0 <= row < self.rows and 0 <= col < self.cols else -1
        if token < 0:
            x0, y0, x1, y1 = (round(float(v), 1) for v in self.seen_box())
            raise PlaceError(
                f"The model did not see the point ({point[0]:g}, {point[1]:g}) of the {self.size_px[0]} x "
                f"{self.size_px[1]} px picture. It saw x from {x0} to {x1} and y from {y0} to {y1}. "
                "Pass a point inside, or a transform that does not crop."
            )
        return int(token)

    def tokens_in(self, place: Box) -> Int[np.ndarray, " found"]:
        """Return the patches whose centre lies in a box (x0, y0, x1, y1); if none does, the one at its centre."""
        boxes = self.places()
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        x0, y0, x1, y1 = place
        inside = (centers[:, 0] >= x0) & (centers[:, 0] < x1) & (centers[:, 1] >= y0) & (centers[:, 1] < y1)
        if inside.any():
            return self.content[inside]
        return np.array([self.token_at(((x0 + x1) / 2, (y0 + y1) / 2))])

    def seen_box(self) -> Box:
        """Return the part of the original picture that the grid covers, clipped to the picture."""
        corners = self._to_input(
            np.array([[0.0, 0.0], [self.cols * self.patch_px[0], self.rows * self.patch_px[1]]])
        )
        low, high = corners.min(axis=0), corners.max(axis=0)
        width, height = self.size_px
        return (
            float(np.clip(low[0], 0, width)),
            float(np.clip(low[1], 0, height)),
            float(np.clip(high[0], 0, width)),
            float(np.clip(high[1], 0, height)),
        )

    def grid(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, "row col"]:
        """Return one value a token as a picture of the grid, in model orientation; NaN where no token stands."""
        cells = np.full(self.rows * self.cols, np.nan)
        cells[self.cells[self.content]] = values[self.content]
        return cells.reshape(self.rows, self.cols)

    def _boxes(self, cells: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 4"]:
        low = np.stack([cells % self.cols, cells // self.cols], axis=1) * np.asarray(self.patch_px)
        one = self._to_input(low)
        two = self._to_input(low + np.asarray(self.patch_px))
        return np.concatenate([np.minimum(one, two), np.maximum(one, two)], axis=1)

    def _to_input(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return points @ self.to_input[:, :2].T + self.to_input[:, 2]

    def __repr__(self) -> str:
        special = ", ".join(f"{len(tokens)} {role}" for role, tokens in self.special().items())
        return (
            f"PatchGrid({self.rows} x {self.cols} patches on {self.size_px[0]} x {self.size_px[1]} px"
            + (f", {special}" if special else "")
            + ")"
        )

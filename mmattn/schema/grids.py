"""Axes whose tokens are cells of a grid laid over a picture: patches.

The grid lives in the coordinates of what the model was given (model pixels); one affine takes
those back to the user's original picture, through crop, pad, resize and rotation. Nothing after
the adapter guesses a grid, a stride or a number of special tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.lattices import Lattice, plane, token_of_cell
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
        `[2, 3]`: model pixels (x, y, 1) to pixels of the original picture. It may scale, shift,
        flip and turn by right angles; what turns otherwise has no boxes and is refused.
    cells
        For each token the cell it stands for, `row * cols + col`; -1 for special tokens. A cell
        may be missing (masked or dropped patches), never there twice.
    limits_px
        Where the outermost cells begin and end (x0, y0, x1, y1), in the same pixels as the cells;
        None: each is as large as the others. Where convolutions come before attention the middles
        of the tokens need not lie half a stride from the edge: a cell is then what is nearer to its
        token's middle than to any other's, up to the edge of what the model saw.

    Examples
    --------
    >>> grid = PatchGrid.plain(rows=14, cols=14, patch_px=(16, 16), size_px=(448, 448), special=("cls",))
    >>> len(grid), grid.place(1), grid.token_at((40.0, 0.0))
    (197, (0.0, 0.0, 32.0, 32.0), 2)

    """

    noun: ClassVar[str] = "the picture"
    point_size: ClassVar[int] = 2

    rows: int
    cols: int
    patch_px: tuple[float, float]
    size_px: tuple[int, int]
    to_input: Float[np.ndarray, "2 3"]
    cells: Int[np.ndarray, " token"]
    limits_px: Box | None = None

    def __post_init__(self) -> None:
        check_plane(rows=self.rows, cols=self.cols, patch_px=self.patch_px, size_px=self.size_px)
        _ = self.lattice  # built now, so that a wrong grid is refused where it is made

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
            to_input = filling(rows=rows, cols=cols, patch_px=patch_px, size_px=size_px)
        cells = np.concatenate([np.full(len(special), -1), np.arange(rows * cols)]).astype(np.int64)
        roles = special + ("content",) * (rows * cols)
        return cls(
            rows=rows, cols=cols, patch_px=patch_px, size_px=size_px, to_input=to_input, cells=cells, roles=roles
        )

    @cached_property
    def lattice(self) -> Lattice:
        """The cells as intervals of x and of y in the original picture."""
        tokens = token_of_cell(roles=self.roles, cells=self.cells, shape=(self.rows, self.cols))
        x, y, tokens = plane(tokens, patch_px=self.patch_px, to_input=self.to_input, limits_px=self.limits_px)
        return Lattice(dims=("x", "y"), intervals=(x, y), tokens=tokens)

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, row by row as the model has them."""
        tokens = np.flatnonzero(self.cells >= 0)
        return tokens[np.argsort(self.cells[tokens], kind="stable")]

    def places(self) -> Float[np.ndarray, "content 4"]:
        """Return the boxes (x0, y0, x1, y1) of all content tokens, in the order of `content`."""
        return self.lattice.bounds(self.content).transpose(0, 2, 1).reshape(-1, 4)

    def place(self, token: SupportsIndex) -> Box:
        """Return the box (x0, y0, x1, y1) of a patch in pixels of the original picture."""
        (x0, x1), (y0, y1) = self.lattice.bounds(np.array([self._content_token(token)]))[0].tolist()
        return (x0, y0, x1, y1)

    def token_at(self, point: tuple[float, float]) -> int:
        """Return the patch whose half-open cell holds (x, y), in pixels of the original picture."""
        token = self.lattice.token_at(point)
        if token < 0:
            raise PlaceError(
                f"The model did not see the point ({point[0]:g}, {point[1]:g}) of the {self.size_px[0]} x "
                f"{self.size_px[1]} px picture. {self._seen()}"
            )
        return token

    def _seen(self) -> str:
        x0, y0, x1, y1 = (round(v, 1) for v in self.seen_box())
        dropped = ", less the patches that were dropped" if len(self.content) < self.rows * self.cols else ""
        return (
            f"It saw x from {x0} to {x1} and y from {y0} to {y1}{dropped}. Pass a place inside, or let the model see "
            "the whole picture (--keep-aspect on the command line, or a transform that does not crop)."
        )

    def tokens_in(self, place: Box) -> Int[np.ndarray, " found"]:
        """Return the patches whose center lies in a box (x0, y0, x1, y1); if none does, those that overlap it."""
        x0, y0, x1, y1 = place
        found = self.lattice.tokens_in((x0, y0), (x1, y1))
        if not len(found):
            found = self.lattice.tokens_over((x0, y0), (x1, y1))
        if not len(found):
            raise PlaceError(f"The model saw nothing of the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) px. {self._seen()}")
        return found

    def seen_box(self) -> Box:
        """Return the part of the original picture that the grid covers, clipped to the picture."""
        return clipped_extent(self.lattice, size_px=self.size_px)

    def grid(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, "row col"]:
        """Return one value a token as a picture of the grid, in model orientation; NaN where no token stands."""
        return scattered(values, cells=self.cells, shape=(self.rows, self.cols))

    def __repr__(self) -> str:
        return self._one_line(f"{self.rows} x {self.cols} patches on {self.size_px[0]} x {self.size_px[1]} px")


def scattered(
    values: Float[np.ndarray, " token"], *, cells: Int[np.ndarray, " token"], shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Return one value a token at its cell of a grid; NaN where no token stands."""
    grid = np.full(int(np.prod(shape)), np.nan)
    grid[cells[cells >= 0]] = values[cells >= 0]
    return grid.reshape(shape)


def filling(
    *, rows: int, cols: int, patch_px: tuple[float, float], size_px: tuple[int, int]
) -> Float[np.ndarray, "2 3"]:
    """Return the affine by which a grid fills the whole picture."""
    x, y = size_px[0] / (cols * patch_px[0]), size_px[1] / (rows * patch_px[1])
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])


def clipped_extent(lattice: Lattice, *, size_px: tuple[int, int]) -> Box:
    """Return the box that the x and y of a lattice cover, clipped to the picture."""
    (x0, x1), (y0, y1) = lattice.extent()[:2]
    width, height = size_px
    return (
        float(np.clip(x0, 0, width)),
        float(np.clip(y0, 0, height)),
        float(np.clip(x1, 0, width)),
        float(np.clip(y1, 0, height)),
    )


def check_plane(*, rows: int, cols: int, patch_px: tuple[float, float], size_px: tuple[int, int]) -> None:
    """Refuse a grid without cells, patches without extent, a picture without pixels."""
    if min(rows, cols) < 1 or not min(patch_px) > 0 or min(size_px) < 1:
        raise InputError(
            f"A grid of {rows} x {cols} patches of {patch_px[0]:g} x {patch_px[1]:g} px on a picture of "
            f"{size_px[0]} x {size_px[1]} px has no cells. All of these are positive. Check the model's patch size."
        )

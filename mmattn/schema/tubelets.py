"""The axis whose tokens are tubelets of a video: a box over a span of time.

The time cell of a tubelet is decided once, here: it begins at the time of its first sampled frame
and ends where the next tubelet begins; frames between samples, which the model never saw, lie in
the cell of the sample before them (`frames` tells the seen from the unseen). The last tubelet
ends one frame interval after its last sampled frame. So cells never overlap and leave no gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.grids import Box, check_plane, clipped_extent, filling, scattered
from mmattn.schema.lattices import Lattice, plane, spans_of, token_of_cell
from mmattn.schema.places import AxisBase

Tube = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TubeletGrid(AxisBase):
    """Tokens that are boxes of a video over a span of time.

    Parameters
    ----------
    rows, cols
        Tubelets down and across.
    patch_px, size_px, to_input
        As in `PatchGrid`: stride in model pixels, size of the original frames, affine to them.
    frames
        Which frames of the original video the model was given, in order; `depth` of them make a
        tubelet. A frame given twice (a short clip, repeated) cannot stand in two cells: give the
        tokens of the repetition a role of their own.
    times_s
        The time of each of those frames in the original video (its pts), in seconds.
    depth
        Sampled frames in one tubelet.
    end_s
        Where the last tubelet's cell ends.
    cells
        For each token its cell, `(step * rows + row) * cols + col`; -1 for special tokens.

    Examples
    --------
    >>> axis = TubeletGrid.plain(rows=2, cols=2, patch_px=(16, 16), size_px=(64, 64),
    ...                          frames=[0, 4, 8, 12], times_s=[0.0, 0.25, 0.5, 0.75], depth=2, order="t h w")
    >>> axis.place(5)
    (32.0, 0.0, 64.0, 32.0, 0.5, 1.0)
    >>> axis.token_at((40.0, 8.0, 0.4))
    1

    """

    noun: ClassVar[str] = "the video"
    point_size: ClassVar[int] = 3

    rows: int
    cols: int
    patch_px: tuple[float, float]
    size_px: tuple[int, int]
    to_input: Float[np.ndarray, "2 3"]
    frames: Int[np.ndarray, " frame"]
    times_s: Float[np.ndarray, " frame"]
    depth: int
    end_s: float
    cells: Int[np.ndarray, " token"]

    def __post_init__(self) -> None:
        check_plane(rows=self.rows, cols=self.cols, patch_px=self.patch_px, size_px=self.size_px)
        if len(self.frames) == 0 or self.depth < 1 or len(self.frames) % self.depth:
            raise InputError(
                f"{len(self.frames)} frames do not make tubelets of {self.depth}. Each tubelet has that many frames. "
                "Leave out the frames that the model drops at the end."
            )
        _ = self.lattice  # built now, so that a wrong grid is refused where it is made

    @classmethod
    def plain(
        cls,
        *,
        rows: int,
        cols: int,
        patch_px: tuple[float, float],
        size_px: tuple[int, int],
        frames: Sequence[int] | Int[np.ndarray, " frame"],
        times_s: Sequence[float] | Float[np.ndarray, " frame"],
        depth: int,
        order: Literal["t h w", "h w t"],
        to_input: Float[np.ndarray, "2 3"] | None = None,
        special: tuple[str, ...] = (),
        frame_s: float | None = None,
    ) -> "TubeletGrid":
        """Return all tubelets in the model's token order behind the `special` tokens.

        `frame_s` is how long the last sampled frame lasts; by default as long as the one before.
        """
        times = np.asarray(times_s, dtype=np.float64)
        if frame_s is None:
            frame_s = float(times[-1] - times[-2]) if len(times) > 1 else 0.0
        steps = len(times) // max(depth, 1)
        grid = np.arange(steps * rows * cols, dtype=np.int64).reshape(steps, rows * cols)
        flat = (grid if order == "t h w" else grid.T).ravel()
        return cls(
            rows=rows,
            cols=cols,
            patch_px=patch_px,
            size_px=size_px,
            to_input=filling(rows=rows, cols=cols, patch_px=patch_px, size_px=size_px)
            if to_input is None
            else to_input,
            frames=np.asarray(frames, dtype=np.int64),
            times_s=times,
            depth=depth,
            end_s=float(times[-1]) + frame_s if len(times) else 0.0,
            cells=np.concatenate([np.full(len(special), -1, dtype=np.int64), flat]),
            roles=special + ("content",) * len(flat),
        )

    @property
    def steps(self) -> int:
        """Tubelets along time."""
        return len(self.frames) // self.depth

    @cached_property
    def lattice(self) -> Lattice:
        """The cells as intervals of x, y and time."""
        tokens = token_of_cell(roles=self.roles, cells=self.cells, shape=(self.steps, self.rows, self.cols))
        x, y, tokens = plane(tokens, patch_px=self.patch_px, to_input=self.to_input)
        edges = np.append(self.times_s[:: self.depth], self.end_s)
        tokens = np.ascontiguousarray(np.moveaxis(tokens, 0, -1))
        return Lattice(dims=("x", "y", "t"), intervals=(x, y, spans_of(edges)), tokens=tokens)

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place: by time, then row by row."""
        tokens = np.flatnonzero(self.cells >= 0)
        return tokens[np.argsort(self.cells[tokens], kind="stable")]

    def places(self) -> Float[np.ndarray, "content 6"]:
        """Return (x0, y0, x1, y1, t0_s, t1_s) of all content tokens, in the order of `content`."""
        bounds = self.lattice.bounds(self.content)
        return np.concatenate([bounds[:, :2].transpose(0, 2, 1).reshape(-1, 4), bounds[:, 2]], axis=1)

    def place(self, token: SupportsIndex) -> Tube:
        """Return (x0, y0, x1, y1, t0_s, t1_s): a box in original pixels and a span in seconds."""
        (x0, x1), (y0, y1), (t0, t1) = self.lattice.bounds(np.array([self._content_token(token)]))[0].tolist()
        return (x0, y0, x1, y1, t0, t1)

    def token_at(self, point: tuple[float, float, float]) -> int:
        """Return the tubelet whose half-open cell holds (x, y, t): original pixels and seconds."""
        token = self.lattice.token_at(point)
        if token < 0:
            x0, y0, x1, y1 = (round(v, 1) for v in self.seen_box())
            t0, t1 = self.lattice.extent()[2]
            raise PlaceError(
                f"The model did not see the point ({point[0]:g}, {point[1]:g}) at {point[2]:g} s of the "
                f"{self.size_px[0]} x {self.size_px[1]} px video. It saw x from {x0} to {x1}, y from {y0} to {y1}, "
                f"from {t0:g} to {t1:g} s. Pass a point inside, or sample other frames."
            )
        return token

    def tokens_in(self, place: Tube) -> Int[np.ndarray, " found"]:
        """Return the tubelets whose centre lies in (x0, y0, x1, y1, t0_s, t1_s); if none, the one at its centre."""
        x0, y0, x1, y1, t0, t1 = place
        found = self.lattice.tokens_in((x0, y0, t0), (x1, y1, t1))
        return found if len(found) else np.array([self.token_at(((x0 + x1) / 2, (y0 + y1) / 2, (t0 + t1) / 2))])

    def seen_box(self) -> Box:
        """Return the part of the original frames that the grid covers, clipped to the frame."""
        return clipped_extent(self.lattice, size_px=self.size_px)

    def frames_of(self, step: int) -> Int[np.ndarray, " frame"]:
        """Return the original frames that the tubelets at this step really saw."""
        return self.frames[step * self.depth : (step + 1) * self.depth]

    def grid(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, "step row col"]:
        """Return one value a token as `[step, row, col]`, in model orientation; NaN where no token stands."""
        return scattered(values, cells=self.cells, shape=(self.steps, self.rows, self.cols))

    def __repr__(self) -> str:
        t0, t1 = self.lattice.extent()[2]
        return self._one_line(
            f"{self.steps} x {self.rows} x {self.cols} tubelets on {self.size_px[0]} x {self.size_px[1]} px, "
            f"{t0:g} to {t1:g} s"
        )

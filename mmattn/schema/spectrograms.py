"""The axis whose tokens are patches of a spectrogram: a span of seconds and a band of hertz.

Mel bands have unequal heights in hertz, so the cells are given by their edges, not by a stride.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.grids import scattered
from mmattn.schema.lattices import Lattice, spans_of, token_of_cell
from mmattn.schema.places import AxisBase

Band = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpectrogramGrid(AxisBase):
    """Tokens that are patches of a spectrogram: a span of time and a band of frequency.

    Parameters
    ----------
    edges_s
        `[step + 1]`: where the cells begin and end along time, in seconds.
    edges_hz
        `[band + 1]`: where they do along frequency, ascending; mel bands have unequal heights.
    cells
        For each token its cell, `step * bands + band`; -1 for special tokens. A cell wholly in
        padding has no token with a place: its role is `pad`.

    Examples
    --------
    >>> axis = SpectrogramGrid.plain(edges_s=[0.0, 0.16, 0.32], edges_hz=[0, 300, 900, 2700], order="frequency")
    >>> axis.place(1), axis.token_at((0.2, 100.0))
    ((0.16, 0.32, 0.0, 300.0), 1)

    """

    noun: ClassVar[str] = "the spectrogram"
    point_size: ClassVar[int] = 2

    edges_s: Float[np.ndarray, " step_edge"]
    edges_hz: Float[np.ndarray, " band_edge"]
    cells: Int[np.ndarray, " token"]

    def __post_init__(self) -> None:
        if min(len(self.edges_s), len(self.edges_hz)) < 2:
            raise InputError(
                f"{len(self.edges_s)} edges of time and {len(self.edges_hz)} of frequency make no cells. "
                "n cells have n + 1 edges. Pass the edges of the model's patches."
            )
        _ = self.lattice  # built now, so that a wrong grid is refused where it is made

    @classmethod
    def plain(
        cls,
        *,
        edges_s: Sequence[float] | Float[np.ndarray, " step_edge"],
        edges_hz: Sequence[float] | Float[np.ndarray, " band_edge"],
        order: Literal["frequency", "time"],
        special: tuple[str, ...] = (),
        sound_s: float | None = None,
    ) -> "SpectrogramGrid":
        """Return all patches behind the `special` tokens.

        The token order walks slowest through `order`: `frequency` (as AST: all times of the lowest
        band first) or `time`. Tokens that begin at or after `sound_s`, the end of the real sound,
        are `pad`.

        """
        times, bands = np.asarray(edges_s, dtype=np.float64), np.asarray(edges_hz, dtype=np.float64)
        grid = np.arange((len(times) - 1) * (len(bands) - 1), dtype=np.int64).reshape(len(times) - 1, -1)
        if sound_s is not None:
            grid = np.where(times[:-1, None] < sound_s - 1e-9, grid, -1)
        flat = (grid.T if order == "frequency" else grid).ravel()
        return cls(
            edges_s=times,
            edges_hz=bands,
            cells=np.concatenate([np.full(len(special), -1, dtype=np.int64), flat]),
            roles=special + tuple("content" if cell >= 0 else "pad" for cell in flat.tolist()),
        )

    @property
    def steps(self) -> int:
        """Cells along time."""
        return len(self.edges_s) - 1

    @property
    def bands(self) -> int:
        """Cells along frequency."""
        return len(self.edges_hz) - 1

    @cached_property
    def lattice(self) -> Lattice:
        """The cells as intervals of time and frequency."""
        tokens = token_of_cell(roles=self.roles, cells=self.cells, shape=(self.steps, self.bands))
        return Lattice(dims=("t", "hz"), intervals=(spans_of(self.edges_s), spans_of(self.edges_hz)), tokens=tokens)

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place: by time, then upwards."""
        tokens = np.flatnonzero(self.cells >= 0)
        return tokens[np.argsort(self.cells[tokens], kind="stable")]

    def places(self) -> Float[np.ndarray, "content 4"]:
        """Return (t0_s, t1_s, low_hz, high_hz) of all content tokens, in the order of `content`."""
        return self.lattice.bounds(self.content).reshape(-1, 4)

    def place(self, token: SupportsIndex) -> Band:
        """Return (t0_s, t1_s, low_hz, high_hz) of a patch."""
        (t0, t1), (low, high) = self.lattice.bounds(np.array([self._content_token(token)]))[0].tolist()
        return (t0, t1, low, high)

    def token_at(self, point: tuple[float, float]) -> int:
        """Return the patch whose half-open cell holds (t, hz), in seconds and hertz."""
        token = self.lattice.token_at(point)
        if token < 0:
            t0, t1, low, high = self.seen_box()
            raise PlaceError(
                f"The model did not hear {point[1]:g} Hz at {point[0]:g} s. It heard {low:g} to {high:g} Hz, "
                f"from {t0:g} to {t1:g} s. Pass a point inside."
            )
        return token

    def tokens_in(self, place: Band) -> Int[np.ndarray, " found"]:
        """Return the patches whose centre lies in (t0_s, t1_s, low_hz, high_hz); if none, the one at its centre."""
        t0, t1, low, high = place
        found = self.lattice.tokens_in((t0, low), (t1, high))
        return found if len(found) else np.array([self.token_at(((t0 + t1) / 2, (low + high) / 2))])

    def seen_box(self) -> Band:
        """Return (t0_s, t1_s, low_hz, high_hz) around all content tokens; zeros where there is none."""
        if not len(self.content):
            return (0.0, 0.0, 0.0, 0.0)
        bounds = self.lattice.bounds(self.content)
        (t0, low), (t1, high) = bounds[:, :, 0].min(axis=0).tolist(), bounds[:, :, 1].max(axis=0).tolist()
        return (t0, t1, low, high)

    def grid(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, "band step"]:
        """Return one value a token as `[band, step]`, the lowest band first; NaN where no token stands."""
        return scattered(values, cells=self.cells, shape=(self.steps, self.bands)).T

    def __repr__(self) -> str:
        t0, t1, low, high = self.seen_box()
        return self._one_line(f"{self.bands} bands x {self.steps} steps, {t0:g} to {t1:g} s, {low:g} to {high:g} Hz")

"""The axis whose tokens are stretches of a recording.

A token's cell is its stride in time. Windows of a long recording may overlap (the next one is
often begun where the last word ended): what a later window hears again belongs to the later one,
so cells are cut at its beginning, and tokens wholly behind it have the role `overlap`. Cells are
cut at the end of the real audio too; tokens wholly behind that are `pad`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, PlaceError
from mmattn.schema.lattices import Lattice
from mmattn.schema.places import AxisBase

Span = tuple[float, float]

# Slivers left by float error at the end of the audio or of a window are no cells.
_SLIVER_S = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Timeline(AxisBase):
    """Tokens that are spans of a recording.

    Parameters
    ----------
    hop_s
        Seconds from one feature frame of the model to the next.
    stride
        Feature frames in one token.
    audio_s
        Where the real audio ends and padding begins.
    offsets_s
        Where each window of the recording begins, ascending; one window at 0 for a short one.
    windows, steps
        For each token its window and its number in that window; -1 for special tokens.

    Examples
    --------
    >>> axis = Timeline.plain(count=1500, hop_s=0.01, stride=2, audio_s=3.5)
    >>> axis
    Timeline(175 tokens of 0.02 s, 0 to 3.5 s, 1325 pad)
    >>> axis.place(10), axis.token_at(0.21)
    ((0.2, 0.22), 10)

    """

    noun: ClassVar[str] = "the recording"

    hop_s: float
    stride: int
    audio_s: float
    offsets_s: Float[np.ndarray, " window"]
    windows: Int[np.ndarray, " token"]
    steps: Int[np.ndarray, " token"]

    def __post_init__(self) -> None:
        if not (self.hop_s > 0 and self.stride >= 1 and self.audio_s >= 0 and len(self.offsets_s)):
            raise InputError(
                f"A hop of {self.hop_s} s, a stride of {self.stride} and {self.audio_s} s of audio in "
                f"{len(self.offsets_s)} windows make no timeline. All are positive. Check the model's front end."
            )
        if not (np.diff(self.offsets_s) > 0).all():
            raise InputError(
                f"Windows begin at {self.offsets_s[:6].tolist()} s, which is not ascending. Each begins after the one "
                "before it. Pass them in the order of the recording."
            )
        content = np.asarray(self.roles, dtype=object) == "content"
        if not len(self.windows) == len(self.steps) == len(content):
            raise InputError(
                f"{len(content)} roles, {len(self.windows)} windows and {len(self.steps)} steps do not agree. "
                "There is one of each for a token. Build the axis from the model's own token order."
            )
        placed = self.windows[content]
        if placed.size and not (placed.min() >= 0 and placed.max() < len(self.offsets_s)):
            raise InputError(
                f"Windows of tokens run from {placed.min()} to {placed.max()}, and {len(self.offsets_s)} windows have "
                "an offset. Each token names one of them. Pass an offset for each window."
            )
        _ = self.lattice  # built now, so that a wrong timeline is refused where it is made

    @classmethod
    def plain(
        cls,
        *,
        count: int,
        hop_s: float,
        stride: int,
        audio_s: float,
        offsets_s: Sequence[float] = (0.0,),
        special: tuple[str, ...] = (),
    ) -> "Timeline":
        """Return `count` tokens a window, window after window, behind the `special` tokens."""
        offsets = np.asarray(offsets_s, dtype=np.float64)
        windows = np.repeat(np.arange(len(offsets)), count)
        steps = np.tile(np.arange(count), len(offsets))
        starts, ends = _cut(windows, steps, offsets_s=offsets, token_s=hop_s * stride, audio_s=audio_s)
        reached = np.append(offsets[1:], np.inf)[windows] if len(offsets) else starts
        roles = np.where(
            ends - starts > _SLIVER_S, "content", np.where(starts >= reached - _SLIVER_S, "overlap", "pad")
        )
        none = np.full(len(special), -1, dtype=np.int64)
        return cls(
            roles=special + tuple(roles.tolist()),
            hop_s=hop_s,
            stride=stride,
            audio_s=audio_s,
            offsets_s=offsets,
            windows=np.concatenate([none, windows]),
            steps=np.concatenate([none, steps]),
        )

    @property
    def token_s(self) -> float:
        """Seconds from one token to the next."""
        return self.hop_s * self.stride

    @cached_property
    def lattice(self) -> Lattice:
        """The cells as intervals of time."""
        content = self.content
        starts, ends = _cut(
            self.windows[content],
            self.steps[content],
            offsets_s=self.offsets_s,
            token_s=self.token_s,
            audio_s=self.audio_s,
        )
        return Lattice(dims=("t",), intervals=(np.stack([starts, ends], axis=1),), tokens=content)

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, by time."""
        tokens = np.flatnonzero(np.asarray(self.roles, dtype=object) == "content")
        return tokens[np.lexsort([self.steps[tokens], self.windows[tokens]])]

    def places(self) -> Float[np.ndarray, "content 2"]:
        """Return (start_s, end_s) of all content tokens, in the order of `content`."""
        return self.lattice.bounds(self.content)[:, 0]

    def place(self, token: SupportsIndex) -> Span:
        """Return (start_s, end_s) of a token in seconds of the recording."""
        start, end = self.lattice.bounds(np.array([self._content_token(token)]))[0, 0].tolist()
        return (start, end)

    def token_at(self, point: float) -> int:
        """Return the token whose half-open span holds this second."""
        token = self.lattice.token_at((point,))
        if token < 0:
            start, end = self.lattice.extent()[0]
            gaps = " less the gaps between its windows" if len(self.offsets_s) > 1 else ""
            raise PlaceError(
                f"The model did not hear {point:g} s: it heard {start:g} to {end:g} s of {self.noun}{gaps}. "
                "Times count from its beginning, in seconds. Pass a time inside."
            )
        return token

    def tokens_in(self, place: Span) -> Int[np.ndarray, " found"]:
        """Return the tokens whose centre lies in [start_s, end_s); if none does, the one at its centre."""
        found = self.lattice.tokens_in(place[:1], place[1:])
        return found if len(found) else np.array([self.token_at((place[0] + place[1]) / 2)])

    def __repr__(self) -> str:
        start, end = self.lattice.extent()[0]
        windows = f" in {len(self.offsets_s)} windows" if len(self.offsets_s) > 1 else ""
        return self._one_line(f"{len(self.content)} tokens of {self.token_s:g} s, {start:g} to {end:g} s{windows}")


def _cut(
    windows: Int[np.ndarray, " token"],
    steps: Int[np.ndarray, " token"],
    *,
    offsets_s: Float[np.ndarray, " window"],
    token_s: float,
    audio_s: float,
) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
    """Return start and end of each token, cut at the next window and at the end of the audio."""
    offsets = np.round(offsets_s, 9)
    limits = np.minimum(np.append(offsets[1:], np.inf), audio_s)
    # Both edges by the same formula, so that the end of one token is the start of the next, exactly.
    starts = np.round(offsets[windows] + steps * token_s, 9)
    ends = np.minimum(np.round(offsets[windows] + (steps + 1) * token_s, 9), limits[windows])
    return starts, ends

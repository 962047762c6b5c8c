"""Axes whose tokens are numbered and nothing more: bare positions, learned slots, nodes of a graph."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from mmattn.errors import PlaceError
from mmattn.schema.places import AxisBase


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Positions(AxisBase):
    """Tokens of which nothing is known but their index: what a bare `capture` gives.

    Examples
    --------
    >>> Positions.count(3).place(2)
    2
    """

    noun: ClassVar[str] = "the sequence"

    @classmethod
    def count(cls, length: int) -> "Positions":
        """Return an axis of `length` positions."""
        return cls(roles=("content",) * length)

    def places(self) -> Int[np.ndarray, " content"]:
        """Return the indices of all content tokens."""
        return self.content

    def place(self, token: int) -> int:
        """Return the index of the token: itself."""
        return self._content_token(token)

    def token_at(self, point: int) -> int:
        """Return the token with this index."""
        if not 0 <= point < len(self) or self.roles[point] != "content":
            raise PlaceError(
                f"No token stands at {point} in {self.noun}. {self._listing()}. Pass an index from 0 to {len(self) - 1}."
            )
        return point

    def tokens_in(self, place: tuple[int, int]) -> Int[np.ndarray, " found"]:
        """Return the content tokens with an index in `[start, end)`."""
        return self.content[(self.content >= place[0]) & (self.content < place[1])]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Slots(Positions):
    """Learned queries without a place in the input: perceiver latents, a Q-Former, a pooling probe.

    Examples
    --------
    >>> Slots.count(1)
    Slots(1)
    """

    noun: ClassVar[str] = "the slots"

    @classmethod
    def count(cls, length: int) -> "Slots":
        """Return an axis of `length` slots."""
        return cls(roles=("content",) * length)

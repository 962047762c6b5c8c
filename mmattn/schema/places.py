"""What every axis shares: roles, content, and the errors for a token or point without a place.

An axis says what token *i* is in the coordinates of the user's original input. `place(token)` is
the token's own cell (its stride, not its receptive field), cells never overlap, and
`token_at(centre of place(i)) == i` for every content token. Only tokens with the role `content`
have a place.
"""

import operator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, SupportsIndex, TypeAlias

import numpy as np
from jaxtyping import Int

from mmattn.errors import NotFoundError, PlaceError

# A box (x0, y0, x1, y1), a box and a time span, a span (start, end), or a number (node, slot, index).
Place: TypeAlias = tuple[float, ...] | int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AxisBase:
    """Roles of the tokens and what follows from them; the ten axes add their places.

    Parameters
    ----------
    roles
        One word a token: `content`, `cls`, `register`, `distillation`, `bos`, `eos`, `sep`,
        `pad`, `newline`, ... Only `content` is ever drawn as content.

    """

    noun: ClassVar[str] = "the input"
    point_size: ClassVar[int] = 1
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.roles)

    def __eq__(self, other: object) -> bool:
        """Two axes are equal when they are of one kind and place every token alike."""
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.init)

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.roles))

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, in reading order."""
        if self.roles.count("content") == len(self.roles):
            return np.arange(len(self.roles))
        return np.flatnonzero(np.asarray(self.roles, dtype=object) == "content")

    def special(self) -> dict[str, list[int]]:
        """Return the tokens without a place, by role."""
        found: dict[str, list[int]] = {}
        for token, role in enumerate(self.roles):
            if role != "content":
                found.setdefault(role, []).append(token)
        return found

    def _content_token(self, token: SupportsIndex) -> int:
        """Check that `token` is there and has a place; negative indices are refused."""
        index = operator.index(token)
        if not 0 <= index < len(self):
            raise NotFoundError(
                f"There is no token {index}: this axis has {len(self)} tokens, 0 to {len(self) - 1}. Pass one of those."
            )
        if self.roles[index] != "content":
            raise PlaceError(
                f"Token {index} has no place in {self.noun}: its role is {self.roles[index]}. "
                f"{self._listing()}. Pass a content token."
            )
        return index

    def _listing(self) -> str:
        content = self.content
        listed = f"{len(content)} of {len(self)} tokens have a place"
        if len(content):
            listed += f", from token {int(content.min())} to {int(content.max())}"
        special = self._special_phrase(where=True)
        return listed + (f" (special: {special})" if special else "")

    def _special_phrase(self, *, where: bool = False) -> str:
        if where:
            return ", ".join(f"{role} {_ranges(tokens)}" for role, tokens in self.special().items())
        return ", ".join(f"{len(tokens)} {role}" for role, tokens in self.special().items())

    def _one_line(self, what: str) -> str:
        special = self._special_phrase()
        return f"{type(self).__name__}({what}" + (f", {special}" if special else "") + ")"


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        floating = one.dtype.kind == "f" and other.dtype.kind == "f"
        return bool(np.array_equal(one, other, equal_nan=floating))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):  # an optional array that only one has
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and (one == other if _plain(one) else all(map(_same, one, other)))
    return bool(one == other)


def _plain(values: tuple[object, ...]) -> bool:
    return not values or not isinstance(values[0], np.ndarray)


def _ranges(tokens: list[int]) -> str:
    if len(tokens) > 1 and tokens == list(range(tokens[0], tokens[-1] + 1)):
        return f"{tokens[0]} to {tokens[-1]}"
    return ", ".join(map(str, tokens[:8])) + (", ..." if len(tokens) > 8 else "")

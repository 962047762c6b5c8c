"""What every axis shares: roles, content, and the errors for a token or point without a place.

An axis says what token *i* is in the coordinates of the user's original input. `place(token)` is
the token's own cell (its stride, not its receptive field), cells never overlap, and
`token_at(centre of place(i)) == i` for every content token. Only tokens with the role `content`
have a place.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

import numpy as np
from jaxtyping import Int

from mmattn.errors import NotFoundError, PlaceError

# A box (x0, y0, x1, y1), a box and a time span, a span (start, end), or a number (node, slot, index).
Place: TypeAlias = tuple[float, ...] | int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AxisBase:
    """Roles of the tokens and what follows from them; the nine axes add their places.

    Parameters
    ----------
    roles
        One word a token: `content`, `cls`, `register`, `distillation`, `bos`, `eos`, `sep`,
        `pad`, `newline`, ... Only `content` is ever drawn as content.
    """

    noun: ClassVar[str] = "the input"
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.roles)

    def __eq__(self, other: object) -> bool:
        """Two axes are equal when they are of one kind and place every token alike."""
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.roles))

    @property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, in reading order."""
        return np.flatnonzero(np.asarray(self.roles, dtype=object) == "content")

    def special(self) -> dict[str, list[int]]:
        """Return the tokens without a place, by role."""
        found: dict[str, list[int]] = {}
        for token, role in enumerate(self.roles):
            if role != "content":
                found.setdefault(role, []).append(token)
        return found

    def _content_token(self, token: int) -> int:
        """Check that `token` is there and has a place; negative indices are refused."""
        if not 0 <= token < len(self):
            raise NotFoundError(
                f"There is no token {token}: this axis has {len(self)} tokens, 0 to {len(self) - 1}. "
                "Pass one of those."
            )
        if self.roles[token] != "content":
            raise PlaceError(
                f"Token {token} has no place in {self.noun}: its role is {self.roles[token]}. "
                f"{self._listing()}. Pass a content token."
            )
        return token

    def _listing(self) -> str:
        content = self.content
        listed = f"{len(content)} of {len(self)} tokens have a place"
        if len(content):
            listed += f", from token {int(content.min())} to {int(content.max())}"
        special = ", ".join(f"{role} {_ranges(tokens)}" for role, tokens in self.special().items())
        return listed + (f" (special: {special})" if special else "")


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other))
    return type(one) is type(other) and bool(one == other)


def _ranges(tokens: list[int]) -> str:
    if len(tokens) > 1 and tokens == list(range(tokens[0], tokens[-1] + 1)):
        return f"{tokens[0]} to {tokens[-1]}"
    return ", ".join(map(str, tokens[:8])) + (", ..." if len(tokens) > 8 else "")

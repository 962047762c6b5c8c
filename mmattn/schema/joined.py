"""The axis of several inputs in one sequence: image tokens inside a prompt, tiles, several images.

Each part is an axis of its own and keeps its places; the joined axis says which tokens of the
sequence each part has. Tokens of no part (image markers, newline slots) have a role and no place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Int, Num

from mmattn.errors import InputError, MmattnError, NotFoundError, PlaceError, nearest
from mmattn.schema.grids import PatchGrid
from mmattn.schema.places import AxisBase, Place
from mmattn.schema.regions import Regions
from mmattn.schema.sets import Nodes, Positions, Slots
from mmattn.schema.spectrograms import SpectrogramGrid
from mmattn.schema.timelines import Timeline
from mmattn.schema.tokens import Tokens
from mmattn.schema.tubelets import TubeletGrid

# The name of the part that the model wrote itself, token by token: the map that wrote a token is the row before it.
WRITTEN = "answer"

# The name of the part that is a whole picture, beside its tiles.
WHOLE = "image"

Part = PatchGrid | TubeletGrid | SpectrogramGrid | Timeline | Tokens | Nodes | Slots | Positions | Regions


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Joined(AxisBase):
    """Several axes in one sequence; a place is the place in its part.

    Parameters
    ----------
    parts
        The axes, none of them joined itself.
    tokens
        For each part, where its tokens stand in the sequence.
    names
        One word a part, such as `image`, `text`, `tile 2`; all different.

    Examples
    --------
    >>> image = PatchGrid.plain(rows=2, cols=2, patch_px=(16, 16), size_px=(32, 32))
    >>> text = Tokens.of("a cat", pieces=["a", "cat"], spans=[(0, 1), (2, 5)])
    >>> axis = Joined.of({"text": text, "image": image}, tokens=[[0, 5], [1, 2, 3, 4]])
    >>> axis.place(4), axis.token_at(3, part="text"), axis.part_of(4)
    ((16.0, 16.0, 32.0, 32.0), 5, 'image')

    """

    noun: ClassVar[str] = "any part"

    parts: tuple[Part, ...]
    tokens: tuple[Int[np.ndarray, " _"], ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.parts) == len(self.tokens) == len(self.names) == len(set(self.names)):
            raise InputError(
                f"{len(self.parts)} parts, {len(self.tokens)} lists of tokens and the names {list(self.names)} do not "
                "agree. Each part has its tokens and a name of its own. Pass one of each."
            )
        for part, tokens, name in zip(self.parts, self.tokens, self.names, strict=True):
            if len(part) != len(tokens):
                raise InputError(
                    f"Part {name} has {len(part)} tokens and stands at {len(tokens)} places of the sequence. "
                    "Every token of a part stands at one. Check which positions the part fills."
                )
        self._check_cover()

    def _check_cover(self) -> None:
        taken = np.concatenate([*self.tokens, np.zeros(0, dtype=np.int64)]).astype(np.int64)
        if taken.size and (taken.min() < 0 or taken.max() >= len(self.roles) or len(np.unique(taken)) != taken.size):
            raise InputError(
                f"The parts stand at {taken.size} places from {taken.min()} to {taken.max()} of a sequence of "
                f"{len(self.roles)}. Every place has at most one token. Check which positions the parts fill."
            )
        roles = [role for part in self.parts for role in part.roles]
        wrong = [token for token, role in zip(taken.tolist(), roles, strict=True) if self.roles[token] != role]
        rest = np.ones(len(self.roles), dtype=bool)
        rest[taken] = False
        wrong += [int(token) for token in np.flatnonzero(rest) if self.roles[token] == "content"]
        if wrong:
            raise InputError(
                f"The role of token {wrong[0]} is {self.roles[wrong[0]]}, which its part does not say. Tokens of a "
                "part have its role and others a special one. Build the axis with Joined.of."
            )

    @classmethod
    def of(
        cls,
        parts: dict[str, Part],
        *,
        tokens: Sequence[Sequence[int] | Int[np.ndarray, " _"]],
        length: int | None = None,
        rest: str | dict[int, str] = "special",
    ) -> "Joined":
        """Return the axis of named parts; `rest` is the role of tokens of no part, or one for each of them."""
        placed = tuple(np.asarray(where, dtype=np.int64) for where in tokens)
        reach = max((int(where.max()) + 1 for where in placed if where.size), default=0)
        roles = [rest if isinstance(rest, str) else "special"] * max(reach, length or 0)
        for token, role in rest.items() if isinstance(rest, dict) else ():
            roles[token] = role
        for part, where in zip(parts.values(), placed, strict=True):
            for token, role in zip(where.tolist(), part.roles, strict=True):
                roles[token] = role
        return cls(roles=tuple(roles), parts=tuple(parts.values()), tokens=placed, names=tuple(parts))

    @cached_property
    def _owner(self) -> Int[np.ndarray, "token 2"]:
        """For each token its part and its number in that part; -1 for none."""
        owner = np.full((len(self), 2), -1, dtype=np.int64)
        for number, tokens in enumerate(self.tokens):
            owner[tokens, 0] = number
            owner[tokens, 1] = np.arange(len(tokens))
        return owner

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place: part after part, each in its reading order."""
        found = [tokens[part.content] for part, tokens in zip(self.parts, self.tokens, strict=True)]
        return np.concatenate([*found, np.zeros(0, dtype=np.int64)]).astype(np.int64)

    def places(self) -> tuple[Num[np.ndarray, "..."], ...]:
        """Return the places of each part's content tokens, part after part, as `content` has them."""
        return tuple(part.places() for part in self.parts)

    def place(self, token: SupportsIndex) -> Place:
        """Return the place of a token in its part."""
        number, inner = self._owner[self._content_token(token)].tolist()
        found: Place = self.parts[number].place(inner)
        return found

    def token_at(self, point: tuple[float, ...] | float, *, part: str | int | None = None) -> int:
        """Return the token at a point of one part; without `part`, of the only part that has such a point."""
        numbers = self._candidates(point) if part is None else [self._number(part)]
        found = {}
        for number in numbers:
            try:
                found[number] = int(self.tokens[number][self._inner_at(number, point)])
            except MmattnError:
                if part is not None or len(numbers) == 1:
                    raise
        if len(found) != 1:
            names = ", ".join(self.names[number] for number in (found or numbers))
            raise PlaceError(
                f"The point {point} is in {len(found)} of the parts {', '.join(self.names)}. "
                f"A point names one token of one part. Pass part= one of: {names or 'none fits'}."
            )
        return next(iter(found.values()))

    def tokens_in(self, place: tuple[float, ...], *, part: str | int | None = None) -> Int[np.ndarray, " found"]:
        """Return the tokens of one part in a box or span; `part` may be left out where only one fits."""
        numbers = self._candidates(place[: len(place) // 2]) if part is None else [self._number(part)]
        if len(numbers) != 1:
            fit = [self.names[number] for number in numbers]
            raise PlaceError(
                f"The place {place} fits {len(fit)} of the parts {', '.join(self.names)}. "
                f"A place is in one part. Pass part= one of: {', '.join(fit) or 'none fits'}."
            )
        inner: Int[np.ndarray, " found"] = self.parts[numbers[0]].tokens_in(place)  # type: ignore[arg-type]
        return np.sort(self.tokens[numbers[0]][inner])

    def part_of(self, token: SupportsIndex) -> str | None:
        """Return the name of the part that a token belongs to, None for none."""
        number = int(self._owner[token, 0])
        return None if number < 0 else self.names[number]

    def part(self, name: str | int) -> tuple[Part, Int[np.ndarray, " _"]]:
        """Return a part's own axis and where its tokens stand in the sequence."""
        number = self._number(name)
        return self.parts[number], self.tokens[number]

    def only(self, kind: type[Part]) -> str:
        """Return the name of the only part of a kind (`PatchGrid`, `Tokens`, ...).

        Of several looks at one picture (the whole, and its tiles) it is the whole one, `image`.

        Raises
        ------
        NotFoundError
            There is none, or there are several; the parts are listed.
        """
        named = dict(zip(self.names, self.parts, strict=True))
        found = [name for name, part in named.items() if isinstance(part, kind)]
        sizes = {part.size_px for part in named.values() if isinstance(part, PatchGrid)}
        if kind is PatchGrid and WHOLE in found and len(sizes) == 1:
            return WHOLE
        if len(found) != 1:
            listed = ", ".join(f"{name} ({type(part).__name__})" for name, part in named.items())
            raise NotFoundError(
                f"{len(found) or 'None'} of the parts of this sequence are {kind.__name__}, where one is meant. "
                f"The parts are: {listed}. Name one of them, as with relevance.part(columns, rows=...)."
            )
        return found[0]

    def _number(self, part: str | int) -> int:
        if isinstance(part, str) and part in self.names:
            return self.names.index(part)
        if isinstance(part, int) and 0 <= part < len(self.parts):
            return part
        raise NotFoundError(
            f"There is no part {part!r}. The parts are: {nearest(str(part), self.names)}. Pass one of those."
        )

    def _candidates(self, point: tuple[float, ...] | float) -> list[int]:
        size = len(point) if isinstance(point, tuple) and len(point) != 1 else 1
        return [number for number, part in enumerate(self.parts) if part.point_size == size]

    def _inner_at(self, number: int, point: tuple[float, ...] | float) -> int:
        part = self.parts[number]
        if isinstance(part, Nodes | Slots | Positions):
            if not isinstance(point, int | np.integer):
                raise PlaceError(f"The point {point} is no index. {part.noun} has whole numbers. Pass an int.")
            return part.token_at(point)
        return part.token_at(point)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}: {part!r}" for name, part in zip(self.names, self.parts, strict=True))
        return f"Joined({len(self)} tokens; {listed})"

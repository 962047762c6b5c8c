"""One text and one picture in one sequence: its layers, which rows are the words', and which columns the patches'.

A word asks as it was read: with its own row, which knows the word. (What a model *wrote* is another thing: a written
word's map is the row before it, see `mmattn.analysis.between`, and so is the row that a word's logit comes from.)
The row that has read everything answers for the text as a whole: the class token where the answer is read from it,
else the last token that is no padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmattn.analysis.between import asked_rows
from mmattn.errors import ModelError, NotFoundError, nearest
from mmattn.schema.axes import Axis, Joined, PatchGrid, Tokens
from mmattn.schema.composing import composed, way_to_patches
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Unit
from mmattn.schema.weights import Blocks, Dense


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a method found for one text.

    Parameters
    ----------
    rows
        One for each token of the text, over the tokens of the picture.
    whole
        For the text as one.
    said
        For captions.
    unit
        What values are.
    """

    rows: Float[Tensor, "token patch"]
    whole: Float[Tensor, " patch"]
    said: Mapping[str, object]
    unit: Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """The picture: which part of the sequence it is, its patches, which of them each slot asked, and what to say."""

    name: str
    grid: PatchGrid
    onward: Float[Tensor, "slot patch"] | None
    remarks: Mapping[str, object]


def _led(name: str, parts: Mapping[str, Axis], every: Sequence[AttentionLayer]) -> _Seen:
    """Return the patches that slots asked: what a layer in which each slot asks itself is composed to."""
    slots = parts[name]
    itself = Blocks(source=Dense(weights=torch.eye(len(slots))[None, None]))
    layer = AttentionLayer(name=name, query=(slots,), key=(slots,), heads=1, storage=(itself,), kind="cross")
    found = composed(layer, every)
    onward, axis = found.weights()[0], found.key_axis
    if isinstance(axis, Joined):
        axis, where = axis.part(axis.only(PatchGrid))
        onward = onward[:, torch.as_tensor(where)]
    assert isinstance(axis, PatchGrid)
    return _Seen(name=name, grid=axis, onward=onward, remarks={"note": found.note})


@dataclass(frozen=True, kw_only=True, eq=False)
class OneStream:
    """One text with the picture.

    Parameters
    ----------
    layers
        In which the whole sequence asks itself, lowest first.
    axis
        Of all of them.
    writes
        Whether the model writes texts: each token's logit comes from the row before it.
    every
        All layers of the model, for slots in the sequence that asked patches before.
    """

    layers: tuple[AttentionLayer, ...]
    axis: Joined
    writes: bool
    every: tuple[AttentionLayer, ...] = ()

    @cached_property
    def text(self) -> tuple[Tokens, Int[np.ndarray, " token"]]:
        """The words, and where they stand."""
        name = next(
            name for name, part in zip(self.axis.names, self.axis.parts, strict=True) if isinstance(part, Tokens)
        )
        part, where = self.axis.part(name)
        assert isinstance(part, Tokens)
        return part, where

    @cached_property
    def _seen(self) -> "_Seen":
        named = dict(zip(self.axis.names, self.axis.parts, strict=True))
        grids = [name for name, part in named.items() if isinstance(part, PatchGrid)]
        if grids:
            name = "image" if "image" in grids else grids[0]
            grid = named[name]
            assert isinstance(grid, PatchGrid)
            return _Seen(name=name, grid=grid, onward=None, remarks={"part": name} if len(grids) > 1 else {})
        way = way_to_patches(self.layers[-1], self.every)
        if way is None:
            raise ModelError(
                f"No part of the sequence {self.axis!r} is a grid of patches, or slots that asked one. Words are "
                "linked with patches. Read it with mmattn.attend and mmattn.look."
            )
        return _led(next(name for name, part in named.items() if part == way[0].query_axis), named, self.every)

    @property
    def picture(self) -> PatchGrid:
        """The patches: of a picture in tiles those of the whole one, of slots those that they asked."""
        return self._seen.grid

    @property
    def remarks(self) -> Mapping[str, object]:
        """What a caption says of the picture: which part it is, where there are several, and what it was led on by."""
        return self._seen.remarks

    def over_picture(self, rows: Float[Tensor, "asked token"]) -> Float[Tensor, "asked patch"]:
        """Return the columns of rows over the sequence that are the picture's, led on to its patches."""
        _, where = self.axis.part(self._seen.name)
        own, onward = rows[:, torch.as_tensor(where, device=rows.device)], self._seen.onward
        return own if onward is None else own @ onward.to(own)

    @cached_property
    def spoken(self) -> Bool[Tensor, " token"]:
        """Which tokens of the text are pieces of the user's words."""
        words, _ = self.text
        return torch.tensor([role in ("content", "continuation") for role in words.roles])

    @cached_property
    def reader(self) -> int:
        """The token that has read everything."""
        if not self.writes and "cls" in self.axis.roles:
            return self.axis.roles.index("cls")
        return max(token for token, role in enumerate(self.axis.roles) if role != "pad")

    def by_word(self, rows: Float[Tensor, "token column"]) -> Float[Tensor, "token column"]:
        """Return rows with nothing in those that are no word of the user's."""
        return torch.where(self.spoken.to(rows.device)[:, None], rows, 0.0)

    def asked(
        self, layer: AttentionLayer, *, head: int | str | None = None
    ) -> tuple[Float[Tensor, "token patch"], Float[Tensor, " patch"]]:
        """Return what each token of the text gave to the patches in one layer, and what the reader gave."""
        _, words = self.text
        rows = self.over_picture(asked_rows(layer, [*words.tolist(), self.reader], head=head).float())
        return self.by_word(rows[:-1]), rows[-1]

    def numbered(self, layer: int | str) -> tuple[int, AttentionLayer]:
        """Return a layer by its number among these, or by its module path.

        Raises
        ------
        NotFoundError
            It is not there.
        """
        names = [one.name for one in self.layers]
        if isinstance(layer, str) and layer in names:
            return names.index(layer), self.layers[names.index(layer)]
        if type(layer) is not int or not -len(names) <= layer < len(names):
            raise NotFoundError(
                f"There is no layer {layer!r}: words and patches ask each other in {len(names)} layers, 0 to "
                f"{len(names) - 1}. Pass one of those, or a module path such as {nearest(str(layer), names)}."
            )
        return layer % len(names), self.layers[layer]


def one_stream(maps: AttentionMaps, *, writes: bool) -> OneStream:
    """Return the layers of one sample in which words and patches stand in the last sequence that there is of both."""
    every = [one for one in maps.layers if one.kind == "self" and shares_sequence(one)]
    axis = every[-1].key_axis  # below a decoder there may be another sequence of words: InstructBLIP's Q-Former
    layers = [one for one in every if one.key_axis == axis and one.query_axis == axis]
    assert isinstance(axis, Joined)
    return OneStream(layers=tuple(layers), axis=axis, writes=writes, every=maps.layers)


def shares_sequence(layer: AttentionLayer) -> bool:
    """Whether words and something else stand in one sequence that asks itself."""
    axis = layer.query[0]
    return isinstance(axis, Joined) and len(axis.parts) > 1 and any(isinstance(part, Tokens) for part in axis.parts)


def phrase(layers: Sequence[AttentionLayer], number: int) -> str:
    """Return how to call a layer in a caption."""
    return f"{number} (0 to {len(layers) - 1}), {layers[number].name}"

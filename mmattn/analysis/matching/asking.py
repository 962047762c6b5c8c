"""One text that asks a picture: its maps, the layers that lead from words to patches, and what a method finds.

A word's row is its own where a text is judged; where the model writes the text it is the row before it: the map
that wrote the word at i + 1 is row i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmattn.analysis.matching.woven import Woven, weave
from mmattn.schema.axes import Axis, Joined, PatchGrid, Tokens
from mmattn.schema.composing import composed_note, way_to_patches
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Unit

# Share of words' attention that a caption must tell.
_WORTH_SAYING = 5e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What a method found for one text.

    Parameters
    ----------
    rows
        One for each token of the text.
    whole
        For the text as one.
    axis
        What the columns are.
    said
        For captions.
    unit
        What values are.
    """

    rows: Float[Tensor, "token patch"]
    whole: Float[Tensor, " patch"]
    axis: Axis
    said: Mapping[str, object]
    unit: Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """One text with the picture.

    Parameters
    ----------
    maps
        Of one sample.
    layers
        In which words ask patches, or slots that lead to patches; lowest first.
    writes
        Whether the model writes the text.
    """

    maps: AttentionMaps
    layers: tuple[AttentionLayer, ...]
    writes: bool

    @property
    def axis(self) -> Axis:
        """Who asks: the text, alone or in a sequence with others."""
        return self.layers[-1].query_axis

    @cached_property
    def words(self) -> Tokens:
        """The text's own axis."""
        axis = self.axis
        found = next(one for one in (axis.parts if isinstance(axis, Joined) else (axis,)) if isinstance(one, Tokens))
        return found

    @cached_property
    def tokens(self) -> Sequence[int]:
        """Where the tokens of the text stand among those who ask."""
        axis = self.axis
        return axis.tokens[axis.parts.index(self.words)].tolist() if isinstance(axis, Joined) else range(len(axis))

    @cached_property
    def rows(self) -> list[int]:
        """For each token of the text the row that is its own: of those who ask, -1 for none."""
        before = 1 if self.writes else 0
        return [where - before for where in self.tokens]

    @property
    def spoken(self) -> Bool[Tensor, " token"]:
        """Which tokens of the text are pieces of the user's words, and have a row."""
        own = [role in ("content", "continuation") for role in self.words.roles]
        return torch.tensor([said and row >= 0 for said, row in zip(own, self.rows, strict=True)])

    @property
    def picture(self) -> Axis:
        """What is asked in the end."""
        way = way_to_patches(self.layers[-1], self.maps.layers) or ()
        asked = (way[-1] if way else self.layers[-1]).key_axis
        if isinstance(asked, Joined):
            grids = [part for part in asked.parts if isinstance(part, PatchGrid)]
            return grids[0] if len(grids) == 1 else asked
        return asked

    @cached_property
    def woven(self) -> Woven:
        """All sides that the words reach."""
        return weave(self.maps.layers, start=self.layers)

    def read(self, asked: Float[Tensor, "query patch"], *, said: Mapping[str, object], unit: Unit) -> Read:
        """Return rows for those who ask, over the picture, as rows of words."""
        rows, remarks = self.by_word(asked), {"note": self.note}
        left = 1 - float(rows[self.spoken.to(rows.device)].sum(dim=1).mean()) if bool(self.spoken.any()) else 0.0
        if unit == "share" and left > _WORTH_SAYING:
            remarks["not on the picture"] = f"{100 * left:.2g} %"
        return Read(
            rows=rows,
            whole=self.as_one(asked),
            axis=self.picture,
            said={**said, **{name: phrase for name, phrase in remarks.items() if phrase}},
            unit=unit,
        )

    @property
    def note(self) -> str:
        """What a caption says of the way from words to patches."""
        return composed_note(self.layers[-1], way_to_patches(self.layers[-1], self.maps.layers) or ())

    def by_word(self, asked: Float[Tensor, "query patch"]) -> Float[Tensor, "token patch"]:
        """Return a row for each token of the text, of rows for those who ask; nothing for what is no word."""
        found = asked[[max(row, 0) for row in self.rows]]
        return torch.where(self.spoken.to(found.device)[:, None], found, 0.0)

    def as_one(self, asked: Float[Tensor, "query patch"]) -> Float[Tensor, " patch"]:
        """Return one row for the text: that of its class token, where a judgement is read, or the mean of its words."""
        if not self.writes and "cls" in self.words.roles:
            return asked[self.tokens[self.words.roles.index("cls")]]
        return self.by_word(asked)[self.spoken.to(asked.device)].mean(dim=0)

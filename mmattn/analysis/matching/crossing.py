"""Which word goes with which patch in a model whose words ask patches: real attention, read by a method by name.

method   what it is                                                                             unit
`cross`  one layer's cross-attention as the model had it, mean over heads or one head           share

A model that judges a whole text (BLIP's matching) has a row for each word as it asks. A decoder (BLIP's captions,
CoCa's, Florence-2's) writes: the map that wrote the word at i + 1 is row i, so that a word's row here is the row of
the token before it. Where words ask slots (CoCa's pool, a Q-Former, latents) the map is led on to the patches that the
slots asked, and says `composed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.match import Pair
from mmattn.analysis.matching.meeting import Meeting, crosses
from mmattn.errors import ModelError, NotFoundError, nearest
from mmattn.interception.protocol import PairScores, ScoresPairs
from mmattn.schema import stream as rows
from mmattn.schema.axes import Axis, Joined, Slots, Tokens
from mmattn.schema.composing import composed
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.matches import Match
from mmattn.schema.results import Relevance, Unit

Method = Literal["cross"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What a method found for one text.

    Parameters
    ----------
    rows
        One for each token of the text as it asks.
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
class Crossing:
    """One text with the picture: its maps, and which layers lead from its words to patches.

    Parameters
    ----------
    maps
        Of one sample.
    layers
        Whose words ask, lowest first.
    writes
        Whether the model writes the text, so that a word's map is the row before it.
    """

    maps: AttentionMaps
    layers: tuple[AttentionLayer, ...]
    writes: bool

    @property
    def words(self) -> tuple[Tokens, Sequence[int]]:
        """The text's axis, and where its tokens stand among those who ask."""
        axis = self.layers[-1].query_axis
        if isinstance(axis, Joined):
            part, where = axis.part(
                next(n for n, one in zip(axis.names, axis.parts, strict=True) if isinstance(one, Tokens))
            )
            assert isinstance(part, Tokens)
            return part, where.tolist()
        assert isinstance(axis, Tokens)
        return axis, range(len(axis))

    def by_word(self, asked: Float[Tensor, "query patch"]) -> Float[Tensor, "token patch"]:
        """Return a row for each token of the text: as it asks, or of the token before it where the model writes."""
        if self.writes:
            asked = torch.cat([torch.zeros_like(asked[:1]), asked[:-1]])
        axis, where = self.words
        spoken = torch.tensor([role in ("content", "continuation") for role in axis.roles], device=asked.device)
        return torch.where(spoken[:, None], asked[list(where)], 0.0)

    def as_one(self, asked: Float[Tensor, "query patch"]) -> Float[Tensor, " patch"]:
        """Return one row for the text: that of its class token, where a judgement is read, or the mean of its words."""
        axis, where = self.words
        if not self.writes and "cls" in axis.roles:
            return asked[where[axis.roles.index("cls")]]
        return self.by_word(asked)[axis.content].mean(dim=0)


def match(
    pair: Pair,
    meeting: Meeting,
    *,
    method: str,
    stream: str | None = None,
    layer: int | str | None = None,
    head: int | None = None,
) -> Match:
    """Return what a model in which words ask patches makes of a picture and some texts.

    Raises
    ------
    NotFoundError
        A stream, layer or head that is not there; those that are get listed.
    ModelError
        A model that the method cannot read, or that gives no score of a picture with a text.
    """
    scores = scores_of(pair, meeting)
    found = []
    for sample in meeting.maps.samples:
        crossing = _crossing(sample, stream, writes=scores.words is not None)
        found.append((crossing, _cross(crossing, layer=layer, head=head)))
    source = replace(pair.source, preprocessing=meeting.maps.prepared.preprocessing)
    made = _Made(pair=replace(pair, source=source), method=method)
    return Match(
        texts=tuple(one.text for one in pair.texts),
        scores=scores.values.detach().float().cpu(),
        unit=scores.unit,
        relevances=tuple(made.by_word(number, *one) for number, one in enumerate(found)),
        overall=tuple(made.as_one(number, one) for number, (_, one) in enumerate(found)),
        method=method,
    )


def scores_of(pair: Pair, meeting: Meeting) -> PairScores:
    """Return what the model gave for each pair.

    Raises
    ------
    ModelError
        It gives nothing, or its adapter knows no score.
    """
    if not isinstance(pair.adapter, ScoresPairs):
        raise ModelError(
            f"What {type(pair.model).__name__} gives for a picture with a text is not known to its adapter. "
            "mmattn.match needs a score. Read its attention with mmattn.attend and mmattn.look."
        )
    return pair.adapter.pair_scores(meeting.output, meeting.maps.prepared)


def _crossing(maps: AttentionMaps, stream: str | None, *, writes: bool) -> Crossing:
    there = [one for one in maps.layers if crosses(one, maps.layers)]
    chosen = [one for one in there if stream is None or one.stream == stream or one.stream.startswith(f"{stream}.")]
    if not chosen:
        known = list(dict.fromkeys(one.stream for one in there))
        raise NotFoundError(
            f'No words of the stream "{stream}" ask patches. The streams whose words do are: '
            f"{nearest(str(stream), known)}. Pass one of those, or leave stream= out."
        )
    return Crossing(maps=maps, layers=tuple(chosen), writes=writes)


def _cross(crossing: Crossing, *, layer: int | str | None, head: int | None) -> Read:
    """Return one layer's rows as the model had them."""
    number = _number(crossing.layers, -1 if layer is None else layer)
    chosen = composed(crossing.layers[number], crossing.maps.layers)
    if head is not None and not (type(head) is int and -chosen.storage_heads <= head < chosen.storage_heads):
        raise NotFoundError(
            f"There is no head {head!r}: {chosen.name} has {chosen.storage_heads}, 0 to {chosen.storage_heads - 1}. "
            "Pass one of those, or leave head= out for their mean."
        )
    asked = rows.rows_of(chosen, range(len(chosen.query_axis)), heads="mean" if head is None else head)
    said = {
        "layer": f"{number} (0 to {len(crossing.layers) - 1}), {chosen.name}",
        "head": "mean" if head is None else head,
        **({"note": chosen.note} if chosen.note else {}),
    }
    return Read(
        rows=crossing.by_word(asked), whole=crossing.as_one(asked), axis=chosen.key_axis, said=said, unit="share"
    )


def _number(layers: Sequence[AttentionLayer], layer: int | str) -> int:
    names = [one.name for one in layers]
    if isinstance(layer, str):
        if layer not in names:
            raise NotFoundError(
                f'In no layer "{layer}" do words ask patches. Those in which they do are: {nearest(layer, names)}. '
                "Pass one of those, or its number."
            )
        return names.index(layer)
    if type(layer) is not int or not -len(layers) <= layer < len(layers):
        raise NotFoundError(
            f"There is no layer {layer!r}: words ask patches in {len(layers)} layers, 0 to {len(layers) - 1}. "
            f"Pass one of those, or a module path such as {names[-1]!r}."
        )
    return layer % len(layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """What all relevances of a match have in common."""

    pair: Pair
    method: str

    def by_word(self, number: int, crossing: Crossing, read: Read) -> Relevance:
        axis, _ = crossing.words
        return self._relevance(number, read, read.rows, query_axis=axis, labels=axis.pieces)

    def as_one(self, number: int, read: Read) -> Relevance:
        label = (f"‘{self.pair.texts[number].text}’",)
        return self._relevance(number, read, read.whole[None], query_axis=Slots.count(1), labels=label)

    def _relevance(
        self, number: int, read: Read, values: Tensor, *, query_axis: Axis, labels: Sequence[str]
    ) -> Relevance:
        return Relevance(
            values=values.float().cpu(),
            axis=read.axis,
            query_axis=query_axis,
            labels=tuple(labels),
            method=self.method,
            unit=read.unit,
            parameters=read.said,
            media=self.pair.photo,
            query_media=self.pair.texts[number],
            source=self.pair.source,
        )

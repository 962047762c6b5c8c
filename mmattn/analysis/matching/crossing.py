"""Which word goes with which patch in a model whose words ask patches: real attention, read by a method by name.

method            what it is                                                                      unit
`chefer`          attention x gradient through both sides and between them, toward what is said   relevance
`cross_rollout`   attention followed through all layers, residual streams beside it               share
`cross`           one layer's cross-attention as the model had it, mean over heads or one head    share

What is said of a pair is the logit of a match, or where the model writes the text the logit of each word. `chefer`
is the default: it alone asks which of what a word looked at counted for the answer, and through which layer and head;
raw rows lie largely on tokens that every word looks at.

A model that judges a whole text (BLIP's matching) has a row for each word as it asks. A decoder (BLIP's captions,
CoCa's, Florence-2's) writes: the map that wrote the word at i + 1 is row i, so that a word's row here is the row of
the token before it. Where words ask slots (CoCa's pool, a Q-Former, latents) the map is led on to the patches that the
slots asked, and says `composed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.asking import Asking, Read
from mmattn.analysis.matching.co_attention import co_attention
from mmattn.analysis.matching.cross import cross
from mmattn.analysis.matching.cross_rollout import cross_rollout
from mmattn.analysis.matching.match import Pair
from mmattn.analysis.matching.meeting import Meeting, crosses, scores_of
from mmattn.analysis.matching.toward import Toward, toward
from mmattn.errors import NotFoundError, nearest
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.composing import way_to_patches
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.matches import Match
from mmattn.schema.results import Relevance

Method = Literal["chefer", "cross_rollout", "cross"]


def match(
    pair: Pair,
    meeting: Meeting,
    *,
    method: str,
    stream: str | None = None,
    layer: int | str = -1,
    head: int | None = None,
) -> Match:
    """Return what a model in which words ask patches makes of a picture and some texts.

    Parameters
    ----------
    method
        See above.
    stream
        Whose words ask; None: all.
    layer, head
        For `cross`.

    Raises
    ------
    NotFoundError
        A stream, layer or head that is not there; those that are get listed.
    ModelError
        A model that the method cannot read, or that gives no score of a picture with a text.
    """
    scores = scores_of(pair, meeting)
    asking = [_asking(sample, stream, writes=scores.words is not None) for sample in meeting.maps.samples]
    if method == "chefer":
        run = toward(pair, meeting)
        found = [_chefer(one, run, text=number) for number, one in enumerate(asking)]
    elif method == "cross_rollout":
        found = [_rolled(one) for one in asking]
    else:
        found = [cross(one, layer=layer, head=head) for one in asking]
    source = replace(pair.source, preprocessing=meeting.maps.prepared.preprocessing)
    made = _Made(pair=replace(pair, source=source), method=method)
    return Match(
        texts=tuple(one.text for one in pair.texts),
        scores=scores.values.detach().float().cpu(),
        unit=scores.unit,
        relevances=tuple(made.by_word(*each) for each in zip(range(len(found)), asking, found, strict=True)),
        overall=tuple(made.as_one(number, one) for number, one in enumerate(found)),
        method=method,
    )


def _asking(maps: AttentionMaps, stream: str | None, *, writes: bool) -> Asking:
    there = [one for one in maps.layers if crosses(one, maps.layers)]
    chosen = [one for one in there if stream is None or one.stream == stream or one.stream.startswith(f"{stream}.")]
    if not chosen:
        known = list(dict.fromkeys(one.stream for one in there))
        raise NotFoundError(
            f'No words of the stream "{stream}" ask patches. The streams whose words do are: '
            f"{nearest(str(stream), known)}. Pass one of those, or leave stream= out."
        )
    asks = chosen[-1].query_axis
    return Asking(
        maps=maps,
        layers=tuple(one for one in chosen if one.query_axis == asks),
        writes=writes and asks == there[-1].query_axis,  # the words that a Q-Former reads are written by nobody
    )


def _rolled(asking: Asking) -> Read:
    woven = asking.woven
    asked = cross_rollout(woven, asks=woven.nodes(asking.axis), patches=woven.nodes(asking.picture))
    said = {"layers": f"all {len(woven.threads)} that words reach", "residual_weight": 0.5}
    return asking.read(asked, said=said, unit="share")


def _chefer(asking: Asking, run: Toward, *, text: int) -> Read:
    """Return the rows of a judgement by one backward pass, of a text that is written by one for each word."""
    targets, words = run.scores.targets, run.scores.words
    if targets is not None:
        asked = _relevance(asking, run, targets[text], text=text)
        return asking.read(asked, said={"toward": "the logit of a match"}, unit="relevance")
    assert words is not None
    if not asking.writes:
        asked = _relevance(asking, run, words[text].sum(), text=text)
        return asking.read(asked, said={"toward": "the logits of all words"}, unit="relevance")
    asked = torch.zeros(len(asking.axis), len(asking.picture))
    for token in torch.nonzero(asking.spoken).flatten().tolist():
        row = asking.rows[token]
        asked[row] = _relevance(asking, run, words[text, asking.tokens[token]], text=text)[row]
    return asking.read(asked, said={"toward": "the logit of each word"}, unit="relevance")


def _relevance(asking: Asking, run: Toward, logit: Float[Tensor, ""], *, text: int) -> Float[Tensor, "query patch"]:
    way = way_to_patches(asking.layers[-1], asking.maps.layers) or ()
    needed = {layer.name for layer in (asking.layers[-1], *way)}
    maps = run.maps(text, logit, needed=needed.__contains__)
    pairs = zip(asking.maps.layers, maps.layers, strict=True)  # by their order: a module may ask in both directions
    woven = replace(asking, maps=maps, layers=tuple(one for own, one in pairs if own in asking.layers)).woven
    found = co_attention(woven)
    return found[woven.nodes(asking.axis)][:, woven.nodes(asking.picture)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """What all relevances of a match have in common."""

    pair: Pair
    method: str

    def by_word(self, number: int, asking: Asking, read: Read) -> Relevance:
        axis = asking.words
        outside = torch.where(asking.spoken, 1 - read.rows.sum(dim=1).float().cpu(), 0.0)
        made = self._relevance(number, read, read.rows, query_axis=axis, labels=axis.pieces)
        return replace(made, outside=outside) if read.unit == "share" else made

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

"""Which word goes with which patch in a model of one stream, where both stand in one sequence: read by name.

method       what it is                                                                        unit
`chefer`     attention x gradient through all layers, toward a match or each word's logit      relevance
`relative`   one layer, over that of a general question                                        relevance
`heads`      the three localization heads, chosen for the text                                 relevance
`raw`        attention as it is, mean over layers and heads; the share of sinks is stated      share

`chefer` is the default: it alone asks which of what a word looked at counted for what the model says.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmattn.analysis.matching.localization import heads
from mmattn.analysis.matching.match import Pair
from mmattn.analysis.matching.meeting import Meeting, meet, scores_of
from mmattn.analysis.matching.one_stream import Found, OneStream, one_stream
from mmattn.analysis.matching.raw import raw
from mmattn.analysis.matching.relative import GENERAL, relative
from mmattn.analysis.matching.stream_chefer import chefer
from mmattn.analysis.matching.toward import toward
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.matches import Match
from mmattn.schema.media import Words
from mmattn.schema.results import Relevance

Method = Literal["chefer", "relative", "heads", "raw"]


def match(
    pair: Pair, meeting: Meeting, *, method: str, layer: int | str | None = None, head: int | None = None
) -> Match:
    """Return what a model makes of a picture and some texts with which it stands in one sequence.

    Parameters
    ----------
    method
        See above.
    layer
        For `raw` and `relative`.
    head
        For `raw`.

    Raises
    ------
    NotFoundError
        A layer or head that is not there.
    ModelError
        A model that the method cannot read, or that gives no score of a picture with a text.
    """
    scores = scores_of(pair, meeting)
    writes = scores.words is not None
    streams = [one_stream(sample, writes=writes) for sample in meeting.maps.samples]
    general = _General(pair, writes=writes)
    match method:
        case "chefer":
            run = toward(pair, meeting)
            found = [chefer(one, run, text=number) for number, one in enumerate(streams)]
        case "relative":
            found = [relative(one, general=general, layer=layer) for one in streams]
        case "heads":
            found = [heads(one) for one in streams]
        case _:
            found = [raw(one, layer=layer, head=head) for one in streams]
    source = replace(pair.source, preprocessing=meeting.maps.prepared.preprocessing)
    made = [
        _relevances(replace(pair, source=source), number, *each, method=method)
        for number, each in enumerate(zip(streams, found, strict=True))
    ]
    return Match(
        texts=tuple(one.text for one in pair.texts),
        scores=scores.values.detach().float().cpu(),
        unit=scores.unit,
        relevances=tuple(words for words, _ in made),
        overall=tuple(whole for _, whole in made),
        method=method,
    )


class _General:
    """The picture with a general question: run once, when it is asked for."""

    def __init__(self, pair: Pair, *, writes: bool) -> None:
        self.pair, self.writes = replace(pair, texts=(Words(text=GENERAL),)), writes
        self.ran: OneStream | None = None

    def __call__(self) -> OneStream:
        if self.ran is None:
            self.ran = one_stream(meet(self.pair).maps.samples[0], writes=self.writes)
        return self.ran


def _relevances(
    pair: Pair, number: int, stream: OneStream, found: Found, *, method: str
) -> tuple[Relevance, Relevance]:
    """Return the relevance of each word, and of the text as one."""
    words, _ = stream.text
    grid, said = stream.picture, {**found.said, **stream.remarks}

    def made(values: Tensor, axis: Axis, labels: Sequence[str]) -> Relevance:
        return Relevance(
            values=values.float().cpu(),
            axis=grid,
            query_axis=axis,
            labels=tuple(labels),
            method=method,
            unit=found.unit,
            parameters=said,
            media=pair.photo,
            query_media=pair.texts[number],
            source=pair.source,
        )

    rows = made(found.rows, words, words.pieces)
    whole = made(found.whole[None], Slots.count(1), [f"‘{pair.texts[number].text}’"])
    if found.unit == "share":
        beside = torch.where(stream.spoken, 1 - rows.values.sum(dim=1), 0.0)
        rows, whole = replace(rows, outside=beside), replace(whole, outside=1 - whole.values.sum(dim=1))
    return rows, whole

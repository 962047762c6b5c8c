"""Attention times gradient: in every layer in which the asking token asks, its row of A * dS/dA.

    row = sum over layers of  mean over heads of  (A * dS/dA)[query, :]

To first order, how much the score would fall if the asking token could no longer look at a token: in
Serrano & Smith (2019), "Is Attention Interpretable?", and Hao et al. (2021), "Self-Attention Attribution".
It knows of no way through other tokens, as Chefer's relevance does. The sign is kept, as they keep it: what
is below zero held the score down. (Barkan et al. 2021, Grad-SAM, set it to 0.)

Layers are summed, since a change of weights in one layer and in another adds up to first order; `layer`
chooses one. Layers of other stages are brought to the finest grid by the overlap of places.
"""

import torch
from torch import Tensor

from mmattn.analysis.attribution import Attribution
from mmattn.analysis.look import find_layer, notes, row_of
from mmattn.analysis.queries import Query, Question, ask, marked
from mmattn.analysis.rollout import finest
from mmattn.errors import InputError, NotFoundError, PlaceError
from mmattn.schema.axes import Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance
from mmattn.schema.transfer import transfer


def attention_x_gradient(
    found: Attribution, *, stream: str | None = None, query: Query = None, layer: int | str | None = None
) -> Relevance:
    """Return how much each token that the asking token looks at raises (or lowers) the score, to first order.

    Parameters
    ----------
    found
        One sample of `mmattn.analysis.attribution.attribute`.
    stream, query
        As for `mmattn.analysis.look.look`.
    layer
        One layer, an index or a module path; None: the sum over all in which the asking token asks.

    Raises
    ------
    NotFoundError
        No layer in which that token asks.
    """
    maps = found.maps
    asked = _asking(maps, stream, query) if layer is None else _one(maps, stream, query, layer)
    axis = finest(one.key_axis for one, _ in asked)
    total: Tensor | None = None
    summed = []
    for one, question in asked:
        try:
            row = transfer(one.key_axis, axis).move(row_of(one, question, head=None)[None])
        except InputError:  # its tokens have no place among the others, as the caption says
            continue
        summed.append(one)
        total = row if total is None else total + row
    assert total is not None  # the finest axis is one of theirs
    top, question = asked[-1]
    tokens, places = marked(question, top.query_axis, axis)
    every = len(maps.select(stream=stream))
    where = f"{len(summed)} of {every}" if layer is None else summed[0].name
    said = {"note": notes(summed), "left out": maps.left_out_phrase()}
    return Relevance(
        values=torch.as_tensor(total).float(),
        axis=axis,
        query_axis=Slots.count(1),
        labels=(question.label,),
        method="attention_x_gradient",
        unit="signed relevance",
        parameters={"layers" if layer is None else "layer": where, **{k: v for k, v in said.items() if v}},
        query_tokens=(tokens,),
        query_places=(places,),
        target=found.target,
        media=maps.media[0] if maps.media else None,
        query_media=maps.media[0] if maps.media else None,
        source=maps.source,
    )


def _one(
    maps: AttentionMaps, stream: str | None, query: Query, layer: int | str
) -> list[tuple[AttentionLayer, Question]]:
    chosen, _ = find_layer(maps, stream=stream, kind=None, layer=layer)
    return [(chosen, ask(chosen.query_axis, query, readout=maps.readout_in(chosen.stream)))]


def _asking(maps: AttentionMaps, stream: str | None, query: Query) -> list[tuple[AttentionLayer, Question]]:
    """Return the layers in which the asking token asks: all, or those of a pool or of a late class token alone."""
    asked: list[tuple[AttentionLayer, Question]] = []
    refused: NotFoundError | PlaceError | InputError | None = None
    layers, readout = maps.select(stream=stream), maps.readout_in(stream)
    pooled = [one for one in layers if isinstance(one.query_axis, Slots) and one.kind == "cross"]
    if query is None and readout == "pool" and pooled:
        layers = tuple(pooled)
    elif query is None and readout == "cls":
        layers = tuple(one for one in layers if "cls" in one.query_axis.special()) or layers
    for one in layers:
        try:
            asked.append((one, ask(one.query_axis, query, readout=readout)))
        except (NotFoundError, PlaceError, InputError) as problem:
            refused = problem
    if not asked:
        assert refused is not None
        raise refused
    return asked

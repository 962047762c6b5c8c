"""Every head of every layer at once: the rows of one question, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmattn.analysis.look import check_finite, one_sample, reach_in, reach_of, said, uniform_of, unit_of
from mmattn.analysis.queries import Query, Question, ask, marked
from mmattn.errors import InputError, NotFoundError
from mmattn.schema import stream as rows
from mmattn.schema.axes import Slots
from mmattn.schema.layers import AttentionLayer, Kind
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance
from mmattn.schema.rows import check_range


@dataclass(frozen=True, kw_only=True)
class LayerHeads:
    """One layer's heads as relevances, with the layer's short label."""

    label: str
    heads: tuple[Relevance, ...]


def look_at_heads(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    kind: Kind | None = None,
    query: Query = None,
    layers: Sequence[int] | None = None,
) -> tuple[LayerHeads, ...]:
    """Return the raw attention of one question in every head of every layer.

    Parameters
    ----------
    maps
        Maps of a single sample.
    stream, kind, query
        As for `look`.
    layers
        Only these, as indices within the stream and kind.

    Raises
    ------
    InputError
        When no layer was chosen, or the heads of a layer cannot be told from windows.
    NotFoundError
        For a layer that is not there.
    """
    one_sample(maps, "head_grid")
    chosen = maps.select(stream=stream, kind=kind)
    if kind is None and any(layer.kind == "self" for layer in chosen):
        chosen = tuple(layer for layer in chosen if layer.kind == "self")
    check_range(layers, len(chosen), "layer")
    wanted = range(len(chosen)) if layers is None else [index % len(chosen) for index in layers]
    if not len(wanted):
        raise InputError("No layer was chosen: layers=[] is empty. Pass at least one layer, or leave layers out.")
    return tuple(
        LayerHeads(label=f"layer {index}", heads=_heads(maps, chosen[index], query, index)) for index in wanted
    )


def _heads(maps: AttentionMaps, layer: AttentionLayer, query: Query, index: int) -> tuple[Relevance, ...]:
    if layer.heads is None:
        raise InputError(
            f"The heads of layer {layer.name} cannot be told from its windows. A head grid needs heads. "
            "Use mmattn.attend with an adapter that knows the model."
        )
    question = _ask(layer, query, maps.readout_in(layer.stream))
    asked = torch.zeros(len(layer.query_axis), 1)
    asked[list(question.tokens)] = 1 / len(question.tokens)
    values = rows.apply_transposed(layer, asked, heads="each")[..., 0]
    check_finite(layer, values)
    uniform = uniform_of(layer, question)
    tokens, places = marked(question, layer.query_axis, layer.key_axis)
    reached = reach_of(layer, question)
    reach = [reach_in(reached, head) for head in range(layer.heads)]
    return tuple(
        Relevance(
            values=values[head][None],
            axis=layer.key_axis,
            query_axis=Slots.count(1),
            labels=(question.label,),
            method="look",
            unit=unit_of(layer),
            parameters={"layer": index, "head": head, **said(maps, layer, reach[head])},
            uniform=uniform,
            query_tokens=(tokens,),
            query_places=(places,),
            reach=reach[head],
            media=maps.media[0] if maps.media else None,
            source=maps.source,
        )
        for head in range(layer.heads)
    )


def _ask(layer: AttentionLayer, query: Query, readout: str) -> Question:
    """Ask one of many layers: not all of them have the tokens that were asked for."""
    try:
        return ask(layer.query_axis, query, readout=readout)
    except NotFoundError as problem:
        raise NotFoundError(f"Layer {layer.name}: {problem} layers= chooses the layers that have it.") from None

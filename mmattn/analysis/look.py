"""Raw attention: one layer's rows as the model had them, for the tokens that ask.

    look = mean over asked tokens of  A[query, :],   heads fused by mean, or one head

Nothing is normalized, nothing is left out: what lies on special tokens stays in the numbers, and
what lies outside the axis is given beside them.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmattn.analysis.queries import Query, Question, ask, marked
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema import stream as rows
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.layers import AttentionLayer, Kind
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance, Unit

# Mass outside of the axis that a caption must tell.
_WORTH_SAYING = 5e-3


def look(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    kind: Kind | None = None,
    layer: int | str = -1,
    head: int | str | None = None,
    query: Query = None,
) -> Relevance:
    """Return the raw attention of one layer, as a share of each row.

    Parameters
    ----------
    maps
        Maps of a single sample.
    stream, kind
        Which layers are meant; by default the maps' own stream, self-attention where there is any.
    layer
        An index within that stream and kind (negative: from the end), or a module path.
    head
        One head; `"max"` or `"min"` over heads; None for the mean.
    query
        Who asks, see `mmattn.analysis.queries.ask`: `"cls"`, `"mean"`, a token, (x, y) or a box.

    Raises
    ------
    NotFoundError
        For a layer, head, stream or token that is not there; the message says which are.
    InputError
        When the weights are NaN or infinite, or the maps hold several samples.

    Notes
    -----
    Attention is where a model looked, not why it answered: see Jain & Wallace (2019), "Attention is
    not Explanation".

    Examples
    --------
    >>> import mmattn, timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, inputs=torch.rand(1, 3, 64, 64))
    >>> mmattn.look(maps, layer=0, head=2).labels
    ('class token',)
    """
    one_sample(maps, "look")
    found, where = find_layer(maps, stream=stream, kind=kind, layer=layer)
    question = ask(found.query_axis, query, readout=maps.readout_in(found.stream))
    values = row_of(found, question, head=head)
    tokens, places = marked(question, found.query_axis, found.key_axis)
    reach = reach_in(reach_of(found, question), head)
    outside = None if found.normalized in ("signed", "none") else 1 - values.sum()[None]
    return Relevance(
        values=values[None],
        axis=found.key_axis,
        query_axis=Slots.count(1),
        labels=(question.label,),
        method="look",
        unit=unit_of(found),
        parameters={"layer": where, "head": "mean" if head is None else head, **said(maps, found, reach, outside)},
        uniform=uniform_of(found, question),
        outside=outside,
        query_tokens=(tokens,),
        query_places=(places,),
        reach=reach,
        media=maps.media[0] if maps.media else None,
        query_media=maps.media[0] if maps.media else None,
        source=maps.source,
    )


_LAYERS = "Pass an index within the stream (negative: from the end), or a module path such as blocks.11.attn."


def one_sample(maps: AttentionMaps, job: str) -> None:
    """Raise unless the maps hold one sample."""
    if maps.sample_count > 1:
        raise InputError(
            f"These maps hold {maps.sample_count} samples and {job} here reads one. "
            "Pass maps.samples[i]; the doors of mmattn return a list for a batch."
        )


def find_layer(
    maps: AttentionMaps, *, stream: str | None, kind: Kind | None, layer: int | str
) -> tuple[AttentionLayer, str]:
    """Return a layer and how to call it in a caption."""
    if isinstance(layer, str):
        found = maps[layer]
        return found, layer
    chosen = maps.select(stream=stream, kind=kind)
    if kind is None and any(one.kind == "self" for one in chosen):
        chosen = tuple(one for one in chosen if one.kind == "self")
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputError(f"layer={layer!r} is no layer. {_LAYERS}")
    if not -len(chosen) <= layer < len(chosen):
        raise NotFoundError(
            f"There is no layer {layer}: this stream has {len(chosen)} {chosen[0].kind}-attention layers, "
            f"0 to {len(chosen) - 1}. Pass one of those, or a module path such as {chosen[-1].name!r}."
        )
    index = layer % len(chosen)
    return chosen[index], f"{index} (0 to {len(chosen) - 1}), {chosen[index].name}"


def row_of(layer: AttentionLayer, question: Question, *, head: int | str | None) -> Float[Tensor, " key"]:
    """Return the mean row of the asked tokens, finite or refused."""
    asked = torch.zeros(len(layer.query_axis), 1)
    asked[list(question.tokens)] = 1 / len(question.tokens)
    heads = "mean" if head is None else head
    if heads == "each":
        raise InputError('head="each" is not one map. Pass a number, "max", "min" or None; head_grid draws each head.')
    values: Tensor = rows.apply_transposed(layer, asked, heads=heads)[:, 0]
    check_finite(layer, values)
    return values


def check_finite(layer: AttentionLayer, values: Float[Tensor, "..."]) -> None:
    """Raise when a layer gives NaN or infinite values."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InputError(
            f"Layer {layer.name} gives {bad} of {values.numel()} values that are NaN or infinite. Attention weights "
            "are finite. Look for overflow in the model (half precision?) or broken weights."
        )


def uniform_of(layer: AttentionLayer, question: Question) -> Float[Tensor, "one key"] | None:
    """Return the row that looking at everything alike would give; None where nobody said what was allowed."""
    asked = torch.zeros(len(layer.query_axis), 1)
    asked[list(question.tokens)] = 1 / len(question.tokens)
    try:
        return rows.uniform_transposed(layer, asked).T
    except ModelError:
        return None


def notes(layers: Iterable[AttentionLayer]) -> str:
    """Return what layers want to be said of them in a caption, each phrase once."""
    return ", ".join(dict.fromkeys(layer.note for layer in layers if layer.note))


def reach_of(layer: AttentionLayer, question: Question) -> Bool[Tensor, "head key"] | None:
    """Return, head by head, the keys that any asked token could look at; None where those are all."""
    found = rows.reached(layer, question.tokens)
    return None if found is None or bool(found.all()) else found


def reach_in(reach: Bool[Tensor, "head key"] | None, head: int | str | None) -> Bool[Tensor, "one key"] | None:
    """Return the reach of one head, or of all together."""
    if reach is None:
        return None
    chosen: Tensor = reach[head] if isinstance(head, int) else reach.any(dim=0)
    return None if bool(chosen.all()) else chosen[None]


def said(
    maps: AttentionMaps,
    layer: AttentionLayer,
    reach: Bool[Tensor, "one key"] | None,
    outside: Float[Tensor, " one"] | None = None,
) -> dict[str, object]:
    """Return what a caption must say beside the layer: how far it reaches, its note, what was left out."""
    axis, found = layer.key_axis, {"note": layer.note, "left out": maps.left_out_phrase()}
    if reach is not None:
        content = reach[0].cpu()[torch.as_tensor(axis.content)]
        noun = "patches" if isinstance(axis, PatchGrid) else "tokens"
        found = {"reach": f"{int(content.sum())} of {len(content)} {noun}", **found}
    if outside is not None and float(outside) > _WORTH_SAYING:
        found["outside"] = f"{100 * float(outside):.2g} %"
    return {name: phrase for name, phrase in found.items() if phrase}


def unit_of(layer: AttentionLayer) -> Unit:
    """Return what a layer's raw weights are: shares only where rows have a fixed sum."""
    match layer.normalized:
        case "signed":
            return "signed relevance"
        case "none":
            return "relevance"
        case _:
            return "share"

"""What each word gave to each patch: raw attention as a table, where words look at patches at all.

    between[word, patch] = mean over heads (and layers) of  A[word, patch]

Words and patches stand across from each other (BLIP's and CoCa's decoders), or in one sequence that they share
(ViLT, decoders with a picture in their prompt): then one part of it asks and another is asked, and what the words
gave to the rest of the sequence stays beside, as `Relevance.outside`.

**The map that wrote word i + 1 is row i**: a decoder writes a token from the row of the one before it. So words that
the model wrote itself (the part `answer`) are read from the row before theirs.

Slots that asked patches before (CoCa's pool, latents) lead on to these, and the caption says `composed`; see
`mmattn.schema.composing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.look import check_finite, find_layer, notes, one_sample, unit_of
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema import stream as rows
from mmattn.schema.axes import Axis, Joined, PatchGrid, Tokens
from mmattn.schema.composing import composed, way_to_patches
from mmattn.schema.joined import WRITTEN
from mmattn.schema.layers import AttentionLayer, Kind
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.media import Words
from mmattn.schema.results import Relevance

_PARTS = "Pass the name of a part of a sequence that several inputs share, or leave it out."


def between(
    maps: AttentionMaps,
    *,
    asking: str | int | None = None,
    asked: str | int | None = None,
    stream: str | None = None,
    kind: Kind | None = None,
    layer: int | str = -1,
    head: int | str | None = None,
    writing: bool | None = None,
) -> Relevance:
    """Return the raw attention that each token of a text gave to each patch of a picture.

    Parameters
    ----------
    maps
        Maps of a single sample.
    asking, asked
        Parts of a sequence, such as `text`, `answer` or `image`; by default its only text, or the words that the
        model wrote where there are some, and its only picture. Elsewhere: the two axes of the layer.
    stream, kind
        Which layers are meant; by default those in which these two sides meet.
    layer
        An index among them (negative: from the end), a module path, or `"mean"`: the mean over all of them.
    head
        As for `look`: one head, `"max"`, `"min"` or None for the mean.
    writing
        Whether a token's row is the one that wrote it: that of the token before it. None: of words that the model
        wrote itself. A first token was written from nothing: its row is empty.

    Raises
    ------
    NotFoundError
        A layer, head, stream or part that is not there, or several texts or pictures of which none is named.
    InputError
        A part of an axis that has none, layers with other axes under `layer="mean"`.

    Examples
    --------
    >>> from mmattn.schema.axes import PatchGrid, Tokens
    >>> from mmattn.schema.weights import Blocks, Dense
    >>> image = PatchGrid.plain(rows=1, cols=2, patch_px=(16, 16), size_px=(32, 16))
    >>> text = Tokens.of("a cat", pieces=["a", "cat"], spans=[(0, 1), (2, 5)])
    >>> axis = Joined.of({"image": image, "text": text}, tokens=[[0, 1], [2, 3]])
    >>> source = Dense(weights=torch.tensor([[[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.2, 0.2, 0],
    ...                                        [0.1, 0.7, 0.1, 0.1]]]]))
    >>> one = AttentionLayer(name="a", query=(axis,), key=(axis,), heads=1, storage=(Blocks(source=source),))
    >>> found = between(AttentionMaps(layers=(one,)))
    >>> found.labels[1], found.values[1].tolist(), found.peak(row=1)
    ('cat', [0.10000000149011612, 0.699999988079071], (16.0, 0.0, 32.0, 16.0))
    """
    one_sample(maps, "between")
    layers, where = _chosen(maps, _Sides(asking=asking, asked=asked), stream=stream, kind=kind, layer=layer)
    if asked is None:
        layers = tuple(composed(one, maps.layers) if way_to_patches(one, maps.layers) else one for one in layers)
    query, key = layers[0].query_axis, layers[0].key_axis
    asker, tokens, name = _side(query, asking, kind=Tokens, given="asking")
    shift = name == WRITTEN if writing is None else writing
    if head == "each":
        raise InputError('head="each" is not one map. Pass a number, "max", "min" or None.')
    values = torch.stack([asked_rows(one, tokens, head=head, writing=shift) for one in layers]).mean(dim=0)
    for one in layers:
        check_finite(one, values)
    shares = all(one.has_shares for one in layers)
    phrase = {"rows": "each that of the token before, which wrote it"} if shift else {}
    said = {"note": notes(layers), "left out": maps.left_out_phrase()}
    found = Relevance(
        values=values,
        axis=key,
        query_axis=asker,
        labels=_labels(asker),
        method="between",
        unit=unit_of(layers[0]),
        parameters={
            "layer": where,
            "head": "mean" if head is None else head,
            **({"asking": name} if name else {}),
            **phrase,
            **{word: text for word, text in said.items() if text},
        },
        uniform=_uniform(layers, tokens, shift),
        outside=(1 - values.sum(dim=1)).clamp(min=0) if shares else None,
        media=maps.media[0] if maps.media else None,
        query_media=Words(text=asker.text) if isinstance(asker, Tokens) else None,
        source=maps.source,
    )
    if not isinstance(key, Joined):
        _side(key, asked, kind=PatchGrid, given="asked")
        return found
    return found.part(key.only(PatchGrid) if asked is None else asked)


def asked_rows(
    layer: AttentionLayer, tokens: list[int], *, head: int | str | None = None, writing: bool = False
) -> Float[Tensor, "token key"]:
    """Return the rows of some tokens, or of those before them, which wrote them; the first of all has none."""
    wanted = [max(token - 1, 0) for token in tokens] if writing else tokens
    values: Tensor = rows.rows_of(layer, wanted, heads="mean" if head is None else head)
    return _blank_first(values, tokens) if writing else values


def _blank_first(values: Float[Tensor, "token key"], tokens: list[int]) -> Float[Tensor, "token key"]:
    first = torch.tensor([token == 0 for token in tokens], device=values.device)
    return torch.where(first[:, None], 0.0, values)


def _uniform(layers: tuple[AttentionLayer, ...], tokens: list[int], writing: bool) -> Float[Tensor, "token key"] | None:
    wanted = [max(token - 1, 0) for token in tokens] if writing else tokens
    try:
        found = torch.stack([rows.uniform_rows(layer, wanted) for layer in layers]).mean(dim=0)
    except ModelError:
        return None
    return _blank_first(found, tokens) if writing else found


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Who asks and who is asked, as the user named them."""

    asking: str | int | None
    asked: str | int | None

    def meet(self, layer: AttentionLayer, every: Sequence[AttentionLayer]) -> bool:
        """Whether these two sides meet in a layer."""
        query, key = layer.query[0], layer.key[0]
        asks = _has(query, Tokens) if self.asking is None else _named(query, self.asking)
        if self.asked is not None:
            return asks and _named(key, self.asked)
        return asks and (_has(key, PatchGrid) or way_to_patches(layer, every) is not None)


def _has(axis: Axis, kind: type[Tokens] | type[PatchGrid]) -> bool:
    return isinstance(axis, kind) or (isinstance(axis, Joined) and any(isinstance(part, kind) for part in axis.parts))


def _named(axis: Axis, part: str | int) -> bool:
    return isinstance(axis, Joined) and (part in axis.names or part in range(len(axis.parts)))


def _chosen(
    maps: AttentionMaps, sides: _Sides, *, stream: str | None, kind: Kind | None, layer: int | str
) -> tuple[tuple[AttentionLayer, ...], str]:
    """Return one layer, or all in which the two sides meet, and how to call them in a caption."""
    pool = maps.layers if stream is None else maps.select(stream=stream, kind=kind)
    found = [one for one in pool if kind in (None, one.kind) and sides.meet(one, maps.layers)]
    found = [one for one in found if one.stream == found[-1].stream]
    if not found or (isinstance(layer, str) and layer != "mean"):
        one, where = find_layer(maps, stream=stream, kind=kind, layer=-1 if layer == "mean" else layer)
        return (one,), where
    if layer == "mean":
        axes = {(one.query_axis, one.key_axis) for one in found}
        if len(axes) > 1:
            raise InputError(
                f"The {len(found)} layers of this stream stand between {len(axes)} different pairs of axes. A mean is "
                "over layers with the same. Pass kind= or stream= to choose, or one layer."
            )
        return tuple(found), f"mean of {len(found)}"
    if isinstance(layer, bool) or not isinstance(layer, int) or not -len(found) <= layer < len(found):
        raise NotFoundError(
            f"There is no layer {layer!r}: the two sides meet in {len(found)} layers, 0 to {len(found) - 1}. Pass one "
            f'of those, "mean", or a module path such as {found[-1].name!r}.'
        )
    one = found[layer]
    return (one,), f"{layer % len(found)} (0 to {len(found) - 1}), {one.name}"


def _side(
    axis: Axis, wanted: str | int | None, *, kind: type[Tokens] | type[PatchGrid], given: str
) -> tuple[Axis, list[int], str]:
    """Return the axis of one side, where its tokens stand in the layer's, and the part's name."""
    if not isinstance(axis, Joined):
        if wanted is not None:
            raise InputError(f"{given}={wanted!r} names a part, and that side is {axis!r}: one axis. {_PARTS}")
        if not isinstance(axis, kind):
            raise InputError(
                f"The tokens of the side that is {given} are {axis!r}. Between words and patches, words ask (Tokens) "
                "and patches are asked (PatchGrid). Choose another layer with stream=, kind= and layer=, or use look."
            )
        return axis, list(range(len(axis))), ""
    if wanted is None:
        wanted = WRITTEN if kind is Tokens and WRITTEN in axis.names else axis.only(kind)
    part, where = axis.part(wanted)
    if not len(part):
        raise NotFoundError(f"The part {wanted!r} has no token. Choose another one: {', '.join(axis.names)}.")
    return part, where.tolist(), axis.names[wanted] if isinstance(wanted, int) else wanted


def _labels(axis: Axis) -> tuple[str, ...]:
    if isinstance(axis, Tokens):
        return tuple(axis.pieces)
    return tuple(f"token {token}" if role == "content" else role for token, role in enumerate(axis.roles))

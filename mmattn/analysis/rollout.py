"""Attention rollout: attention followed through all layers, with the residual stream beside it.

    r_L = who asks,     r_{l-1} = r_l D^-1 (w I + (1 - w) A_l),     A_l = heads fused

From the asking token down, one row vector passes each layer, so a class token's rollout never
builds tokens x tokens. Abnar & Zuidema (2020), "Quantifying Attention Flow in Transformers".

Where we depart: they multiply whole matrices from below; the product's row is the same. D restores
rows to one only where something changed their sum (max or min over heads, discarded weights);
vit-explain divides *columns* by row sums there, which we do not repeat. Mass that the model gave to
no token (a sink column) stays lost and is reported, it is not spread over the rest.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.discard import discard_threshold
from mmattn.analysis.look import check_finite, one_sample
from mmattn.analysis.queries import Query, Question, ask
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema import stream as rows
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance
from mmattn.schema.transfer import transfer


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    head_fusion: str
    discard_ratio: float
    residual_weight: float


def rollout(
    maps: AttentionMaps,
    *,
    stream: str | None = None,
    query: Query = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    residual_weight: float = 0.5,
) -> Relevance:
    """Return how much of each input token reaches the asking token, through all layers.

    Parameters
    ----------
    maps
        Maps of a single sample.
    stream
        Which stream; by default the maps' own.
    query
        Who asks on top, see `mmattn.analysis.queries.ask`; by default what the model reads its
        answer from: its attention pool, class token or mean.
    head_fusion
        `"mean"`, `"max"` or `"min"` over heads. After max and min rows are brought back to one.
    discard_ratio
        Share of each layer's fused weights, the smallest, that is set to 0 before rows are brought
        back to one (0.9 is what vit-explain uses). Exact, and still without tokens x tokens.
    start_layer
        Lowest layer that takes part; layers below are left out, as Chefer et al. do.
    residual_weight
        w: what the residual stream counts in a layer that has one. 0.5 in the paper.

    Raises
    ------
    InputError
        For options out of range, NaN weights, several samples.
    NotFoundError
        For a start layer that is not there.
    ModelError
        Where two layers cannot be joined because nobody knows how their tokens correspond.

    Examples
    --------
    >>> import mmattn, timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> r = mmattn.rollout(mmattn.attend(model, inputs=torch.rand(1, 3, 64, 64)))
    >>> round(float(r.values.sum()), 4)
    1.0
    """
    one_sample(maps, "rollout")
    recipe = _checked(head_fusion, discard_ratio, residual_weight)
    layers = _chain(maps, stream, start_layer)
    top = layers[-1]
    first = start_layer % sum(layer.kind == "self" for layer in maps.select(stream=stream))
    signed = any(layer.normalized in ("signed", "none") for layer in layers)
    question = ask(top.query_axis, query, readout=maps.readout)
    values, uniform = _from_the_top(layers, question, recipe)
    axis = layers[0].key_axis
    return Relevance(
        values=values.T,
        axis=axis,
        query_axis=Slots.count(1),
        labels=(question.label,),
        method="rollout",
        unit="signed relevance" if signed else "share",
        parameters={
            "layers": f"{first} to {first + sum(layer.kind == 'self' for layer in layers) - 1}"
            + (" and the pool" if top.kind == "cross" else ""),
            "head_fusion": head_fusion,
            "discard_ratio": discard_ratio,
            "residual_weight": residual_weight,
        },
        uniform=None if uniform is None else uniform.T,
        outside=None if signed else (1 - values.sum())[None].clamp(min=0),
        query_tokens=(_placed(question, top.query_axis, axis),),
        media=maps.media[0] if maps.media else None,
        query_media=maps.media[0] if maps.media else None,
        source=maps.source,
    )


def _checked(head_fusion: str, discard_ratio: float, residual_weight: float) -> _Recipe:
    for name, share in (("discard_ratio", discard_ratio), ("residual_weight", residual_weight)):
        if not isinstance(share, int | float):
            raise InputError(f"{name}={share!r} is no number. It is a share from 0 to below 1. Pass such a number.")
    if head_fusion not in ("mean", "max", "min"):
        raise InputError(f'Heads cannot be fused by "{head_fusion}". Pass head_fusion="mean", "max" or "min".')
    if not 0 <= discard_ratio < 1:
        raise InputError(
            f"discard_ratio={discard_ratio} is out of range. It is a share from 0 to below 1, such as 0.9."
        )
    if not 0 <= residual_weight < 1:
        raise InputError(f"residual_weight={residual_weight} is out of range. It is a share from 0 to below 1.")
    return _Recipe(head_fusion=head_fusion, discard_ratio=discard_ratio, residual_weight=residual_weight)


def _chain(maps: AttentionMaps, stream: str | None, start_layer: int) -> tuple[AttentionLayer, ...]:
    """Return the layers that take part, lowest first: the self-attention, and a pool on top of it."""
    chosen = maps.select(stream=stream)
    body = tuple(layer for layer in chosen if layer.kind == "self")
    if not body:
        raise ModelError(
            "This stream has no self-attention to roll out. Rollout needs at least one such layer. "
            "Read its cross-attention with mmattn.look(maps, kind='cross')."
        )
    if not isinstance(start_layer, int) or not -len(body) <= start_layer < len(body):
        raise NotFoundError(
            f"There is no layer {start_layer} to start from: there are {len(body)}, 0 to {len(body) - 1}. "
            "Pass start_layer in that range."
        )
    # A pool may read fewer tokens than the body has (no registers): the bridge between them is its matter.
    pools = tuple(layer for layer in chosen if layer.kind == "cross" and isinstance(layer.query_axis, Slots))
    last_pool = pools[-1:] if maps.readout == "pool" else ()
    return body[start_layer:] + last_pool


def _from_the_top(
    layers: tuple[AttentionLayer, ...], question: Question, recipe: _Recipe
) -> tuple[Float[Tensor, "token one"], Float[Tensor, "token one"] | None]:
    top = layers[-1]
    row = torch.zeros(len(top.query_axis), 1, device=top.device)
    row[list(question.tokens)] = 1 / len(question.tokens)
    plain: Tensor | None = row
    above: Axis = top.query_axis
    for layer in reversed(layers):
        if layer.query_axis != above:
            row = _bridge(row, above, layer)
            plain = None if plain is None else _bridge(plain, above, layer)
        row = _step(layer, row, recipe)
        check_finite(layer, row)
        plain = None if plain is None else _uniform_step(layer, plain, recipe)
        above = layer.key_axis
    return row, plain


def _step(layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: _Recipe) -> Float[Tensor, "key one"]:
    beside = _residual(layer, recipe)
    floor = discard_threshold(layer, heads=recipe.head_fusion, ratio=recipe.discard_ratio)
    if recipe.head_fusion == "mean" and floor is None:
        passed: Tensor = rows.apply_transposed(layer, row)
        return (1 - beside) * passed + (beside * row if beside else 0.0)
    # Rows were changed: divide what comes down by their new sums first.
    kept = rows.apply(layer, torch.ones(len(layer.key_axis), 1), heads=recipe.head_fusion, floor=floor)
    sums = beside + (1 - beside) * kept
    row = torch.where(sums > 0, row / sums.clamp(min=torch.finfo(sums.dtype).tiny), 0.0)
    passed = rows.apply_transposed(layer, row, heads=recipe.head_fusion, floor=floor)
    return (1 - beside) * passed + (beside * row if beside else 0.0)


def _uniform_step(
    layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: _Recipe
) -> Float[Tensor, "key one"] | None:
    beside = _residual(layer, recipe)
    try:
        passed = rows.uniform_transposed(layer, row)
    except ModelError:
        return None
    return (1 - beside) * passed + (beside * row if beside else 0.0)


def _residual(layer: AttentionLayer, recipe: _Recipe) -> float:
    same = layer.query_axis == layer.key_axis
    if layer.residual == "identity" and same:
        return recipe.residual_weight
    if layer.residual == "none":
        return 0.0
    raise ModelError(
        f"Layer {layer.name} has a {layer.residual} residual between {layer.query_axis!r} and {layer.key_axis!r}, "
        "which rollout cannot follow. Start above it with start_layer, or use mmattn.look on single layers."
    )


def _bridge(row: Float[Tensor, "above one"], above: Axis, layer: AttentionLayer) -> Float[Tensor, "below one"]:
    return transfer(above, layer.query_axis).move(row.T).T


def _placed(question: Question, top: Axis, axis: Axis) -> tuple[int, ...]:
    if top != axis or len(question.tokens) >= len(axis.content):
        return ()
    return tuple(t for t in question.tokens if axis.roles[t] == "content")

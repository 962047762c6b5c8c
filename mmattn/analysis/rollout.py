"""Attention rollout: attention followed through all layers, with the residual stream beside it.

    r_L = who asks,     r_{l-1} = r_l D^-1 (w I + (1 - w) A_l),     A_l = heads fused

From the asking token down, one row vector passes each layer, so a class token's rollout never
builds tokens x tokens. Abnar & Zuidema (2020), "Quantifying Attention Flow in Transformers".

Where we depart: they multiply whole matrices from below; the product's row is the same. D restores
rows to one only where something changed their sum (max or min over heads, discarded weights);
vit-explain divides *columns* by row sums there, which we do not repeat. Mass that the model gave to
no token (a sink column) stays lost and is reported, it is not spread over the rest. Weights that are no
shares (heads mixed after the softmax, differences of two softmaxes, overlapping neighborhoods) are taken
by their absolute values and divided by their sum: the paper's w is a share, and so must be what it is
weighed against; in which direction a value counted is not what rollout tells. Between stages whose
grids differ rows move by the overlap of places (`mmattn.analysis.chain`).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.chain import Chain, link, writes_special_only
from mmattn.analysis.look import notes, one_sample
from mmattn.analysis.passing import Recipe, Standing, from_the_top
from mmattn.analysis.queries import Query, Question, ask, marked
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance
from mmattn.schema.transfer import transfer

# Lost mass below this share is rounding.
_WORTH_SAYING = 5e-4


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
        Where two layers cannot be joined because nobody knows how their tokens correspond, or because
        they run side by side; it names the layer, and the start_layer from which rollout is possible.

    Notes
    -----
    The result lies on the finest grid that the lowest layer reads. What a stage could not pass on is in
    `outside` and in `parameters["not passed on"]`. Parallel branches (streams `vision.0`, `vision.1`) are
    followed side by side, asked in equal shares, and put together by their places at the end.

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
    layers, count = stacked(maps, stream, start_layer)
    first = start_layer % count
    chain = link(layers, start=first, most=count - 1)
    asked, question, above = asked_on_top(chain, query, readout=maps.readout_in(stream))
    passed = from_the_top(chain, asked, recipe)
    axis = finest(chain.bottoms.values())
    values = joined(passed.rows, chain.bottoms, axis)
    tokens, places = marked(question, above, axis)
    outside = max(0.0, 1 - float(values.sum()))
    return Relevance(
        values=values,
        axis=axis,
        query_axis=Slots.count(1),
        labels=(question.label,),
        method="rollout",
        unit="share",
        parameters={
            "layers": f"{first} to {count - 1}" + (" and the pool" if len(layers) > count else ""),
            "head_fusion": head_fusion,
            "discard_ratio": discard_ratio,
            "residual_weight": residual_weight,
            **said_of(maps, chain, passed.lost, outside),
        },
        uniform=None if passed.uniform is None else joined(passed.uniform, chain.bottoms, axis),
        outside=values.new_tensor([outside]),
        query_tokens=(tokens,),
        query_places=(places,),
        media=maps.media[0] if maps.media else None,
        query_media=maps.media[0] if maps.media else None,
        source=maps.source,
    )


def _checked(head_fusion: str, discard_ratio: float, residual_weight: float) -> Recipe:
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
    return Recipe(head_fusion=head_fusion, discard_ratio=discard_ratio, residual_weight=residual_weight)


def stacked(maps: AttentionMaps, stream: str | None, start_layer: int) -> tuple[tuple[AttentionLayer, ...], int]:
    """Return self-attention and class attention, lowest first, with a pool on top; and how many without the pool."""
    chosen = maps.select(stream=stream)
    body = tuple(layer for layer in chosen if layer.kind == "self" or writes_special_only(layer))
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
    # A pool may read fewer tokens than the body has (no registers): the way between them is its matter.
    pools = tuple(layer for layer in chosen if layer.kind == "cross" and isinstance(layer.query_axis, Slots))
    return body + (pools[-1:] if maps.readout_in(stream) == "pool" else ()), len(body)


def asked_on_top(chain: Chain, query: Query, *, readout: str) -> tuple[Standing, Question, Axis]:
    """Ask on top of every branch that the answer is read from, in equal shares (a token number: of the first)."""
    own, device = chain.asked[0], chain.steps[0].layer.device
    names = [own] if isinstance(query, int) else list(chain.asked)
    asked = {name: torch.zeros(len(axis), 1, device=device) for name, axis in chain.tops.items()}
    questions = {name: ask(chain.tops[name], query, readout=readout) for name in names}
    for name, question in questions.items():
        asked[name][list(question.tokens)] = 1 / len(question.tokens) / len(names)
    label = questions[own].label + (f", of each of {len(names)} branches" if len(names) > 1 else "")
    return asked, Question(tokens=questions[own].tokens, label=label), chain.tops[own]


def finest(axes: Iterable[Axis]) -> Axis:
    """Return the axis with the most content tokens."""
    return max(axes, key=lambda axis: len(axis.content))


def joined(found: Standing, bottoms: dict[str, Axis], axis: Axis) -> Float[Tensor, "one token"]:
    """Bring the rows of all branches to one axis, by their places."""
    first, *others = [transfer(bottoms[name], axis).move(row.T) for name, row in found.items()]
    for other in others:
        first = first + other
    return first


def said_of(maps: AttentionMaps, chain: Chain, lost: dict[str, float], outside: float) -> dict[str, object]:
    """Return what a caption must say of a chain: what was lost and where, notes of layers, what was left out."""
    shares = [f"{100 * share:.2g} % ({name})" for name, share in lost.items() if share > _WORTH_SAYING]
    layers = [step.layer for step in reversed(chain.steps)]
    divided = sum(not layer.has_shares for layer in layers)
    given_away = outside - sum(lost.values())  # to padding, a sink: by the layers themselves
    said = {
        "outside": f"{100 * given_away:.2g} %" if given_away > _WORTH_SAYING else "",
        "not passed on": ", ".join(shares),
        "note": notes(layers),
        "absolute weights": f"in {divided} of {len(layers)} layers" if divided else "",
        "beside it": ", ".join(f"{count} layers of {name}" for name, count in chain.beside.items()),
        "left out": maps.left_out_phrase(),
    }
    return {name: phrase for name, phrase in said.items() if phrase}

"""Readings toward a target: which of three things in a picture the attention was for.

Attention alone cannot say: the same weights gather what speaks for a class and what speaks against it. The
gradient of the class's score with respect to the weights can.

method                 what it is                                                     unit
`chefer`               attention x gradient through all layers, residual beside it    relevance
`grad_rollout`         rollout through attention x gradient, rows brought to one      share
`attention_x_gradient` the asking token's own rows, summed over layers                signed relevance
"""

from typing import Literal, get_args

from torch import nn

from mmattn.analysis.attention_x_gradient import attention_x_gradient
from mmattn.analysis.attribution import Attribution, attribute
from mmattn.analysis.chefer import chefer
from mmattn.analysis.grad_rollout import grad_rollout
from mmattn.analysis.queries import Query
from mmattn.analysis.targets import Target
from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance

Method = Literal["chefer", "grad_rollout", "attention_x_gradient"]


def relevance(
    maps: AttentionMaps,
    *,
    method: str = "chefer",
    target: Target = None,
    stream: str | None = None,
    query: Query = None,
    layer: int | str | None = None,
    start_layer: int = 0,
    model: nn.Module | None = None,
) -> tuple[Relevance, ...]:
    """Return for each sample how much each input token raised the score of a target.

    Parameters
    ----------
    maps
        As `mmattn.attend` gave them, all samples of a batch together. The input runs once more, forward and
        backward: about three times the time of the model alone, and what torch keeps for a backward pass in
        memory (less where parameters are frozen), linear in tokens: of a fused model no weights are kept.
    method
        `"chefer"`, `"grad_rollout"` or `"attention_x_gradient"`.
    target
        A class, by index or by name where names are known; a list has one for each sample; None: each
        sample's own top class. `Relevance.target` says which it was.
    stream, query
        As for `look` and `rollout`; by default what the model reads its answer from asks.
    layer
        For `attention_x_gradient`: one layer instead of the sum over all.
    start_layer
        For the others: the lowest layer that takes part.
    model
        The module inside of any wrapper; by default `maps.model`.

    Raises
    ------
    NotFoundError
        An unknown method or class; the nearest names are listed.
    ModelError
        A model without logits or without gradients, or whose layers cannot be joined.
    GoneError
        Maps that cannot run again, such as loaded ones.
    InputError
        Options that do not go together, or a target that is none.

    Notes
    -----
    A gradient says what a small change would do. Where the score is saturated, or the model answers for
    reasons that are spread over everything, the picture is of little use; it is a hypothesis about the model.

    Examples
    --------
    >>> import mmattn, timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    >>> maps = mmattn.attend(model, inputs=torch.rand(2, 3, 64, 64))
    >>> [one.target for one in relevance(maps, target=[281, 207])]
    ['class 281', 'class 207']
    """
    if method not in get_args(Method):
        raise NotFoundError(
            f'There is no method "{method}". Methods toward a target are: {nearest(str(method), get_args(Method))}. '
            "Pass one of those; look and rollout, which know no target, are functions of their own."
        )
    if layer is not None and method != "attention_x_gradient":
        raise InputError(
            f'layer={layer!r} and method="{method}" do not go together: it passes all layers. One layer is what '
            '"attention_x_gradient" can read. Leave one of the two out, or pass start_layer=.'
        )
    if start_layer and method == "attention_x_gradient":
        raise InputError(
            f'start_layer={start_layer} and method="attention_x_gradient" do not go together: it passes no layers on. '
            "Pass layer= for a single one, or leave it out."
        )
    found = attribute(maps, target=target, model=model, stream=stream)

    def read(one: Attribution) -> Relevance:
        match method:
            case "chefer":
                return chefer(one, stream=stream, query=query, start_layer=start_layer)
            case "grad_rollout":
                return grad_rollout(one, stream=stream, query=query, start_layer=start_layer)
            case _:
                return attention_x_gradient(one, stream=stream, query=query, layer=layer)

    return tuple(read(one) for one in found)

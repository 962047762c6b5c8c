"""The contraction spelled out: `(weights[..., None] * value[..., None, :, :]).sum(key)`.

The product is remembered with its two operands until it is summed over the key dimension; anything else
that is done to it ends the trail.
"""

import string
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mmattn.interception.asked import Asked
from mmattn.interception.contract import attend_product, einsum_product, is_attention
from mmattn.interception.follow import follower, on_total, remember, same, table, trail_of
from mmattn.interception.mode import AttentionMode, Handler


def on_times(mode: AttentionMode, asked: Asked) -> Any:
    """Remember weights times a broadcast value."""
    operands = [asked.option("input self", 0), asked.option("other", 1)]
    trails = [trail_of(mode, operand) for operand in operands]
    if trails[0] is None:
        operands, trails = operands[::-1], trails[::-1]
    weights, value = operands
    trail = trails[0]
    if trail is None or trails[1] is not None or not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return _elementwise(mode, asked)
    behind = weights.dim() - trail.key
    if trail.stage != "weights" or value.dim() < behind or value.shape[-behind] != weights.shape[trail.key]:
        return _elementwise(mode, asked)
    result = asked.run()
    if result.dim() != weights.dim() or result.shape == weights.shape:
        return result if result.shape != weights.shape else _kept(mode, asked, result, weights)
    remember(mode, result, replace(trail, stage="product", exp=id(result), operands=(weights, value)))
    return result


def on_sum_of_product(mode: AttentionMode, asked: Asked) -> Any:
    """See the sum of such a product over the key dimension."""
    source, dim = asked.option("input self", 0), asked.option("dim axis", 1)
    trail = trail_of(mode, source)
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if trail is None or trail.stage != "product" or trail.exp != id(source) or trail.operands is None:
        return on_total(mode, asked)
    if not isinstance(dim, int) or dim % source.dim() != trail.key:
        return asked.run()
    weights, value = trail.operands
    wide = [at for at, size in enumerate(source.shape) if weights.shape[at] == 1 and size > 1]
    thin = weights.squeeze(wide)

    def again(few: Tensor, value: Tensor) -> Any:
        for at in wide:
            few = few.unsqueeze(at)
        return asked.run_with({id(source): few * value})

    product = einsum_product(
        _letters(weights, value, source, trail.key, bool(asked.option("keepdim", 2, False))),
        [thin, value],
        replace(
            trail,
            stage="weights",
            key=trail.key - sum(at < trail.key for at in wide),
            clean=None if trail.clean is None else trail.clean.squeeze(wide),
        ),
        weights_at=0,
    )
    if product is None or not is_attention(product):
        return asked.run()
    return attend_product(mode, Asked(again, (), (thin, value), {}), product, run=asked.run)


def _letters(weights: Tensor, value: Tensor, whole: Tensor, key: int, keepdim: bool) -> tuple[str, str, str]:
    """Return the einsum that the product and its sum are: letters of the thin weights, the value and the result."""
    missing = whole.dim() - value.dim()
    mine, others, result = "", "", ""
    for at, size in enumerate(whole.shape):
        letter = string.ascii_lowercase[at]
        in_weights = weights.shape[at] == size
        in_value = at >= missing and value.shape[at - missing] == size
        mine += letter if in_weights else ""
        if at >= missing:
            others += letter if in_value else letter.upper()
        result += letter if at != key else "_" * keepdim
    return mine, others, result


def _kept(mode: AttentionMode, asked: Asked, result: Tensor, weights: Tensor) -> Tensor:
    trail = trail_of(mode, weights)
    clean = None if trail is None or trail.clean is None else asked.run_with({id(weights): trail.clean})
    if trail is not None:
        remember(mode, result, replace(trail, clean=clean))
    return result


_elementwise = follower(same)

SUMMED: dict[Any, Handler] = table({"mul multiply __mul__ __rmul__": on_times, "sum": on_sum_of_product})

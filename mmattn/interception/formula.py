"""The formula of attention, written out: softmax(cap(scale q k^T) + mask), rows without a key being zero.

Used where a weight itself is needed: for an edit, and for the few rows of the self-check.
"""

import math

import torch
from torch import Tensor

from mmattn.interception.calls import Call


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return `[..., query, key]` weights in the dtype of `q`, computed in at least float32.

    Vaswani et al., Attention Is All You Need, 2017. Fewer key heads than query heads are repeated
    (grouped queries). A causal row sees the keys up to its own number, counted from the first.

    Examples
    --------
    >>> attention_weights(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), causal=True)
    tensor([[[1.0000, 0.0000],
             [0.5000, 0.5000]]])
    """
    rows = torch.arange(q.shape[-2], device=q.device) if causal else None
    return weight_rows(q, k, rows=rows, mask=mask, scale=scale, softcap=softcap).to(q.dtype)


def weights_of(call: Call) -> Tensor:
    """Return the weights that a call was contracted with, `[..., query, key]`."""
    if call.weights is not None:
        return call.weights
    assert call.q is not None
    assert call.k is not None
    return attention_weights(call.q, call.k, mask=call.mask, causal=call.causal, scale=call.scale, softcap=call.softcap)


def weight_rows(
    q: Tensor,
    k: Tensor,
    *,
    rows: Tensor | None,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Return the weights of some queries: `q` and `mask` hold those alone, `rows` their numbers where causal."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (widened(q) @ widened(repeat_heads(k, like=q)).transpose(-2, -1)).mul_(factor)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if rows is not None:
        keys = torch.arange(k.shape[-2], device=q.device)
        scores = scores.masked_fill(keys > rows[:, None], -math.inf)
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)


def widened(tensor: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def repeat_heads(shared: Tensor, *, like: Tensor) -> Tensor:
    """Return keys or values with one head for each query head; what broadcasts is left as it is."""
    if shared.dim() < 3 or like.dim() < 3 or shared.shape[-3] in (1, like.shape[-3]):
        return shared
    if like.shape[-3] == 1:
        return shared
    return shared.repeat_interleave(like.shape[-3] // shared.shape[-3], dim=-3)

"""A Call as Blocks: `[block, head, query, key]`, whatever shape the kernel was given."""

import torch
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.calls import Call
from mmattn.interception.formula import repeat_heads
from mmattn.schema.weights import Blocks, Dense, Factored


def to_blocks(call: Call, *, batched: bool = True, mask: Tensor | None = None) -> Blocks:
    """Return the storage of one call.

    Parameters
    ----------
    call
        4-d tensors are `[block, head, ...]`; 3-d ones `[block * head, ...]` where the call knows its
        number of heads, else one head a block; leading dimensions beyond that become blocks.
    batched
        Blocks are the samples of a batch; False: all belong to one sample (windows).
    mask
        `[#block, #head, #query, #key]`, True where a key was allowed, for a softmax that was only
        seen and whose allowed keys the adapter knows.
    """
    if call.q is None and call.weights is None:
        raise ModelError(
            f"The call of {call.module or 'the root'} was reduced and keeps neither q and k nor weights. "
            "Storage needs one of them. Record without a reducer."
        )
    source: Factored | Dense
    if call.q is not None and call.k is not None:
        source = _factored(call, call.q, call.k)
    else:
        assert call.weights is not None
        source = Dense(weights=_four(call.weights, call.head_count), mask=mask)
    count = source.shape[0]
    sample = torch.arange(count, device=source.device) if batched and count > 1 else None
    return Blocks(source=source, sample=sample)


def head_count(call: Call) -> int | None:
    """Return the number of heads of a call, or None where heads cannot be told from windows."""
    tensor = call.q if call.q is not None else call.weights
    assert tensor is not None
    if tensor.dim() != 4:
        return call.head_count
    keys = call.k if call.q is not None else None
    return keys.shape[-3] if tensor.shape[1] == 1 and keys is not None and keys.dim() > 2 else tensor.shape[1]


def _factored(call: Call, q: Tensor, k: Tensor) -> Factored:
    heads = call.head_count
    if q.dim() == k.dim() == 3 and 1 not in (len(q), len(k)) and len(q) != len(k):
        q, k = q[None], k[None]  # grouped heads without a batch
    q, k = broadcast(q, k)
    mask = None if call.mask is None else _mask(call.mask, q, heads)
    boolean = mask is not None and mask.dtype == torch.bool
    return Factored(
        q=_four(q, heads),
        k=_four(k, heads),
        scale=float(q.shape[-1]) ** -0.5 if call.scale is None else call.scale,
        mask=mask if boolean else None,
        bias=None if boolean else mask,
        causal=call.causal,
        softcap=call.softcap,
    )


def broadcast(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Expand q and k, as views, to the leading dimensions that the kernel gives them; 4-d key heads stay few."""
    if q.shape[:-2] == k.shape[:-2]:
        return q, k
    if max(q.dim(), k.dim()) != 4:
        k = repeat_heads(k, like=q)
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])  # type: ignore[no-untyped-call]
        return q.expand(*lead, -1, -1), k.expand(*lead, -1, -1)
    batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3])  # type: ignore[no-untyped-call]
    q_heads, k_heads = (tensor.shape[-3] if tensor.dim() > 2 else 1 for tensor in (q, k))
    q_heads = k_heads if q_heads == 1 else q_heads
    return q.expand(*batch, q_heads, -1, -1), k.expand(*batch, k_heads, -1, -1)


def _mask(mask: Tensor, q: Tensor, heads: int | None) -> Tensor:
    """Bring a mask to four dimensions as `_four` brings q, expanded where q's leading dimensions become blocks."""
    if q.dim() == 4:
        return mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    if mask.dim() == 2:
        return mask[None, None]
    return _four(mask.expand(*q.shape[:-2], -1, -1), heads)


def _four(tensor: Tensor, heads: int | None) -> Tensor:
    """Bring `[..., query, x]` to `[block, head, query, x]`."""
    if tensor.dim() == 4:
        return tensor
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 3 and heads and tensor.shape[0] % heads == 0 and tensor.shape[0] > 1:
        return tensor.reshape(-1, heads, *tensor.shape[1:])
    return tensor.flatten(0, -3)[:, None]

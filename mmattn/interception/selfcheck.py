"""The self-check: a few rows of A V, from what was kept, against what the call really returned."""

from functools import lru_cache

import torch
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.interception.formula import repeat_heads, weight_rows
from mmattn.interception.keep import autocast_dtype, unwrapped


def fused_error(call: Call, value: Tensor, out: Tensor) -> Tensor | None:
    """Return the relative error over two rows of one sample; None where nothing can be compared."""
    out, value = unwrapped(out).detach(), unwrapped(value).detach()
    if out.is_meta or out.is_nested or out.numel() == 0:
        return None
    if autocast_dtype(out.device) is None:
        return _fused_error(call, value, out)
    with torch.autocast(out.device.type, enabled=False):
        return _fused_error(call, value, out)


def relative_error(recomputed: Tensor, real: Tensor) -> Tensor:
    """Return the largest difference as a share of the largest real value."""
    real = real.to(recomputed.dtype)
    return (recomputed - real).abs().amax() / real.abs().amax().clamp_min(torch.finfo(real.dtype).tiny)


def row_numbers(count: int, device: torch.device) -> Tensor:
    """Return the queries that are checked: one from the first half, and the last."""
    return _rows(count, str(device))


def _fused_error(call: Call, value: Tensor, out: Tensor) -> Tensor:
    rows = row_numbers(out.shape[-2], out.device)
    sample = call.order
    if call.weights is not None:
        weights = _one_sample(call.weights, sample).index_select(-2, rows)
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    else:
        assert call.q is not None
        assert call.k is not None
        mask = None if call.mask is None else _one_sample(call.mask, sample)
        weights = weight_rows(
            _one_sample(call.q, sample).index_select(-2, rows),
            _one_sample(call.k, sample),
            rows=rows,
            mask=mask if mask is None or mask.shape[-2] == 1 else mask.index_select(-2, rows),
            causal=call.causal,
            scale=call.scale,
            softcap=call.softcap,
        )
    values = repeat_heads(_one_sample(value, sample), like=weights).to(weights.dtype)
    return relative_error(weights @ values, _one_sample(out, sample).index_select(-2, rows))


def _one_sample(tensor: Tensor, number: int) -> Tensor:
    """Index the leading dimensions away down to `[head, row, column]`; a lone entry serves all samples."""
    while tensor.dim() > 3:
        tensor = tensor[number % tensor.shape[0]]
    return tensor


@lru_cache(maxsize=64)
def _rows(count: int, device: str) -> Tensor:
    return torch.tensor([count // 3, count - 1], device=device)

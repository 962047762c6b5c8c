"""The self-check: a few rows of A V, from what was kept, against what the call really returned."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.interception.formula import weight_rows, widened
from mmattn.interception.keep import autocast_dtype, unwrapped

Later: TypeAlias = Callable[[], Tensor]


def fused_check(call: Call, value: Tensor, out: Tensor) -> Later | None:
    """Return what computes the relative error over two rows of one head; None where nothing can be compared.

    Only what will be gone is copied now: one head of the value, two rows of the output. Between two matrix
    products of the model each of the few small operations costs three times what it costs among its own kind.
    """
    out, value = unwrapped(out), unwrapped(value)
    if out.is_meta or out.is_nested or out.numel() == 0:
        return None
    entry = _entry(out.shape, call.order)
    values, real = _matrix(value, entry, out.shape).clone(), _matrix(out, entry, out.shape, few=True).clone()
    return partial(_error, call, entry=entry, shape=out.shape, value=values, real=real)


def fused_error(call: Call, value: Tensor, out: Tensor) -> Tensor | None:
    """Return that error at once."""
    later = fused_check(call, value, out)
    return None if later is None else later()


def relative_error(recomputed: Tensor, real: Tensor) -> Tensor:
    """Return the largest difference as a share of the largest real value."""
    recomputed, real = widened(recomputed), widened(real)
    if real.dtype != recomputed.dtype:
        real = real.to(recomputed.dtype)
    largest = torch.linalg.vector_norm(real, math.inf)
    share: Tensor = torch.dist(recomputed, real, math.inf) / largest.clamp_min_(torch.finfo(real.dtype).tiny)
    return share


def rows_of(tensor: Tensor, dim: int = -2) -> Tensor:
    """Return the rows that are checked, as a view: one from the first half, and the last."""
    at = [slice(None)] * tensor.dim()
    at[dim] = _rows(tensor.shape[dim])
    return tensor[tuple(at)]


def _error(call: Call, *, entry: list[int], shape: torch.Size, value: Tensor, real: Tensor) -> Tensor:
    if autocast_dtype(real.device) is None:
        return relative_error(_again(call, entry, shape, value), real)
    with torch.autocast(real.device.type, enabled=False):
        return relative_error(_again(call, entry, shape, value), real)


def _again(call: Call, entry: list[int], shape: torch.Size, value: Tensor) -> Tensor:
    """Compute two rows of A V of one head from what was kept."""
    if call.weights is not None:
        weights = widened(_matrix(call.weights, entry, shape, few=True))
    else:
        assert call.q is not None
        assert call.k is not None
        weights = weight_rows(
            _matrix(call.q, entry, shape, few=True),
            _matrix(call.k, entry, shape),
            rows=torch.arange(shape[-2], device=value.device)[_rows(shape[-2])] if call.causal else None,
            mask=None if call.mask is None else _matrix(call.mask, entry, shape, few=True),
            scale=call.scale,
            softcap=call.softcap,
        )
    return weights @ widened(value).to(weights.dtype)


def _entry(shape: torch.Size, number: int) -> list[int]:
    """Choose one head of one sample, another one in each call."""
    entry = []
    for size in reversed(shape[:-2]):
        entry.append(number % size)
        number //= 2
    return entry[::-1]


def _matrix(tensor: Tensor, entry: list[int], shape: torch.Size, *, few: bool = False) -> Tensor:
    """Return the `[row, column]` matrix of one entry; what is broadcast or grouped serves several entries.

    One `as_strided` in place of four torch calls: the self-check runs in every call.
    """
    sizes, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    own = len(sizes) - 2
    for size, stride, number, most in zip(sizes, strides, entry[len(entry) - own :], shape[-2 - own :], strict=False):
        offset += stride * (number * size // most)
    rows, step = sizes[-2], strides[-2]
    if few and rows > 1:
        chosen = _rows(rows)
        offset += step * chosen.start
        rows, step = len(range(*chosen.indices(rows))), step * chosen.step
    return tensor.as_strided((rows, sizes[-1]), (step, strides[-1]), offset)


def _rows(count: int) -> slice:
    first = (count - 1) // 3
    return slice(first, None, max(count - 1 - first, 1))

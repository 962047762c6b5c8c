"""The fused kernels: scaled_dot_product_attention, plain or jagged, and multi_head_attention_forward.

q, k, v, mask, scale, causality and grouped heads are seen as the kernel gets them; nothing is computed
but two rows for the self-check. `multi_head_attention_forward` is entered again with the mode on, so
that the kernel or the softmax inside it is seen.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmattn.interception.asked import Asked
from mmattn.interception.calls import Call
from mmattn.interception.formula import attention_weights, repeat_heads
from mmattn.interception.keep import autocast_dtype
from mmattn.interception.mode import AttentionMode, Handler, Sight
from mmattn.interception.selfcheck import fused_check


class _Arguments(NamedTuple):
    """What scaled_dot_product_attention was called with."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def on_sdpa(mode: AttentionMode, asked: Asked) -> Any:
    """See one fused attention."""
    given = _Arguments(*asked.args, **asked.kwargs)
    if given.query.is_nested:
        return _on_jagged(mode, given, asked)
    call = _call(given)

    def weights() -> Tensor:
        assert call.q is not None
        assert call.k is not None
        return attention_weights(call.q, call.k, mask=call.mask, causal=call.causal, scale=call.scale)

    def rerun(edited: Tensor) -> Tensor:
        return contract(edited, _as_kernel(given.value), dropout=given.dropout_p)

    return mode.attend(
        Sight(
            draft=call,
            value=given.value,
            weights=weights,
            run=asked.run,
            rerun=rerun,
            check=lambda kept, out: fused_check(kept, given.value, out),
            direct=not given.dropout_p,
        )
    )


def on_multi_head(mode: AttentionMode, asked: Asked) -> Any:
    """Enter torch's own multi-head attention with the mode on, so that what it calls inside is seen."""
    with mode:
        return torch.overrides.redispatch_function(*asked)  # type: ignore[no-untyped-call]


def contract(weights: Tensor, value: Tensor, *, dropout: float) -> Tensor:
    """Return edited weights times value, dropped out as the call would."""
    dropped = functional.dropout(weights, dropout) if dropout else weights
    return dropped.to(value.dtype) @ repeat_heads(value, like=dropped)


def _call(given: _Arguments) -> Call:
    query, value = given.query, given.value
    if value.shape[:-3] != query.shape[:-3]:  # samples that differ in the value alone are samples too
        lead = torch.broadcast_shapes(query.shape[:-3], value.shape[:-3])  # type: ignore[no-untyped-call]
        query = query.expand(*lead, *query.shape[-3:])
    scale = 1 / math.sqrt(query.shape[-1]) if given.scale is None else float(given.scale)
    return Call(
        module="",
        order=0,
        pass_index=0,
        q=_as_kernel(query),
        k=_as_kernel(given.key),
        mask=_dense_mask(given.attn_mask),
        causal=bool(given.is_causal),
        scale=scale,
        dropout=float(given.dropout_p),
        value_dim=given.value.shape[-1],
    )


def _as_kernel(tensor: Tensor) -> Tensor:
    """Cast as autocast would inside the kernel."""
    dtype = autocast_dtype(tensor.device)
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def _dense_mask(mask: Tensor | None) -> Tensor | None:
    """Turn torch's CausalBias, which holds no numbers, into a mask."""
    if mask is None or type(mask) is Tensor or not hasattr(mask, "_materialize"):
        return mask
    dense: Tensor = mask._materialize(mask.device)
    return dense


def _on_jagged(mode: AttentionMode, given: _Arguments, asked: Asked) -> Any:
    """See samples of different lengths: padded, with a mask that allows only what is there.

    Padded rows have no allowed key: their weights are zero.
    """
    query, key, value = (_padded(tensor) for tensor in (given.query, given.key, given.value))
    mask = _lengths_mask(given.query)[..., :, None] & _lengths_mask(given.key)[..., None, :]
    call = _call(
        _Arguments(
            query=query,
            key=key,
            value=value,
            attn_mask=mask[:, None],
            dropout_p=given.dropout_p,
            is_causal=given.is_causal,
            scale=given.scale,
        )
    )

    def rerun(edited: Tensor) -> Tensor:
        dense = contract(edited, value, dropout=given.dropout_p).transpose(1, 2)
        counts = _lengths(given.query)
        flat = torch.cat([dense[sample, :count] for sample, count in enumerate(counts)])
        like: Any = given.query.transpose(1, 2)
        return torch.nested.nested_tensor_from_jagged(flat, like.offsets()).transpose(1, 2)

    return mode.attend(
        Sight(
            draft=call,
            value=value,
            weights=lambda: attention_weights(query, key, mask=call.mask, causal=call.causal, scale=call.scale),
            run=asked.run,
            rerun=rerun,
            check=lambda kept, out: fused_check(kept, value, _padded(out)),
        )
    )


def _lengths(tensor: Tensor) -> list[int]:
    return [part.shape[-2] for part in tensor.unbind()]


def _lengths_mask(tensor: Tensor) -> Tensor:
    counts = torch.tensor(_lengths(tensor), device=tensor.device)
    return torch.arange(int(counts.max()), device=tensor.device) < counts[:, None]


def _padded(tensor: Tensor) -> Tensor:
    """Return `[sample, head, position, dim]`, zero where a sample is shorter."""
    parts = tensor.unbind()
    longest = max(part.shape[-2] for part in parts)
    return torch.stack([functional.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts])


FUSED: dict[Any, Handler] = {
    functional.scaled_dot_product_attention: on_sdpa,
    torch.ops.aten.scaled_dot_product_attention: on_sdpa,
    torch.ops.aten.scaled_dot_product_attention.default: on_sdpa,
    functional.multi_head_attention_forward: on_multi_head,
}

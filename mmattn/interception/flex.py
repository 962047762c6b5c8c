"""FlexAttention: scores changed by a function of the user's, and blocks left out.

The kernel computes softmax(score_mod(scale q k^T)) V. Without a function and without a block mask q and k
are kept as for any fused kernel. Otherwise the weights are what the kernel returns for the identity as
value: A I = A, exactly its own arithmetic.
"""

from typing import Any

import torch
from torch import Tensor

from mmattn.interception.asked import Asked
from mmattn.interception.calls import Call
from mmattn.interception.fused import contract
from mmattn.interception.mode import AttentionMode, Handler, Sight
from mmattn.interception.selfcheck import fused_check


def on_flex(mode: AttentionMode, asked: Asked) -> Any:
    """See one FlexAttention kernel; it returns the output, the log-sum-exp and the largest scores."""
    query, key, value, *rest = asked.args
    plain = len(rest) > 2 and _is_plain(rest[0], rest[1], key)

    def weights() -> Tensor:
        identity = torch.eye(key.shape[-2], dtype=query.dtype, device=query.device)
        read: Tensor = asked.func(query, key, identity.expand(*key.shape[:-2], -1, -1), *rest, **asked.kwargs)[0]
        return read

    def rerun(edited: Tensor) -> Any:
        return contract(edited, value, dropout=0.0), *asked.run()[1:]

    call = Call(
        module="",
        order=0,
        pass_index=0,
        origin="flex",
        q=query if plain else None,
        k=key if plain else None,
        weights=None if plain else weights(),
        scale=float(rest[2]) if len(rest) > 2 else None,
        value_dim=value.shape[-1],
    )
    return mode.attend(
        Sight(
            draft=call,
            value=value,
            weights=weights,
            run=asked.run,
            rerun=rerun,
            check=lambda kept, out: fused_check(kept, value, out[0]),
        )
    )


def _is_plain(score_mod: Any, block_mask: Any, key: Tensor) -> bool:
    """Whether the scores go in unchanged and no block is left out."""
    from torch.nn.attention.flex_attention import _identity, noop_mask

    return score_mod is _identity and block_mask[-1] is noop_mask


def flex_handlers() -> dict[Any, Handler]:
    """Return the handler of the kernel, where this torch has one."""
    kernel = getattr(torch.ops.higher_order, "flex_attention", None)
    return {} if kernel is None else {kernel: on_flex}

"""Which dimensions of a call are samples and windows, and which are heads: the ids tell.

Heads of one window hold the same tokens; windows and samples hold others.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.blocks import broadcast
from mmattn.interception.calls import Call
from mmattn.schema.weights import Blocks, Dense, Factored


@dataclass(frozen=True, kw_only=True)
class Order:
    """How leading dimensions become blocks and heads.

    Parameters
    ----------
    lead
        The leading dimensions, each split into blocks and heads where it holds both.
    blocks, heads
        Which of those are blocks, which are heads.

    """

    lead: tuple[int, ...]
    blocks: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether nothing has to move: `[block, head]` already."""
        return self.lead == () or (self.blocks, self.heads) == ((0,), (1,))

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of blocks and heads."""
        return prod(self.lead[i] for i in self.blocks), prod(self.lead[i] for i in self.heads)

    def four(self, tensor: Tensor, tail: int = 2) -> Tensor:
        """Return `[block, head, ...]` of `[*lead, ...]`."""
        rest = tuple(tensor.shape[tensor.dim() - tail :])
        split = tensor.reshape(*self.lead, *rest)
        kept = range(len(self.lead), len(self.lead) + tail)
        return split.permute(*self.blocks, *self.heads, *kept).reshape(*self.counts, *rest)

    def blocks_of(self, ids: Int[Tensor, "*lead token"]) -> Int[Tensor, "block token"]:
        """Return the ids of each block, which all its heads share."""
        full = ids if ids.dim() - 1 == 0 else ids
        return self.four(_spread(full, prod(self.lead)), tail=1)[:, 0]


def _spread(ids: Tensor, count: int) -> Tensor:
    """Return ids `[*lead, token]` once for each head where the trace saw samples only (nn.MultiheadAttention)."""
    flat = ids.reshape(-1, ids.shape[-1])
    if len(flat) == count:
        return flat
    return flat.repeat_interleave(count // len(flat), dim=0)


def order_of(call: Call, event: object) -> Order:
    """Return the order of a call's leading dimensions.

    Raises
    ------
    ModelError
        When the trace saw other leading dimensions than the call has.

    """
    lead = lead_of(call)
    query, key = event.query, event.key  # type: ignore[attr-defined]
    total, seen = prod(lead), prod(query.shape[:-1])
    if not seen or total % seen:
        raise ModelError(
            f"{call.module} attended in {total} blocks and heads, and {seen} were traced. They must be the same "
            "attention. Its places are not known; mmattn.capture shows the layer as it is."
        )
    query = _spread(query, total).reshape(*lead, -1) if lead else query
    key = _spread(key, total).reshape(*lead, -1) if lead else key
    split: list[int] = []
    blocks: list[int] = []
    heads: list[int] = []
    for dim, size in enumerate(lead):
        run = _run(query, key, dim)
        for part, is_head in ((size // run, False), (run, True)):
            if part > 1 or (not is_head and size == 1):
                (heads if is_head else blocks).append(len(split))
                split.append(part)
    return Order(lead=tuple(split), blocks=tuple(blocks), heads=tuple(heads))


def _run(query: Tensor, key: Tensor, dim: int) -> int:
    """Return how many neighbours along a dimension hold the same tokens: heads."""
    size = query.shape[dim]
    changes = torch.zeros(size - 1, dtype=torch.bool)
    for ids in (query, key):
        moved = ids.movedim(dim, 0).flatten(1)
        changes |= (moved[1:] != moved[:-1]).any(1)
    starts = torch.nonzero(changes).flatten() + 1
    if not len(starts):
        return size
    run = int(starts[0])
    regular = size % run == 0 and torch.equal(starts, torch.arange(run, size, run))
    return run if regular else 1


def lead_of(call: Call) -> tuple[int, ...]:
    """Return the leading dimensions of a call."""
    if call.q is not None and call.k is not None:
        q, _ = broadcast(call.q, call.k)
        return tuple(q.shape[:-2])
    assert call.weights is not None
    return tuple(call.weights.shape[:-2])


def arranged(call: Call, order: Order, *, forbidden: Bool[Tensor, "*lead query key"] | None) -> Blocks:
    """Return the storage of a call, `[block, head, query, key]`."""
    if call.q is None or call.k is None:
        assert call.weights is not None
        return Blocks(source=Dense(weights=order.four(call.weights), mask=_allowed(forbidden, order, call.weights)))
    q, k = broadcast(call.q, call.k)
    shared = k.shape[:-2] != q.shape[:-2]
    mask = None if call.mask is None or call.mask.dtype != torch.bool else call.mask
    bias = None if call.mask is None or call.mask.dtype == torch.bool else call.mask
    if shared and not order.is_plain:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    allowed = _allowed(forbidden, order, q)
    given = None if mask is None else _masked(mask, order, q, k)
    return Blocks(
        source=Factored(
            q=order.four(q),
            k=k if shared and order.is_plain else order.four(k),
            scale=float(q.shape[-1]) ** -0.5 if call.scale is None else call.scale,
            mask=allowed if given is None else given,
            bias=None if bias is None else _masked(bias, order, q, k),
            causal=call.causal,
            softcap=call.softcap,
        )
    )


def _allowed(forbidden: Tensor | None, order: Order, like: Tensor) -> Bool[Tensor, "block #head query key"] | None:
    """Return which keys a window's queries may attend to, one for all heads."""
    if forbidden is None:
        if like.dim() and isinstance(like, Tensor):
            return None
        return None
    count = prod(order.lead)
    flat = forbidden.reshape(-1, *forbidden.shape[-2:])
    flat = flat if len(flat) == count else flat.repeat_interleave(count // len(flat), dim=0)
    return ~order.four(flat)[:, :1].to(like.device)


def _masked(mask: Tensor, order: Order, q: Tensor, k: Tensor) -> Tensor:
    """Return a mask as `[#block, #head, #query, #key]`."""
    if order.is_plain and mask.dim() <= 4:
        return mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return order.four(mask.expand(*q.shape[:-2], q.shape[-2], k.shape[-2]))

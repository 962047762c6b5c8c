"""Which dimensions of a call are samples and windows, and which are heads: the ids tell.

Heads of one window hold the same tokens; windows and samples hold others.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.blocks import broadcast
from mmattn.interception.calls import Call
from mmattn.schema.weights import Blocks, Dense, Factored

from .trace import Event


@dataclass(frozen=True, kw_only=True)
class Order:
    """How leading dimensions become blocks and heads.

    Parameters
    ----------
    lead
        The leading dimensions, those that hold blocks and heads split in two.
    blocks, heads
        Which of these are blocks, which are heads.

    """

    lead: tuple[int, ...]
    blocks: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether nothing has to move: `[block, head]` already."""
        return (self.blocks, self.heads) == ((0,), (1,))

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return prod(self.lead[place] for place in self.blocks)

    @property
    def head_count(self) -> int:
        """Number of heads."""
        return prod(self.lead[place] for place in self.heads)

    def four(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "block head _a _b"]:
        """Return `[block, head, a, b]` of `[*lead, a, b]`."""
        rest = tensor.shape[-2:]
        split = tensor.reshape(*self.lead, *rest)
        kept = range(len(self.lead), len(self.lead) + 2)
        moved = split.permute(*self.blocks, *self.heads, *kept)
        return moved.reshape(self.block_count, self.head_count, *rest)

    def in_blocks(self, ids: Int[Tensor, "*lead token"]) -> Int[Tensor, "block token"]:
        """Return the ids of each block, which all its heads share."""
        return self.four(_for_each_head(ids[..., None], prod(self.lead)))[:, 0, :, 0]


def _for_each_head(traced: Shaped[Tensor, "..."], count: int) -> Shaped[Tensor, "lead _a _b"]:
    """Return `[count, a, b]`: once for each head where the trace saw samples only (torch's own attention)."""
    flat = traced.reshape(-1, *traced.shape[-2:])
    return flat if len(flat) == count else flat.repeat_interleave(count // len(flat), dim=0)


def lead_of(call: Call) -> tuple[int, ...]:
    """Return the leading dimensions of a call."""
    if call.q is not None and call.k is not None:
        return tuple(broadcast(call.q, call.k)[0].shape[:-2])
    assert call.weights is not None
    return tuple(call.weights.shape[:-2])


def order_of(call: Call, event: Event) -> Order:
    """Return the order of a call's leading dimensions.

    Raises
    ------
    ModelError
        When the trace saw other leading dimensions than the call has.

    """
    lead = lead_of(call)
    seen = prod(event.query.shape[:-1])
    if not seen or prod(lead) % seen:
        raise ModelError(
            f"{call.module} attended in {prod(lead)} blocks and heads, and {seen} of them were placed. They must be "
            "the same attention, so its places are not known. See the layer as it is with mmattn.capture."
        )
    ids = torch.cat([_for_each_head(side[..., None], prod(lead))[..., 0] for side in (event.query, event.key)], dim=-1)
    ids = ids.reshape(*lead, -1)
    split: list[int] = []
    blocks: list[int] = []
    heads: list[int] = []
    for dim, size in enumerate(lead):
        alike = _alike(ids.movedim(dim, 0).flatten(1))
        if size > alike or size == 1:
            blocks.append(len(split))
            split.append(size // alike)
        if alike > 1:
            heads.append(len(split))
            split.append(alike)
    return Order(lead=tuple(split), blocks=tuple(blocks), heads=tuple(heads))


def _alike(ids: Int[Tensor, "entry token"]) -> int:
    """Return how many neighbours hold the same tokens: they are heads."""
    changes = (ids[1:] != ids[:-1]).any(1)
    starts = torch.nonzero(changes).flatten() + 1
    if not len(starts):
        return len(ids)
    run = int(starts[0])
    regular = len(ids) % run == 0 and torch.equal(starts, torch.arange(run, len(ids), run))
    return run if regular else 1


def arranged(call: Call, order: Order, *, forbidden: Bool[Tensor, "*lead query key"] | None) -> Blocks:
    """Return the storage of a call, `[block, head, query, key]`.

    Keys that a mask forbids by a large negative number are forbidden here, so that a row's reach is
    known; what the model gave them (e^-50 at most) is then 0. Where the trace saw no mask at all,
    every key was allowed.
    """
    allowed = None
    if forbidden is not None:
        allowed = ~order.four(_for_each_head(forbidden, prod(order.lead))).all(1, keepdim=True)
    if call.q is None or call.k is None:
        assert call.weights is not None
        if allowed is None:
            allowed = torch.ones(1, 1, 1, call.weights.shape[-1], dtype=torch.bool)
        return Blocks(source=Dense(weights=order.four(call.weights), mask=allowed.to(call.weights.device)))
    q, k = broadcast(call.q, call.k)
    if k.shape[:-2] != q.shape[:-2] and not order.is_plain:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    mask = None if call.mask is None else _mask(call.mask, order, (*q.shape[:-1], k.shape[-2]))
    boolean = mask is not None and mask.dtype == torch.bool
    return Blocks(
        source=Factored(
            q=order.four(q),
            k=k if order.is_plain and k.dim() == 4 else order.four(k),
            scale=float(q.shape[-1]) ** -0.5 if call.scale is None else call.scale,
            mask=mask if boolean else None if allowed is None else allowed.to(q.device),
            bias=None if boolean else mask,
            causal=call.causal,
            softcap=call.softcap,
        )
    )


def _mask(mask: Shaped[Tensor, "..."], order: Order, shape: tuple[int, ...]) -> Shaped[Tensor, "_a _b _c _d"]:
    """Return a mask as `[#block, #head, #query, #key]`."""
    if order.is_plain and len(shape) == 4:
        return mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return order.four(mask.expand(shape))

"""What a block's weights are computed from: q and k, the weights as they were seen, or weights times a gradient.

    A[q, k] = softmax_k( softcap(scale * q.k) + bias ), forbidden keys left out.

Each answers `values(blocks, queries)`, never computing more than it is asked for.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmattn.errors import InputError

# Between what is allowed and what a finite mask forbids: exp(-50) is nothing beside any weight.
_GAP = 50.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Factored:
    """q and k as the kernel got them, and what it did with them.

    Parameters
    ----------
    q, k
        `k` may have fewer heads (grouped queries): query head h reads key head h // (heads / key heads).
    scale
        What q.k is multiplied with.
    mask
        True where a query may attend to a key.
    bias
        Added to the logits. Which keys it forbids: see `forbidden`.
    causal
        Query i sees keys 0 to i (aligned at the top left, as in torch).
    softcap
        Logits become `softcap * tanh(logits / softcap)` before bias and masks.

    """

    q: Float[Tensor, "block head query dim"]
    k: Float[Tensor, "block kv_head key dim"]
    scale: float
    mask: Bool[Tensor, "#block #head #query #key"] | None = None
    bias: Float[Tensor, "#block #head #query #key"] | None = None
    causal: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.q.shape[1] % self.k.shape[1]:
            raise InputError(
                f"{self.q.shape[1]} query heads cannot share {self.k.shape[1]} key heads. The number of query heads "
                "is a multiple of the number of key heads. Check the heads of the call."
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of blocks, heads, queries and keys."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2], self.k.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.q.device

    def values(self, blocks: slice, queries: slice | Int[Tensor, " n"]) -> Float[Tensor, "block head query key"]:
        """Compute the weights of some queries of some blocks, in float32 or better."""
        logits = self.products(blocks, queries)
        dtype = logits.dtype
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.bias is not None:
            logits += _part(self.bias, blocks, queries).to(dtype)
        allowed = self._boolean(blocks, queries)
        if allowed is None:
            return torch.softmax(logits, dim=-1)
        weights = torch.softmax(logits.masked_fill(~allowed, -math.inf), dim=-1)
        return torch.where(allowed.any(dim=-1, keepdim=True), weights, 0.0)

    def products(self, blocks: slice, queries: slice | Int[Tensor, " n"]) -> Float[Tensor, "block head query key"]:
        """Compute `scale * q.k` for some queries of some blocks, in float32 or better."""
        dtype = torch.promote_types(self.q.dtype, torch.float32)
        q, k = self.q[blocks][:, :, queries].to(dtype), self.k[blocks].to(dtype)
        count, heads, rows, dim = q.shape
        groups = k.shape[1]
        # Scaling q, not the logits, saves a pass over the larger array and moves them by rounding only.
        grouped = (q * self.scale).reshape(count, groups, heads // groups * rows, dim)
        return torch.matmul(grouped, k.transpose(-1, -2)).view(count, heads, rows, k.shape[2])

    def allowed(
        self, blocks: slice, queries: slice | Int[Tensor, " n"]
    ) -> Bool[Tensor, " block #head query key"] | None:
        """Return which keys may be attended to; everything where neither mask nor bias nor causality says no."""
        count = self.q[blocks].shape[0]
        rows = self.q[:1, :1, queries].shape[2]
        allowed = torch.ones(count, 1, rows, self.k.shape[2], dtype=torch.bool, device=self.device)
        boolean = self._boolean(blocks, queries)
        if boolean is not None:
            allowed = allowed & boolean
        if self.bias is not None:
            allowed = allowed & ~forbidden(_part(self.bias, blocks, queries))
        return allowed

    def _boolean(self, blocks: slice, queries: slice | Int[Tensor, " n"]) -> Bool[Tensor, "..."] | None:
        allowed = None if self.mask is None else _part(self.mask, blocks, queries)
        minus_infinite = None
        if self.bias is not None:  # -inf is no number to add: a row of nothing else would become NaN
            minus_infinite = ~torch.isneginf(_part(self.bias, blocks, queries))
        if self.causal:
            index = torch.arange(self.q.shape[2], device=self.device)[queries]
            causal = torch.arange(self.k.shape[2], device=self.device)[None, :] <= index[:, None]
            allowed = causal[None, None] if allowed is None else allowed & causal
        if minus_infinite is not None and (allowed is not None or not bool(minus_infinite.all())):
            allowed = minus_infinite if allowed is None else allowed & minus_infinite
        return allowed


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """Weights that were seen or given, and which keys were allowed if that is known."""

    weights: Float[Tensor, "block head query key"]
    mask: Bool[Tensor, "#block #head #query #key"] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of blocks, heads, queries and keys."""
        block, head, query, key = self.weights.shape
        return block, head, query, key

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.weights.device

    def values(self, blocks: slice, queries: slice | Int[Tensor, " n"]) -> Float[Tensor, "block head query key"]:
        """Return the weights of some queries of some blocks, in float32 or better."""
        chosen = self.weights[blocks][:, :, queries]
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32))

    def allowed(
        self, blocks: slice, queries: slice | Int[Tensor, " n"]
    ) -> Bool[Tensor, " block #head query key"] | None:
        """Return which keys may be attended to, or None where nobody said."""
        if self.mask is None:
            return None
        count, _, rows, keys = self.weights[blocks][:, :, queries].shape
        part = _part(self.mask, blocks, queries)
        return part.expand(count, part.shape[1], rows, keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attributed:
    """Weights times the gradient of a score with respect to them, computed some rows at a time.

    Both are kept as thin factors where the model used a fused kernel: with `out = A v`, the gradient of A is
    `d_out v^T`, so that nothing of tokens x tokens is kept for any layer.

    Parameters
    ----------
    weights
        A.
    gradient
        Its gradient, dense; or factored, where q is the gradient of the output and k the value: their plain
        product, without a softmax, a mask or a bias.
    positive
        Whether what lowers the score counts as 0.

    """

    weights: Factored | Dense
    gradient: Factored | Dense
    positive: bool = False

    def __post_init__(self) -> None:
        if self.weights.shape != self.gradient.shape:
            raise InputError(
                f"Weights of shape {self.weights.shape} have a gradient of shape {self.gradient.shape}. Both are of "
                "one layer, [block, head, query, key]. Take the gradient of the same forward pass."
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of blocks, heads, queries and keys."""
        return self.weights.shape

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.weights.device

    def values(self, blocks: slice, queries: slice | Int[Tensor, " n"]) -> Float[Tensor, "block head query key"]:
        """Compute the product for some queries of some blocks, in float32 or better."""
        gradient = self.gradient
        slopes = (
            gradient.products(blocks, queries) if isinstance(gradient, Factored) else gradient.values(blocks, queries)
        )
        product = self.weights.values(blocks, queries) * slopes
        return product.clamp_(min=0.0) if self.positive else product

    def allowed(
        self, blocks: slice, queries: slice | Int[Tensor, " n"]
    ) -> Bool[Tensor, " block #head query key"] | None:
        """Return which keys may be attended to, as the weights know it."""
        return self.weights.allowed(blocks, queries)


def forbidden(bias: Float[Tensor, "*lead query key"]) -> Bool[Tensor, "*lead query key"]:
    """Return which keys an additive bias forbids: those at half of its dtype's minimum, or beyond a gap in their row.

    Some masks are finite (-100 in Swin, -10000 in older language models) and come added to a bias of positions.
    A row of such falls in two groups with nothing in between; a slope, as ALiBi's, has no gap. What the weights are
    is another matter: they are computed with the bias as it is.

    Examples
    --------
    >>> forbidden(torch.tensor([[0.3, -99.0, -101.0], [0.3, -1.0, 2.0]])).tolist()
    [[False, True, True], [False, False, False]]

    """
    found = bias <= torch.finfo(bias.dtype).min / 2
    real = torch.where(found, 0.0, bias.to(torch.promote_types(bias.dtype, torch.float32)))
    if not bias.numel() or float(real.max() - real.min()) < _GAP:
        return found
    high = real.masked_fill(found, -math.inf).amax(dim=-1, keepdim=True)
    low = real.masked_fill(found, math.inf).amin(dim=-1, keepdim=True)
    above = real > (high + low) / 2  # a gap of that width holds the middle of the row
    top = real.masked_fill(found | ~above, math.inf).amin(dim=-1, keepdim=True)
    bottom = real.masked_fill(found | above, -math.inf).amax(dim=-1, keepdim=True)
    return found | (~above & (top - bottom >= _GAP))


def _part(
    tensor: Shaped[Tensor, "a b c d"], blocks: slice, queries: slice | Int[Tensor, " n"]
) -> Shaped[Tensor, "..."]:
    """Choose blocks and queries of a tensor that may be broadcast over either."""
    chosen = tensor if tensor.shape[0] == 1 else tensor[blocks]
    return chosen if chosen.shape[2] == 1 else chosen[:, :, queries]

"""Products and statistics of attention, written once, on rows.

    apply(layer, x)            = A x      what each query gathers,            [query, dim]
    apply_transposed(layer, x) = x^T A    what each key is given,             [key, dim]
    received(layer)            = 1^T A    attention that each key receives,   [key]

Each runs over blocks of rows; nothing as large as tokens x tokens x heads is ever held. Which
storage a layer has makes no difference.
"""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmattn.errors import InputError, ModelError
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.rows import Rows, check_range
from mmattn.schema.walk import Heads, all_rows, fused_after, fused_before, fused_early, one_hot, some_rows
from mmattn.schema.weights import Blocks

# Below this a weight is that of a finite mask; above that it shows in a picture.
_CUT_OFF, _SEEN = 1e-30, 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStatistics:
    """What can be said of every row.

    Parameters
    ----------
    entropy_bits
        `[head, query]`, of the weights as they stand (mass outside is not counted).
    largest
        `[head, query]`, the largest weight.
    outside
        `[head, query]`, share that went to no token.
    empty
        `[query]`, True where no key was allowed; None where nobody said what was allowed.
    allowed_count
        `[query]`, number of keys that any head was allowed; None likewise.

    """

    entropy_bits: Float[Tensor, "head query"]
    largest: Float[Tensor, "head query"]
    outside: Float[Tensor, "head query"]
    empty: Bool[Tensor, " query"] | None
    allowed_count: Int[Tensor, " query"] | None


def apply(
    layer: AttentionLayer, x: Float[Tensor, "key dim"], *, heads: Heads = "mean", floor: float | None = None
) -> Float[Tensor, "..."]:
    """Return A x, `[query, dim]`; with `heads="each"` `[head, query, dim]`.

    Parameters
    ----------
    x
        One row for each key.
    heads
        `"mean"`, `"max"`, `"min"`, `"each"`, one head, or several (their mean).
    floor
        Fused weights up to this count as 0.

    Raises
    ------
    InputError
        When x has not one row for each key.

    Examples
    --------
    >>> from mmattn.schema.axes import Positions
    >>> from mmattn.schema.weights import Blocks, Dense
    >>> axis = (Positions.count(2),)
    >>> layer = AttentionLayer(name="a", query=axis, key=axis, heads=1,
    ...                        storage=(Blocks(source=Dense(weights=torch.eye(2)[None, None])),))
    >>> apply(layer, torch.tensor([[1.0], [2.0]])).flatten()
    tensor([1., 2.])

    """
    _check_side(x, len(layer.key_axis), "key")
    x = x.to(layer.device)
    out: Tensor | None = None
    for rows in all_rows(layer):
        weights = fused_before(rows.weights, heads, floor)
        x = x.to(weights.dtype)
        padded = torch.cat([x, x.new_zeros(1, x.shape[1])])  # a key without a token (-1) reads a row of zeros
        if rows.blocks:
            weights = fused_early(weights, rows, heads)
            gathered = torch.matmul(rows.by_block(weights), padded[rows.key_lists]).flatten(1, 2)
        else:
            gathered = torch.einsum("hrs,rsd->hrd", weights, padded[rows.key])
        gathered = fused_after(gathered, heads) * rows.coefficient[None, :, None]
        out = _zeros(out, gathered, len(layer.query_axis))
        real = rows.query >= 0
        out.index_add_(1, rows.query[real], gathered[:, real])
    return _finish(out, heads, layer.query_axis, x)


def apply_transposed(
    layer: AttentionLayer,
    x: Float[Tensor, "query dim"],
    *,
    heads: Heads = "mean",
    floor: float | None = None,
    absolute: bool = False,
) -> Float[Tensor, "..."]:
    """Return x^T A, transposed to `[key, dim]`; with `heads="each"` `[head, key, dim]`.

    Where few rows of x are not zero only those rows of A are computed, so that following one
    class token down from the last layer costs one row. `absolute`: of the absolute values of A.
    """
    _check_side(x, len(layer.query_axis), "query")
    x = x.to(layer.device)
    wanted = torch.nonzero((x != 0).any(dim=1)).flatten()
    # A floor compares for equality: weights must come from the very same products each time.
    few = floor is None and len(wanted) * 4 <= len(x)
    out: Tensor | None = None
    for rows in some_rows(layer, wanted) if few else all_rows(layer):
        weights = fused_before(rows.weights.abs() if absolute else rows.weights, heads, floor)
        count = len(layer.key_axis) + 1  # the last row takes what goes to no token
        if rows.first is not None:
            given = x[rows.first : rows.first + weights.shape[1]].to(weights.dtype)
            sent = fused_after(torch.matmul(given.T, weights).transpose(1, 2), heads)
            out = _zeros(out, sent, count)
            out[:, :-1] += sent
            continue
        real = rows.query >= 0
        given = torch.where(real[:, None], x.to(weights.dtype)[rows.query.clamp(min=0)], 0.0)
        given = given * rows.coefficient[:, None]
        if rows.blocks:
            sent = _sent(rows, fused_early(weights, rows, heads), given)
            sent = fused_after(sent, heads).flatten(1, 2)
            out = _zeros(out, sent, count)
            out.index_add_(1, _or_last(rows.key_lists.flatten(), count), sent)
        else:
            sent = fused_after(weights[..., None] * given[None, :, None, :], heads)  # [head, row, slot, dim]
            sent = sent.flatten(1, 2)
            out = _zeros(out, sent, count)
            out.index_add_(1, _or_last(rows.key.reshape(-1), count), sent)
    out = None if out is None else out[:, :-1]
    return _finish(out, heads, layer.key_axis, x)


def received(layer: AttentionLayer, *, heads: Heads = "mean") -> Float[Tensor, "..."]:
    """Return the attention that each key receives, summed over all queries: `[key]` or `[head, key]`."""
    ones = torch.ones(len(layer.query_axis), 1, device=layer.device)
    return apply_transposed(layer, ones, heads=heads)[..., 0]


def rows_of(layer: AttentionLayer, queries: Sequence[int], *, heads: Heads = "mean") -> Float[Tensor, "..."]:
    """Return the rows of A of some queries: `[n, key]`, or `[head, n, key]` with `heads="each"`."""
    return apply_transposed(layer, one_hot(layer, queries), heads=heads).transpose(-1, -2)


def fused_rows(layer: AttentionLayer, heads: Heads, *, absolute: bool = False) -> Iterator[Float[Tensor, "..."]]:
    """Yield the weights (or their absolute values) of all pairs of tokens, heads fused, some rows at a time."""
    for rows in all_rows(layer):
        fused = fused_before(rows.weights.abs() if absolute else rows.weights, heads).mean(dim=0)
        real = (rows.query >= 0)[:, None] & (rows.key >= 0)
        yield fused if bool(real.all()) else fused[real]


def absolute_sums(
    layer: AttentionLayer, *, heads: Heads = "mean", floor: float | None = None
) -> Float[Tensor, " query"]:
    """Return for each query the sum of the absolute values of its weights, heads fused after that."""
    out: Tensor | None = None
    for rows in all_rows(layer):
        fused = fused_before(rows.weights.abs(), heads, floor).mean(dim=0)
        sums = torch.where(rows.key >= 0, fused, 0.0).sum(dim=-1) * rows.coefficient.abs()
        out = sums.new_zeros(len(layer.query_axis) + 1) if out is None else out
        out.index_add_(0, _or_last(rows.query, len(out)), sums)
    assert out is not None
    return out[:-1]


def uniform_transposed(layer: AttentionLayer, x: Float[Tensor, "query dim"]) -> Float[Tensor, "key dim"]:
    """Return x^T U, transposed: what the keys would be given if every query looked at all allowed keys alike.

    U has 1 / number of allowed keys. Heads with different masks are averaged.

    Raises
    ------
    ModelError
        When nobody said which keys were allowed (a softmax that was only seen).
    """
    _check_side(x, len(layer.query_axis), "query")
    x = x.to(layer.device)
    wanted = torch.nonzero((x != 0).any(dim=1)).flatten()
    width = len(layer.key_axis)
    if layer.all_allowed:
        return (x.sum(dim=0) / width).expand(width, -1).clone()
    out = x.new_zeros(width + 1, x.shape[1])
    few = len(wanted) * 4 <= len(x)
    for rows in some_rows(layer, wanted, with_allowed=True) if few else all_rows(layer, with_allowed=True):
        if rows.allowed is None:
            raise ModelError(
                f"Layer {layer.name} has no uniform baseline: which keys were allowed is not known. "
                "The call or the adapter must give a mask. Read this layer without the baseline."
            )
        allowed = rows.allowed.to(out.dtype)
        share = (allowed / allowed.sum(dim=-1, keepdim=True).clamp(min=1)).mean(dim=0)
        real = rows.query >= 0
        given = torch.where(real[:, None], x[rows.query.clamp(min=0)], 0.0)
        given = given * rows.coefficient[:, None].to(out.dtype)
        if rows.blocks:
            out.index_add_(0, _or_last(rows.key_lists.flatten(), width + 1), _sent(rows, share, given).flatten(0, 1))
        else:
            sent = (share[..., None] * given[:, None, :]).flatten(0, 1)
            out.index_add_(0, _or_last(rows.key.reshape(-1), width + 1), sent)
    return out[:-1]


def uniform_rows(layer: AttentionLayer, queries: Sequence[int]) -> Float[Tensor, "n key"]:
    """Return the uniform baseline of some queries: 1 / number of allowed keys on each of them."""
    return uniform_transposed(layer, one_hot(layer, queries)).T


def reached(layer: AttentionLayer, queries: Sequence[int]) -> Bool[Tensor, "head key"] | None:
    """Return which keys any of some queries could look at: those of their blocks that no mask forbids.

    What got a share that can be seen counts as reached, whatever its mask was meant to say. Where nobody said what
    was allowed (a softmax that was only seen) windows still have a border, and within a window a key counts as cut
    off where every head gave it less than 1e-30: a mask of -100, as in Swin, leaves about that or less, and a
    float32 softmax of unmasked logits hardly ever does.

    Parameters
    ----------
    queries
        Tokens of the query axis.

    Returns
    -------
    None where all keys can be looked at, known without looking at rows.

    Examples
    --------
    >>> from mmattn.schema.axes import Positions
    >>> from mmattn.schema.weights import Factored
    >>> axis, q = (Positions.count(4),), torch.zeros(2, 1, 2, 8)
    >>> windows = torch.tensor([[0, 1], [2, 3]])
    >>> blocks = Blocks(source=Factored(q=q, k=q, scale=1.0), query_index=windows, key_index=windows)
    >>> layer = AttentionLayer(name="a", query=axis, key=axis, heads=1, storage=(blocks,))
    >>> reached(layer, [2]).tolist()
    [[False, False, True, True]]

    """
    check_range(queries, len(layer.query_axis), "query")
    if layer.all_allowed:
        return None
    width, heads = len(layer.key_axis), layer.storage_heads
    found = torch.zeros(heads, width + 1, dtype=torch.bool, device=layer.device)
    wanted = torch.zeros(len(layer.query_axis) + 1, dtype=torch.bool, device=layer.device)
    wanted[[int(q) % len(layer.query_axis) for q in queries]] = True
    tokens = torch.nonzero(wanted).flatten()
    windows = any(isinstance(storage, Blocks) and storage.key_index is not None for storage in layer.storages)
    few = len(tokens) * 4 <= len(layer.query_axis)
    for rows in some_rows(layer, tokens, with_allowed=True) if few else all_rows(layer, with_allowed=True):
        weights = rows.weights.abs()
        if rows.allowed is not None:
            allowed = rows.allowed | (weights > _SEEN)
        else:
            allowed = (weights > _CUT_OFF).any(dim=0, keepdim=True) | torch.tensor(not windows, device=layer.device)
        allowed = allowed & wanted[rows.query][:, None]  # the added last entry for padding (-1)
        key = _or_last(rows.key, width + 1).expand(heads, -1, -1)
        count = torch.zeros(heads, width + 1, device=layer.device)
        count.scatter_add_(1, key.flatten(1), allowed.expand(heads, -1, -1).flatten(1).to(count.dtype))
        found |= count > 0
    return found[:, :-1]


def statistics(layer: AttentionLayer) -> RowStatistics:
    """Return entropy, largest weight, mass outside and emptiness of every row.

    Entropy assumes that a pair of query and key stands in one block only, as in windows and in
    divided space and time; a pair in overlapping blocks is counted in parts.
    """
    length, heads = len(layer.query_axis), layer.storage_heads
    device, known = layer.device, True
    entropy = torch.zeros(heads, length + 1, device=device)
    largest, inside, due = torch.zeros_like(entropy), torch.zeros_like(entropy), torch.zeros_like(entropy)
    count = torch.zeros(length + 1, device=device, dtype=torch.long)
    for rows in all_rows(layer, with_allowed=True):
        query = _or_last(rows.query, length + 1)
        weights = (rows.weights * rows.coefficient[None, :, None]).float()
        weights = torch.where(rows.key[None] >= 0, weights, 0.0)
        entropy.index_add_(1, query, torch.special.entr(weights).sum(-1) / torch.log(weights.new_tensor(2.0)))
        index = query.expand(heads, -1)
        peaks = weights.amax(-1) if weights.shape[-1] else weights.sum(-1)
        largest.scatter_reduce_(1, index, peaks, "amax")
        inside.index_add_(1, query, weights.sum(-1))
        due.index_add_(1, query, rows.coefficient.float().expand(heads, -1))
        if rows.allowed is None:
            known = False
        else:
            real = rows.allowed.any(dim=0) & (rows.key >= 0)
            count.index_add_(0, query, real.sum(-1))
    empty = count[:-1] == 0
    outside = due[:, :-1] - inside[:, :-1]
    if layer.normalized in ("signed", "none"):
        outside = torch.zeros_like(outside)
    if known:
        outside = torch.where(empty, 0.0, outside)
    return RowStatistics(
        entropy_bits=entropy[:, :-1],
        largest=largest[:, :-1],
        outside=outside,
        empty=empty if known else None,
        allowed_count=count[:-1] if known else None,
    )


def _sent(
    rows: Rows, weights: Float[Tensor, "*lead row slot"], given: Float[Tensor, "row dim"]
) -> Float[Tensor, "*lead block slot dim"]:
    """Return what the keys of each block are given: one product a block, never `[row, slot, dim]`."""
    return torch.matmul(rows.by_block(given).transpose(-1, -2), rows.by_block(weights)).transpose(-1, -2)


def _zeros(out: Tensor | None, like: Float[Tensor, "head n dim"], count: int) -> Float[Tensor, "head count dim"]:
    return like.new_zeros(like.shape[0], count, like.shape[2]) if out is None else out


def _or_last(index: Int[Tensor, "..."], count: int) -> Int[Tensor, "..."]:
    return torch.where(index >= 0, index, count - 1)


def _check_side(x: Float[Tensor, "token dim"], length: int, side: str) -> None:
    if len(x) != length:
        raise InputError(
            f"x has {len(x)} rows for {length} tokens of the {side} axis. It must have one row a token. "
            f"Pass a tensor of shape [{length}, dim]."
        )


def _finish(out: Tensor | None, heads: Heads, axis: Sized, x: Tensor) -> Float[Tensor, "..."]:
    if out is None:  # no row was needed: everything is zero
        out = x.new_zeros(1, len(axis), x.shape[1])
    return out if heads == "each" else out[0]

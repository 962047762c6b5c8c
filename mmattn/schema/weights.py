"""Where a layer's weights come from: Blocks (factored or dense) or Edges.

A block is a rectangle of attention: some queries over some keys, all heads. One block is plain
attention; many are windows, divided space and time, padded graphs, packed sequences, or a batch
(`sample`). Factored blocks keep q and k and compute weights when asked, so memory stays linear in
tokens:

    A[q, k] = softmax_k( softcap(scale * q.k) + bias ), forbidden keys left out.

Both storages answer one question, `rows(start, stop)`: query ids, key ids, coefficients and weights
for a block of rows, never holding more. Analysis never knows which storage it reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.factored import Attributed, Dense, Factored, forbidden
from mmattn.schema.rows import CHUNK_WEIGHTS, Rows, check_range, concatenate

__all__ = ["Attributed", "Blocks", "Dense", "Factored", "Normalized", "forbidden"]

Normalized = Literal["over_keys", "over_keys_and_outside", "signed", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Rectangles of attention over parts of the axes.

    Parameters
    ----------
    source
        Factored or dense weights, or these times a gradient, `[block, head, query, key]`.
    sample
        Which sample each block belongs to; None: all to sample 0.
    query_index, key_index
        Which position of the axis each query and key of a block is, -1 for padding; None: position
        i is token i. What a row gives to a key of index -1 is `outside`.
    coefficient
        For a query that stands in several blocks: what each of its rows counts; None: 1.

    Examples
    --------
    >>> q = k = torch.zeros(1, 2, 4, 8)
    >>> Blocks(source=Factored(q=q, k=k, scale=1.0)).weights().shape
    torch.Size([1, 2, 4, 4])

    """

    source: Factored | Dense | Attributed
    sample: Int[Tensor, " block"] | None = None
    query_index: Int[Tensor, "block query"] | None = None
    key_index: Int[Tensor, "block key"] | None = None
    coefficient: Float[Tensor, "block query"] | None = None

    def __post_init__(self) -> None:
        block, _, query, key = self.source.shape
        given: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
            "sample": (self.sample, (block,)),
            "query_index": (self.query_index, (block, query)),
            "key_index": (self.key_index, (block, key)),
            "coefficient": (self.coefficient, (block, query)),
        }
        for name, (tensor, shape) in given.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)} for weights of {block} blocks, {query} queries and {key} "
                    f"keys. It must have shape {shape}. Index every block of the weights."
                )

    @property
    def head_count(self) -> int:
        """Number of heads."""
        return self.source.shape[1]

    @property
    def row_count(self) -> int:
        """Number of rows: blocks times queries."""
        return self.source.shape[0] * self.source.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.source.device

    @property
    def all_allowed(self) -> bool:
        """Whether this is one plain block without a mask; False where that is not known."""
        source = self.source.weights if isinstance(self.source, Attributed) else self.source
        plain = source.shape[0] == 1 and self.query_index is None and self.key_index is None
        plain = plain and self.coefficient is None
        return plain and isinstance(source, Factored) and source.mask is source.bias is None and not source.causal

    def weights(
        self, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "block head query key"]:
        """Return the weights as they stand in the blocks; `heads` and `queries` (of a block) choose some."""
        check_range(heads, self.head_count, "head")
        check_range(queries, self.source.shape[2], "query of a block")
        chosen = slice(None) if queries is None else torch.as_tensor(list(queries), device=self.device)
        values = self.source.values(slice(None), chosen)
        return values if heads is None else values[:, list(heads)]

    def rows(self, start: int, stop: int, *, with_allowed: bool = False) -> Rows:
        """Return rows `start` to `stop` (block by block, query by query), never computing more."""
        queries = self.source.shape[2]
        start, stop = max(0, start), min(stop, self.row_count)
        parts, at = [], start
        while at < stop:
            block, first = divmod(at, queries)
            if first == 0 and stop - at >= queries:  # whole blocks at once
                last = stop // queries
                parts.append(self._part(slice(block, last), slice(0, queries), with_allowed))
                at = last * queries
            else:
                end = min(queries, first + stop - at)
                parts.append(self._part(slice(block, block + 1), slice(first, end), with_allowed))
                at += end - first
        if not parts:
            return self._part(slice(0, 1), slice(0, 0), with_allowed)
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def chunks(self, *, with_allowed: bool = False, limit: int = CHUNK_WEIGHTS) -> Iterator[Rows]:
        """Yield all rows, about `limit` weights at a time."""
        _, heads, queries, keys = self.source.shape
        row = max(1, heads * keys)
        whole_blocks = limit // max(1, row * queries)
        if whole_blocks > 1:  # of small blocks fewer at a time: as fast, with less beside the result
            whole_blocks = max(1, limit // 8 // (row * queries))
        step = whole_blocks * queries if whole_blocks else max(1, limit // row)
        section = max(step, queries)  # a chunk is whole blocks, or lies inside one
        for section_start in range(0, self.row_count, max(1, section)):
            section_stop = min(self.row_count, section_start + section)
            for start in range(section_start, section_stop, step):
                yield self.rows(start, min(start + step, section_stop), with_allowed=with_allowed)

    def rows_of(self, tokens: Int[Tensor, " n"], *, with_allowed: bool = False) -> Iterator[Rows]:
        """Yield all rows that belong to some tokens of the query axis, a block at a time."""
        if self.query_index is None:
            wanted = tokens.to(self.device)
            for block in range(self.source.shape[0]):
                yield self._part(slice(block, block + 1), wanted, with_allowed)
            return
        member = torch.isin(self.query_index, tokens.to(self.query_index.device))
        for block in torch.nonzero(member.any(dim=1)).flatten().tolist():
            yield self._part(slice(block, block + 1), torch.nonzero(member[block]).flatten(), with_allowed)

    def of_sample(self, sample: int) -> "Blocks | None":
        """Return the blocks of one sample, sharing memory where they stand together; None if there are none."""
        if self.sample is None:
            return self if sample == 0 else None
        found = torch.nonzero(self.sample == sample).flatten()
        if not len(found):
            return None
        first, last = int(found[0]), int(found[-1]) + 1
        chosen: slice | Tensor = slice(first, last) if last - first == len(found) else found
        return Blocks(
            source=_choose_blocks(self.source, chosen),
            query_index=None if self.query_index is None else self.query_index[chosen],
            key_index=None if self.key_index is None else self.key_index[chosen],
            coefficient=None if self.coefficient is None else self.coefficient[chosen],
        )

    def _part(self, blocks: slice, queries: slice | Int[Tensor, " n"], with_allowed: bool) -> Rows:
        weights = self.source.values(blocks, queries)
        count, heads, rows, keys = weights.shape
        device = weights.device
        if self.query_index is None:
            query = torch.arange(self.source.shape[2], device=device)[queries].expand(count, rows)
        else:
            query = self.query_index[blocks][:, queries]
        if self.key_index is None:
            key = torch.arange(keys, device=device).expand(count, keys)
        else:
            key = self.key_index[blocks]
        if self.coefficient is None:
            coefficient = torch.ones(1, dtype=weights.dtype, device=device).expand(count, rows)
        else:
            coefficient = self.coefficient[blocks][:, queries].to(weights.dtype)
        allowed = self.source.allowed(blocks, queries) if with_allowed else None
        one_block = count == 1 or self.key_index is None
        plain = count == 1 and self.query_index is self.key_index is self.coefficient is None
        return Rows(
            query=query.reshape(-1),
            key=key[0].expand(count * rows, keys)
            if one_block
            else key[:, None, :].expand(count, rows, keys).reshape(-1, keys),
            coefficient=coefficient.reshape(-1),
            weights=weights.transpose(0, 1).reshape(heads, count * rows, keys),
            allowed=None if allowed is None else allowed.transpose(0, 1).reshape(-1, count * rows, keys),
            blocks=1 if one_block else count,
            first=queries.start if plain and isinstance(queries, slice) else None,
        )


def _choose_blocks(source: Factored | Dense | Attributed, chosen: slice | Tensor) -> Factored | Dense | Attributed:
    if isinstance(source, Attributed):
        return Attributed(
            weights=_choose(source.weights, chosen),
            gradient=_choose(source.gradient, chosen),
            positive=source.positive,
        )
    return _choose(source, chosen)


def _choose(source: Factored | Dense, chosen: slice | Tensor) -> Factored | Dense:
    def some(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.shape[0] == 1 < source.shape[0] else tensor[chosen]

    if isinstance(source, Dense):
        return Dense(weights=source.weights[chosen], mask=some(source.mask))
    return Factored(
        q=source.q[chosen],
        k=source.k[chosen],
        scale=source.scale,
        mask=some(source.mask),
        bias=some(source.bias),
        causal=source.causal,
        softcap=source.softcap,
    )

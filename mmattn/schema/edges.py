"""Edges: attention of graphs, one weight a head and edge; memory linear in edges.

Stored sorted by query, and each edge knows its `position` in the user's own edge list (-1: the layer
added it). `rows` hands them out with queries of like degree together, so that padding stays small.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.rows import CHUNK_WEIGHTS, Rows, check_range


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Attention weights on the edges of a graph.

    Parameters
    ----------
    query, key
        Node that attends and node that is attended to, of each edge; sorted by query.
    values
        `[head, edge]`.
    position
        Position of each edge in the user's own list; -1: the layer added it.
    query_count
        Number of nodes on the query axis; a node without an edge has an empty row.

    Examples
    --------
    >>> edges = Edges.sort(query=torch.tensor([1, 0]), key=torch.tensor([0, 1]),
    ...                    values=torch.ones(1, 2), query_count=2)
    >>> edges.position
    tensor([1, 0])

    """

    query: Int[Tensor, " edge"]
    key: Int[Tensor, " edge"]
    values: Float[Tensor, "head edge"]
    position: Int[Tensor, " edge"]
    query_count: int
    _start: Int[Tensor, " query_plus_one"] = field(init=False, repr=False)
    _order: Int[Tensor, " query"] = field(init=False, repr=False)
    _degree: Int[Tensor, " query"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.query) and (int(self.query.min()) < 0 or int(self.query.max()) >= self.query_count):
            raise InputError(
                f"Edges name query nodes {int(self.query.min())} to {int(self.query.max())}, but there are "
                f"{self.query_count}. Node ids lie in 0 to {self.query_count - 1}. Check the edge list."
            )
        if len(self.query) and int(self.key.min()) < 0:
            raise InputError(
                f"Edges name key node {int(self.key.min())}. Node ids are not negative. Check the edge list."
            )
        if bool((self.query[1:] < self.query[:-1]).any()):
            raise InputError("The edges are not sorted by query. They must be. Build them with Edges.sort(...).")
        degree = torch.bincount(self.query, minlength=self.query_count)
        start = torch.zeros(self.query_count + 1, dtype=torch.long, device=self.query.device)
        torch.cumsum(degree, 0, out=start[1:])
        object.__setattr__(self, "_start", start)
        object.__setattr__(self, "_degree", degree)
        object.__setattr__(self, "_order", torch.argsort(degree, stable=True))

    @classmethod
    def sort(
        cls,
        *,
        query: Int[Tensor, " edge"],
        key: Int[Tensor, " edge"],
        values: Float[Tensor, "head edge"],
        query_count: int,
        position: Int[Tensor, " edge"] | None = None,
    ) -> "Edges":
        """Return edges sorted by query; without `position` their given order is the user's own."""
        order = torch.argsort(query, stable=True)
        if position is None:
            position = torch.arange(len(query), device=query.device)
        return cls(
            query=query[order],
            key=key[order],
            values=values[:, order],
            position=position[order],
            query_count=query_count,
        )

    @property
    def head_count(self) -> int:
        """Number of heads."""
        return self.values.shape[0]

    @property
    def row_count(self) -> int:
        """Number of rows: one a query node."""
        return self.query_count

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.values.device

    def rows(self, start: int, stop: int, *, with_allowed: bool = False) -> Rows:
        """Return rows `start` to `stop` in the order of rising degree; `query` says whose they are."""
        return self._take(self._order[max(0, start) : stop], with_allowed)

    def chunks(self, *, with_allowed: bool = False, limit: int = CHUNK_WEIGHTS) -> Iterator[Rows]:
        """Yield all rows, about `limit` weights at a time."""
        degree = self._degree[self._order].tolist()
        start = 0
        while start < self.query_count:
            stop = start + 1
            # Degrees rise, so the last row of a chunk sets its width; double while it fits and pads little.
            while stop < self.query_count:
                further = min(self.query_count, stop + (stop - start))
                wide = degree[further - 1]
                if self.head_count * wide * (further - start) > limit or wide > 2 * degree[start] + 8:
                    break
                stop = further
            yield self.rows(start, stop, with_allowed=with_allowed)
            start = stop

    def rows_of(self, tokens: Int[Tensor, " n"], *, with_allowed: bool = False) -> Iterator[Rows]:
        """Yield the rows of some query nodes."""
        yield self._take(tokens.to(self.device), with_allowed)

    def weights(
        self, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "head edge"]:
        """Return the weights of all edges, or those of some heads and query nodes."""
        check_range(heads, self.head_count, "head")
        check_range(queries, self.query_count, "query")
        values = self.values if heads is None else self.values[list(heads)]
        if queries is None:
            return values
        return values[:, torch.isin(self.query, torch.as_tensor(list(queries), device=self.device))]

    def _take(self, tokens: Int[Tensor, " row"], with_allowed: bool) -> Rows:
        degree = self._degree[tokens]
        width = int(degree.max()) if len(tokens) else 0
        slot = torch.arange(width, device=self.device)
        real = slot[None, :] < degree[:, None]
        edge = torch.where(real, self._start[tokens][:, None] + slot, 0)
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        weights = torch.where(real, self.values[:, edge.flatten()].view(self.head_count, *edge.shape).to(dtype), 0.0)
        return Rows(
            query=tokens,
            key=torch.where(real, self.key[edge.flatten()].view(edge.shape), -1),
            coefficient=torch.ones(len(tokens), dtype=dtype, device=self.device),
            weights=weights,
            allowed=real[None] if with_allowed else None,
        )

"""AttentionLayer: one attention of a model, between two axes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.edges import Edges
from mmattn.schema.rows import check_range
from mmattn.schema.weights import Blocks, Normalized

Kind = Literal["self", "cross"]
Residual = Literal["identity", "learned", "pooled", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionLayer:
    """One attention: who could look at what, and how much they did.

    Parameters
    ----------
    name
        Module path in the model, such as `blocks.11.attn`.
    query, key
        Axes, one a sample; one alone when all samples share it.
    heads
        Number of heads; None where they cannot be told from windows.
    storage
        A tuple of Blocks, or Edges.
    stream
        `vision`, `text`, `encoder`, `decoder`, ...
    kind
        `self` or `cross`.
    residual
        What runs beside the attention and rollout may add.
    normalized
        What a row sums to one over, if it does.
    error
        What the self-check measured: A V recomputed from what is kept, against the call's output.
    note
        What a caption must say of this layer, such as `composed`; empty for most.

    """

    name: str
    query: tuple[Axis, ...]
    key: tuple[Axis, ...]
    heads: int | None
    storage: tuple[Blocks, ...] | Edges
    stream: str = ""
    kind: Kind = "self"
    residual: Residual = "identity"
    normalized: Normalized = "over_keys"
    error: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.query or not self.key or (isinstance(self.storage, tuple) and not self.storage):
            raise InputError(
                f"Layer {self.name} lacks an axis or weights. It needs a query axis, a key axis and a storage. "
                "Give one axis a sample, or one for all."
            )
        counts = {len(self.query), len(self.key), self.sample_count} - {1}
        if len(counts) > 1:
            raise InputError(
                f"Layer {self.name} has {len(self.query)} query axes, {len(self.key)} key axes and {self.sample_count} "
                "samples. Axes are one a sample or one for all. Give as many axes as samples."
            )
        stored = {storage.head_count for storage in self.storages}
        if len(stored) > 1 or (self.heads is not None and stored != {self.heads}):
            raise InputError(
                f"Layer {self.name} says {self.heads} heads and its storage holds {' and '.join(map(str, stored))}. "
                "They must agree; heads=None where heads cannot be told from windows. Check the heads."
            )
        for storage in self.storages:
            if isinstance(storage, Blocks):
                self._check_side(storage, "query", self.query)
                self._check_side(storage, "key", self.key)
            else:
                self._check_edges(storage)

    def _check_edges(self, edges: Edges) -> None:
        queries, keys = max(map(len, self.query)), max(map(len, self.key))
        if edges.query_count != queries or (len(edges.key) and int(edges.key.max()) >= keys):
            last = int(edges.key.max()) if len(edges.key) else -1
            raise InputError(
                f"Layer {self.name} has edges of {edges.query_count} query nodes and up to key node {last}, over axes "
                f"of {queries} and {keys} nodes. Query nodes are as many as the axis has, key nodes lie in "
                f"0 to {keys - 1}. Check the edge list and the axes."
            )

    def _check_side(self, blocks: Blocks, side: str, axes: tuple[Axis, ...]) -> None:
        index = blocks.query_index if side == "query" else blocks.key_index
        count = blocks.source.shape[2 if side == "query" else 3]
        shortest, longest = min(map(len, axes)), max(map(len, axes))
        if index is None and not (count == shortest == longest):
            raise InputError(
                f"Layer {self.name} has weights over {count} {side} tokens and a {side} axis of {longest}. "
                "They must be as long, or the blocks must say which token each position is. Check the axis."
            )
        if index is not None and index.numel() and (int(index.max()) >= longest or int(index.min()) < -1):
            raise InputError(
                f"Layer {self.name} names {side} token {int(index.max())}, but its axis has {longest}. "
                f"Indices lie in -1 to {longest - 1}. Check the index tensors."
            )

    @property
    def storages(self) -> tuple[Blocks, ...] | tuple[Edges]:
        """All storages, as a tuple."""
        return self.storage if isinstance(self.storage, tuple) else (self.storage,)

    @property
    def storage_heads(self) -> int:
        """Heads as stored: 1 where `heads` is None because they could not be told from windows."""
        return self.storages[0].head_count

    @property
    def all_allowed(self) -> bool:
        """Whether every query may attend to every key, known without looking at rows."""
        first = self.storages[0]
        return len(self.storages) == 1 and isinstance(first, Blocks) and first.all_allowed

    @property
    def has_shares(self) -> bool:
        """Whether weights are shares of a row: never negative, with a fixed sum."""
        return self.normalized in ("over_keys", "over_keys_and_outside")

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.storages[0].device

    @property
    def sample_count(self) -> int:
        """Number of samples."""
        found = 1
        for storage in self.storages:
            if isinstance(storage, Blocks) and storage.sample is not None and storage.sample.numel():
                found = max(found, int(storage.sample.max()) + 1)
        return max(found, len(self.query), len(self.key))

    @property
    def query_axis(self) -> Axis:
        """The query axis of the only sample (or the one that all samples share)."""
        return self._only(self.query, "query")

    @property
    def key_axis(self) -> Axis:
        """The key axis of the only sample (or the one that all samples share)."""
        return self._only(self.key, "key")

    def _only(self, axes: tuple[Axis, ...], side: str) -> Axis:
        if len(axes) > 1:
            raise InputError(
                f"Layer {self.name} has {len(axes)} {side} axes, one a sample. Ask for one sample: maps.samples[i]."
            )
        return axes[0]

    def sample(self, index: int) -> "AttentionLayer":
        """Return this layer for one sample, sharing storage."""
        check_range([index], self.sample_count, "sample")
        index %= self.sample_count
        if self.sample_count == 1 and isinstance(self.storage, Edges):
            return self
        assert isinstance(self.storage, tuple)
        blocks = tuple(found for storage in self.storage if (found := storage.of_sample(index)) is not None)
        return replace(
            self,
            query=self.query if len(self.query) == 1 else (self.query[index],),
            key=self.key if len(self.key) == 1 else (self.key[index],),
            storage=blocks,
        )

    def weights(
        self, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "head query key"]:
        """Return the dense weights on the layer's axes, `[head, query, key]`: quadratic in tokens.

        Blocks and edges are put at their places; what lies in no block is 0. For a batch ask one
        sample (`maps.samples[i]`), or `layer.storage[0].weights()` for `[block, head, query, key]`.

        Parameters
        ----------
        heads, queries
            Only these; negative numbers count from the end.

        """
        if self.sample_count > 1:
            raise InputError(
                f"Layer {self.name} holds {self.sample_count} samples. Dense weights are given for one. "
                "Ask maps.samples[i][name].weights(), or layer.storage[0].weights() for all blocks."
            )
        check_range(heads, self.storage_heads, "head")
        check_range(queries, len(self.query_axis), "query")
        length = len(self.query_axis)
        asked = torch.tensor(list(range(length)) if queries is None else [int(q) % length for q in queries]).long()
        wanted, where = torch.unique(asked.to(self.device), return_inverse=True)  # a query may be asked for twice
        slot_of = torch.full((length + 1,), -1, dtype=torch.long, device=self.device)
        slot_of[wanted] = torch.arange(len(wanted), device=self.device)
        width = len(self.key_axis) + 1  # the last column takes what goes to no token
        out: Tensor | None = None
        for storage in self.storages:
            for rows in storage.chunks() if queries is None else storage.rows_of(wanted):
                weights = rows.weights if heads is None else rows.weights[list(heads)]
                weights = weights * rows.coefficient[None, :, None]
                if out is None:
                    out = weights.new_zeros(weights.shape[0], len(wanted), width)
                slots = slot_of[rows.query]  # -1 for padding: the added last entry
                real = slots >= 0
                key = torch.where(rows.key >= 0, rows.key, width - 1)[real]
                flat = (slots[real][:, None] * width + key).reshape(-1)
                out.flatten(1).index_add_(1, flat, weights[:, real].flatten(1))  # flatten is a view here
        if out is None:
            out = torch.zeros(self.storage_heads if heads is None else len(heads), len(wanted), width)
        return out[:, where, :-1]

    def __repr__(self) -> str:
        shape = f"{_axes(self.query)} -> {_axes(self.key)}" if self.query != self.key else _axes(self.query)
        kept = "edges" if isinstance(self.storage, Edges) else type(self.storage[0].source).__name__.lower()
        error = "" if self.error is None else f", self-check {self.error:.1e}"
        heads = "heads unknown" if self.heads is None else f"{self.heads} heads"
        return f"{self.name or '(root)'}: {self.stream} {self.kind}, {heads}, {shape}, {kept}{error}".replace(
            ":  ", ": "
        )


def _axes(axes: tuple[Axis, ...]) -> str:
    return repr(axes[0]) if len(axes) == 1 else f"{len(axes)} axes, first {axes[0]!r}"

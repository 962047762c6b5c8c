"""Rows: what both storages hand out, a block of rows of attention at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmattn.errors import NotFoundError

# Weights held at once while streaming: 2^20 numbers stay near the processor's cache.
CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some rows of attention, of either storage.

    Parameters
    ----------
    query
        The token that each row belongs to; -1 for padding. A token may have several rows.
    key
        The token of each weight; -1 where it is none (padding, a sink column).
    coefficient
        What each row is multiplied with; rows of one query add up.
    weights
        As the model had them; 0 in a row without an allowed key under a boolean mask.
    allowed
        Keys that the row could attend to; None where nothing is known.
    blocks
        Into how many equal parts the rows fall, in order, each with one key list for all its rows, so that
        products are (batched) matrix products. 0: every row has its own keys.
    first
        Where the rows are tokens `first`, `first` + 1, ..., each counted once, and the slots are all
        keys in order: plain attention, the usual case, which needs no index. None otherwise.

    """

    query: Int[Tensor, " row"]
    key: Int[Tensor, "row slot"]
    coefficient: Float[Tensor, " row"]
    weights: Float[Tensor, "head row slot"]
    allowed: Bool[Tensor, "#head row slot"] | None
    blocks: int = 0
    first: int | None = None

    @property
    def key_lists(self) -> Int[Tensor, "block slot"]:
        """The keys of each block."""
        return self.by_block(self.key)[:, 0]

    def by_block(self, per_row: Shaped[Tensor, "*lead row slot"]) -> Shaped[Tensor, "*lead block each slot"]:
        """Return something that rows have, block by block."""
        *lead, rows, slots = per_row.shape
        return per_row.reshape(*lead, self.blocks, rows // self.blocks, slots)


def concatenate(parts: list[Rows]) -> Rows:
    """Return several blocks of rows as one."""
    allowed = [part.allowed for part in parts]
    return Rows(
        query=torch.cat([part.query for part in parts]),
        key=torch.cat([part.key for part in parts]),
        coefficient=torch.cat([part.coefficient for part in parts]),
        weights=torch.cat([part.weights for part in parts], dim=1),
        allowed=None if any(a is None for a in allowed) else torch.cat([a for a in allowed if a is not None], dim=1),
    )


def check_range(chosen: Sequence[int] | None, count: int, noun: str) -> None:
    """Raise when one of the chosen heads or queries is not there."""
    for index in chosen or ():
        if not -count <= index < count:
            raise NotFoundError(
                f"There is no {noun} {index}: there are {count}, 0 to {count - 1}. Pass a number in that range."
            )

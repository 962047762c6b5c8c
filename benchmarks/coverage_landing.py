"""Where the output of one attention lands, and what it came from: one weight at a time.

For attention whose weights do not hang on its own tokens one by one (VOLO's outlook hangs on the middle
of its neighborhood, GCViT's queries are the same in every window) a moved query says nothing. There one
weight is set to one and all others are silent, so that one key's value goes to one query. The cell of
the key is changed, and behind the layer the key's own token moves, and the query's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmattn.interception.calls import Call
from mmattn.schema.axes import PatchGrid
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks

Box = tuple[float, float, float, float]
Changed = Callable[[Tensor, Box, int], Tensor]
Watch = Callable[..., Sequence[AttentionLayer]]
_TRIES = 40
_REPEATS = 4


@dataclass(frozen=True, kw_only=True)
class Landing:
    """One layer, and one behind it whose keys are where they are said to be.

    Parameters
    ----------
    number, behind
        Of both.
    watch
        As for `coverage_places.probed`; `edited=True`: the layers hold the weights that the edit gave.
    changed, base
        As there.
    moved
        How far each key of a layer moved, `[sample, block, position]`.

    """

    number: int
    behind: int
    watch: Watch
    changed: Changed
    base: Tensor
    moved: Callable[[AttentionLayer], Tensor]

    def tried(self, layer: AttentionLayer, count: int) -> list[bool]:
        """Return for up to `count` single weights whether their value reached the query that is named."""
        random = np.random.default_rng(7)
        found: list[bool] = []
        for _ in range(_TRIES):
            right = self._reaches(layer.name, int(random.integers(1 << 40)), int(random.integers(1 << 40)))
            found += [] if right is None else [right]
            if len(found) == count:
                break
        return found

    def _reaches(self, module: str, row: int, key: int) -> bool | None:
        """Return whether it does for one weight; None where key and query stand too near to be told apart."""

        def edit(weights: Tensor, call: Call) -> Tensor:
            out = torch.zeros_like(weights)
            if call.module == module:
                flat = out.view(samples, -1, weights.shape[-1])
                flat[:, row % flat.shape[1], key % flat.shape[2]] = 1.0
            return out

        samples = 1
        named = self.watch(self.base[None], edit, edited=True)[self.number]
        ends = _ends(named)
        if ends is None:
            return None
        (query_box, key_box), samples = ends, 1 + _REPEATS
        views = [self.changed(self.base, key_box, n) for n in range(_REPEATS)]
        seen = self.watch(torch.stack([self.base, *views]), edit)[self.behind]
        axis = seen.key[0]
        assert isinstance(axis, PatchGrid)
        from_token, to_token = axis.token_at(_middle(key_box)), axis.token_at(_middle(query_box))
        if from_token == to_token:
            return None
        moved = _by_token(self.moved(seen)[1:].mean(0), seen)
        near = _around(axis, from_token)
        moved[[from_token] if near[to_token] else near] = 0.0
        farthest = int(moved.argmax())
        if named.query[0].patch_px == axis.patch_px:  # type: ignore[union-attr]
            return farthest == to_token
        return bool(_around(axis, to_token)[farthest])  # kernels of the merging may reach into the next cell


def _ends(layer: AttentionLayer) -> tuple[Box, Box] | None:
    """Return the boxes of the query and the key of the only weight that is not zero."""
    blocks, query_axis, key_axis = layer.storages[0], layer.query[0], layer.key[0]
    assert isinstance(blocks, Blocks)
    assert isinstance(query_axis, PatchGrid)
    assert isinstance(key_axis, PatchGrid)
    block, _, query, key = torch.nonzero(blocks.weights())[0].tolist()
    query = query if blocks.query_index is None else int(blocks.query_index[block, query])
    key = key if blocks.key_index is None else int(blocks.key_index[block, key])
    if query not in query_axis.content or key not in key_axis.content:
        return None
    return query_axis.place(query), key_axis.place(key)


def _by_token(moved: Tensor, layer: AttentionLayer) -> Tensor:
    blocks = layer.sample(0).storages[0]
    assert isinstance(blocks, Blocks)
    index = torch.arange(moved.shape[1]).expand(moved.shape) if blocks.key_index is None else blocks.key_index
    out = torch.zeros(len(layer.key[0]), dtype=moved.dtype)
    return out.index_reduce(0, index.clamp(min=0).flatten(), moved.flatten(), "amax")


def _around(axis: PatchGrid, token: int) -> Tensor:
    """Return which tokens are a cell and its neighbors, which convolutions behind the layer may move too."""
    rows, cols = torch.as_tensor(axis.cells // axis.cols), torch.as_tensor(axis.cells % axis.cols)
    near = torch.maximum((rows - rows[token]).abs(), (cols - cols[token]).abs()) <= 1
    return near & torch.as_tensor(axis.cells >= 0)


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

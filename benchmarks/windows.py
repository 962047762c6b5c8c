"""What a row of a shifted-window layer costs: `python -m benchmarks.windows`.

x^T A of Swin-T's first shifted layer, 56 x 56 = 3,136 tokens in 64 windows of 7 x 7, 3 heads. Ours reads q and
k (or the weights that a softmax gave) window by window; the peer holds the layer as one map of tokens x tokens
for every head, which is what is left to those whose tools know no windows, and multiplies with it. The
peer's map is made in the run where memory is meant, and is there already in the line that is meant for time.
"""

from argparse import Namespace
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Run, Target, Way, main
from mmattn.schema.axes import PatchGrid
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.stream import apply_transposed
from mmattn.schema.weights import Blocks, Dense, Factored

OURS, SEEN = "q and k by window", "weights by window"
KEPT, MADE = "map of all tokens, kept", "map of all tokens, made"
ROW, FEATURES = "one row, 3136 tokens", "32 rows, 3136 tokens"

TARGETS = (
    Target(case=ROW, way=OURS, against=KEPT, limit=1.0),
    Target(case=ROW, way=SEEN, against=KEPT, limit=1.0),
    Target(case=ROW, way=OURS, against=MADE, limit=0.05, of="memory"),
    Target(case=FEATURES, way=OURS, against=KEPT, limit=1.0),
)


def cases(options: Namespace) -> list[Case]:
    side = 14 if options.tiny else 56
    named = {"one row, 196 tokens": 1} if options.tiny else {ROW: 1, FEATURES: 32}
    return [_case(name, side, columns, options.device) for name, columns in named.items()]


def _case(name: str, side: int, columns: int, device: str) -> Case:
    ways = {OURS: partial(_windows, dense=False), SEEN: partial(_windows, dense=True), KEPT: _kept, MADE: _made}
    return Case(
        name=name,
        ways=tuple(
            Way(name=way, prepare=partial(prepare, side, columns, device), against=KEPT)
            for way, prepare in ways.items()
        ),
    )


def layer_of(side: int, *, dense: bool, device: str) -> AttentionLayer:
    """Return one shifted layer: 3 heads of 32, windows of 7, a learned bias, a mask of -100 where the roll wrapped."""
    window, shift, heads = 7, 3, 3
    generator = torch.Generator().manual_seed(0)
    index = _windowed(torch.roll(torch.arange(side * side).view(side, side), (-shift, -shift), dims=(0, 1)), window)
    edge = torch.tensor([0] * (side - window) + [1] * (window - shift) + [2] * shift)
    region = _windowed(3 * edge[:, None] + edge[None, :], window)
    q, k = (torch.randn(len(index), heads, window**2, 32, generator=generator).to(device) for _ in range(2))
    bias = torch.randn(1, heads, window**2, window**2, generator=generator)
    bias = bias + torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)[:, None]
    source: Factored | Dense = Factored(q=q, k=k, scale=32**-0.5, bias=bias.to(device))
    if dense:
        source = Dense(weights=source.values(slice(None), slice(None)))
    index = index.to(device)
    axis = (PatchGrid.plain(rows=side, cols=side, patch_px=(4, 4), size_px=(4 * side, 4 * side)),)
    blocks = Blocks(source=source, query_index=index, key_index=index)
    return AttentionLayer(name="layers.0.blocks.1.attn", query=axis, key=axis, heads=heads, storage=(blocks,))


def _windowed(grid: Tensor, window: int) -> Tensor:
    rows, cols = grid.shape
    parts = grid.view(rows // window, window, cols // window, window).transpose(1, 2)
    return parts.reshape(-1, window * window)


def _windows(side: int, columns: int, device: str, *, dense: bool) -> Run:
    layer, x = layer_of(side, dense=dense, device=device), _given(side, columns, device)
    return lambda: apply_transposed(layer, x)


def _kept(side: int, columns: int, device: str) -> Run:
    whole, x = layer_of(side, dense=True, device=device).weights(), _given(side, columns, device)
    return lambda: torch.matmul(x.T, whole).mean(dim=0).T


def _made(side: int, columns: int, device: str) -> Run:
    layer, x = layer_of(side, dense=True, device=device), _given(side, columns, device)
    return lambda: torch.matmul(x.T, layer.weights()).mean(dim=0).T


def _given(side: int, columns: int, device: str) -> Tensor:
    return torch.rand(side * side, columns, generator=torch.Generator().manual_seed(1)).to(device)


if __name__ == "__main__":
    main(title="A row of a shifted-window layer", module="benchmarks.windows", cases=cases, targets=TARGETS)

"""Shifted-window layers made by hand: roll and partition on indices, as Swin's forward does on features."""

import torch

from mmattn.schema.axes import PatchGrid
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Dense, Factored


def patches(rows, cols, *, special=(), size_px=(320, 240)):
    """A grid that fills a picture of 320 x 240 px, or another."""
    return PatchGrid.plain(rows=rows, cols=cols, patch_px=(4, 4), size_px=size_px, special=special)


def window_index(rows, cols, *, window, shift=0):
    """[block, position] of a grid rolled by `shift` and cut into windows; -1 where the grid was padded."""
    down, across = -rows % window, -cols % window
    grid = torch.nn.functional.pad(torch.arange(rows * cols).view(rows, cols), (0, across, 0, down), value=-1)
    grid = torch.roll(grid, (-shift, -shift), dims=(0, 1))
    height, width = grid.shape
    return grid.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window * window)


def region_mask(rows, cols, *, window, shift):
    """[block, 1, query, key] 0 or -100: Swin's mask between what the roll brought together (no padding)."""
    region = torch.zeros(rows, cols)
    count = 0
    for h in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for w in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            region[h, w] = count
            count += 1
    parts = region.view(rows // window, window, cols // window, window).transpose(1, 2).reshape(-1, window * window)
    return torch.where(parts[:, :, None] == parts[:, None, :], 0.0, -100.0)[:, None]


def windowed(
    *,
    rows=8,
    cols=8,
    window=4,
    shift=2,
    heads=2,
    dim=8,
    masked=True,
    dense=False,
    seed=0,
    axis=None,
    name="blocks.1.attn",
):
    """One layer of windows with random q, k and a random position bias."""
    generator = torch.Generator().manual_seed(seed)
    axis = patches(rows, cols) if axis is None else axis
    index = window_index(rows, cols, window=window, shift=shift)
    shape = (len(index), heads, window * window, dim)
    q, k = (torch.randn(shape, generator=generator) for _ in range(2))
    bias = torch.randn(1, heads, window**2, window**2, generator=generator)
    if masked and shift:
        bias = bias + region_mask(rows, cols, window=window, shift=shift)
    real = (index >= 0)[:, None, None, :]
    source = Factored(q=q, k=k, scale=dim**-0.5, bias=bias, mask=None if bool(real.all()) else real)
    if dense:
        source = Dense(weights=source.values(slice(None), slice(None)))
    return AttentionLayer(
        name=name,
        stream="vision",
        query=(axis,),
        key=(axis,),
        heads=heads,
        storage=(Blocks(source=source, query_index=index, key_index=index),),
    )

"""Rollout of a real Swin transformer, against matrices of tokens x tokens written out in numpy in float64."""

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer, window_partition
from windowed import patches
from written_out import eager_softmaxes

import mmattn
from mmattn.analysis import look, rollout
from mmattn.interception.blocks import to_blocks
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks

WINDOW, PICTURE = 4, (64, 64)
# Side of the grid and shift of the windows, layer by layer.
LAYERS = ((16, 0), (16, 2), (8, 0), (8, 2))


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=WINDOW, num_classes=5
    ).eval()
    for name, parameter in model.named_parameters():
        if "qkv" in name or "bias_table" in name:
            torch.nn.init.normal_(parameter, std=0.6)
    return model, torch.randn(1, 3, 64, 64)


def partitioned(side, shift):
    """[window, position] of the tokens of a grid, by the model's own roll and partition."""
    grid = torch.roll(torch.arange(side * side).view(1, side, side, 1), (-shift, -shift), dims=(1, 2))
    return window_partition(grid, (WINDOW, WINDOW)).view(-1, WINDOW * WINDOW)


def placed_by_hand(swin):
    """The captured calls on the grids of their stages."""
    model, x = swin
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(x)
    axes = {side: patches(side, side, size_px=PICTURE) for side, _ in LAYERS}
    layers = []
    for call, (side, shift) in zip(recording.calls, LAYERS, strict=True):
        index = partitioned(side, shift)
        source = to_blocks(call, batched=False).source
        layers.append(
            AttentionLayer(
                name=call.module,
                stream="vision",
                query=(axes[side],),
                key=(axes[side],),
                heads=source.shape[1],
                storage=(Blocks(source=source, query_index=index, key_index=index),),
            )
        )
    return AttentionMaps(layers=tuple(layers), default_stream="vision", readout="mean")


def layer_matrix(weights, side, shift):
    """One layer as tokens x tokens, heads averaged: every window entry put where row and column arithmetic says."""
    out = np.zeros((side * side, side * side))
    fused = weights.double().mean(1).numpy()
    across = side // WINDOW
    for window in range(len(fused)):
        tokens = []
        for position in range(WINDOW * WINDOW):
            row = (window // across * WINDOW + position // WINDOW + shift) % side
            col = (window % across * WINDOW + position % WINDOW + shift) % side
            tokens.append(row * side + col)
        for i, query in enumerate(tokens):
            for j, key in enumerate(tokens):
                out[query, key] = fused[window, i, j]
    return out


def merge_matrix(coarse):
    """Patch merging: each merged patch is its four patches in equal shares."""
    out = np.zeros((coarse * coarse, 4 * coarse * coarse))
    for row in range(coarse):
        for col in range(coarse):
            for down in (0, 1):
                for right in (0, 1):
                    out[row * coarse + col, (2 * row + down) * 2 * coarse + 2 * col + right] = 0.25
    return out


def written_out(swin):
    """The product of all layers and the merging between, from the softmaxes that the model itself ran."""
    product = np.eye(LAYERS[-1][0] ** 2)
    above = LAYERS[-1][0]
    for weights, (side, shift) in reversed(list(zip(eager_softmaxes(*swin), LAYERS, strict=True))):
        if side != above:
            product, above = product @ merge_matrix(above), side
        product = product @ (0.5 * np.eye(side * side) + 0.5 * layer_matrix(weights, side, shift))
    return product


def check(maps, expected):
    mean = rollout(maps)
    assert np.abs(mean.values[0].double().numpy() - expected.mean(0)).max() < 1e-7
    assert mean.labels == ("mean over 64 patches, which the model reads its answer from",)
    assert len(mean.axis) == 256
    assert float(mean.outside[0]) < 1e-6
    for token in (0, 27, 63):
        found = rollout(maps, query=token)
        assert np.abs(found.values[0].double().numpy() - expected[token]).max() < 1e-6
    x, y = 37.0, 61.0  # cell (7, 4) of the merged grid, on a picture of 64 px
    found = rollout(maps, query=(x, y))
    assert np.abs(found.values[0].double().numpy() - expected[7 * 8 + 4]).max() < 1e-6
    assert found.query_places == (((32.0, 56.0, 40.0, 64.0),),)


def attended(swin):
    """The places as the adapter finds them."""
    model, x = swin
    return mmattn.attend(model, inputs=x)


@pytest.mark.parametrize("placed", [placed_by_hand, attended])
def test_rollout_of_swin_equals_matrices_written_out_in_float64(swin, placed):
    check(placed(swin), written_out(swin))


@pytest.mark.parametrize("placed", [placed_by_hand, attended])
def test_the_mask_of_swin_is_a_border_though_its_softmax_was_only_seen(swin, placed):
    maps = placed(swin)
    corner = look(maps, layer=1, query=255)
    assert torch.nonzero(corner.reach[0]).flatten().tolist() == [14 * 16 + 14, 14 * 16 + 15, 15 * 16 + 14, 255]
    assert look(maps, layer=0, query=255).reach.sum() == 16

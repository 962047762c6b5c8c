"""Readings toward a target of a real Swin transformer, against the eager way and matrices of tokens x tokens."""

import pytest
import torch
from retained import close, raised, retained
from timm.models.swin_transformer import SwinTransformer

import mmattn

WINDOW, LAYERS = 4, ((16, 0), (16, 2), (8, 0), (8, 2))


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=WINDOW, num_classes=5
    ).eval()
    for name, parameter in model.named_parameters():
        if "qkv" in name or "bias_table" in name or "head" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def on_the_grid(windows, side, shift):
    """One layer as tokens x tokens: every window entry put where row and column arithmetic says."""
    out, across = torch.zeros(side * side, side * side, dtype=torch.float64), side // WINDOW
    for window, product in enumerate(windows):
        tokens = [
            (window // across * WINDOW + place // WINDOW + shift) % side * side
            + (window % across * WINDOW + place % WINDOW + shift) % side
            for place in range(WINDOW * WINDOW)
        ]
        out[torch.tensor(tokens)[:, None], torch.tensor(tokens)[None]] = product
    return out


def merged():
    """Patch merging: each of 8 x 8 patches is four of 16 x 16 in equal shares."""
    out = torch.zeros(64, 256, dtype=torch.float64)
    for token in range(64):
        row, col = token // 8, token % 8
        for down in (0, 1):
            out[token, (2 * row + down) * 16 + 2 * col : (2 * row + down) * 16 + 2 * col + 2] = 0.25
    return out


@pytest.mark.parametrize("fused", [False, True])
def test_windows_and_stages_equal_whole_matrices(swin, fused):
    for module in swin.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    maps = mmattn.attend(swin, inputs=x)
    pairs = retained(swin, x, [3])
    one, two, three, four = (
        on_the_grid(raised(a, g), side, shift) for (a, g), (side, shift) in zip(pairs, LAYERS, strict=True)
    )
    coarse, fine = torch.eye(64, dtype=torch.float64), torch.eye(256, dtype=torch.float64)
    whole = (coarse + four) @ (coarse + three) @ merged() @ (fine + two) @ (fine + one) - merged()
    found = mmattn.relevance(maps, target=3)
    assert close(found.values[0], whole.mean(0))
    assert close(mmattn.relevance(maps, target=3, query=27).values[0], whole[27])
    product = coarse
    for index, layer in enumerate((four, three, two, one)):
        product = product @ merged() if index == 2 else product
        sums = layer.sum(-1, keepdim=True)
        product = 0.5 * product + 0.5 * product @ (layer / torch.where(sums > 0, sums, 1.0))
    assert close(mmattn.relevance(maps, method="grad_rollout", target=3).values[0], product.mean(0))
    signed = [
        on_the_grid((a * g).mean(1), side, shift).mean(0) for (a, g), (side, shift) in zip(pairs, LAYERS, strict=True)
    ]
    summed = signed[0] + signed[1] + (signed[2] + signed[3]) @ merged()
    assert close(mmattn.relevance(maps, method="attention_x_gradient", target=3).values[0], summed)

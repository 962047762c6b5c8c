"""Rollout of real models whose tokens do not form one chain, against one float64 matrix over all of them."""

import numpy as np
import pytest
import torch
from timm.models.cait import Cait
from timm.models.crossvit import CrossVit
from timm.models.tnt import TNT
from written_out import eager_softmaxes

import mmattn


def sharpened(model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("qkv", ".q.", ".k.", "wq", "wk", "proj_w", "proj_l")):
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def test_cross_vit_from_both_class_tokens_equals_one_matrix_over_both_branches():
    model = sharpened(
        CrossVit(
            img_size=32,
            patch_size=(8, 16),
            embed_dim=(16, 32),
            depth=((1, 2, 0), (1, 1, 0)),
            num_heads=(2, 2),
            mlp_ratio=(1.0, 1.0, 1.0),
            num_classes=5,
        )
    )
    x = torch.randn(1, 3, 32, 32)
    maps = mmattn.attend(model, inputs=x)
    sizes = {0: maps.layers[0].query_axis, 1: maps.layers[1].query_axis}
    assert [len(axis) for axis in sizes.values()] == [17, 5]
    at, length = {17: 0, 5: 17}, 22
    state = np.zeros(length)
    state[0] = state[17] = 0.5
    fusions = 0
    for weights in reversed(eager_softmaxes(model, x)):
        fused = weights[0].double().mean(0).numpy()
        queries, keys = fused.shape
        step = np.eye(length)
        if queries == 1:  # the class token of the branch whose patches are not among the keys
            own, other = at[22 - keys], at[keys]
            step[own] = 0
            step[own, own] = 0.5 + 0.5 * fused[0, 0]
            step[own, other + 1 : other + keys] = 0.5 * fused[0, 1:]
            fusions += 1
        else:
            own = slice(at[keys], at[keys] + keys)
            step[own, own] = 0.5 * np.eye(keys) + 0.5 * fused
        state = state @ step
    assert fusions == 4
    fine, coarse = state[:17].copy(), state[17:]
    fine[0] += coarse[0]
    for token in range(16):
        fine[1 + token] += coarse[1 + (token // 4 // 2) * 2 + token % 4 // 2] / 4
    found = mmattn.rollout(maps)
    assert np.abs(found.values[0].double().numpy() - fine).max() < 1e-6
    assert found.labels == ("class token, of each of 2 branches",)
    assert len(found.axis) == 17


def test_cait_says_what_its_class_token_kept_to_itself():
    model = sharpened(Cait(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5))
    maps = mmattn.attend(model, inputs=torch.randn(1, 3, 32, 32))
    *body, first, second = maps.layers
    row = 0.5 * second.weights().double().mean(0)[0]
    row[0] += 0.5
    kept = row[0]
    row = row + kept * 0.5 * first.weights().double().mean(0)[0]
    row[0] -= kept * 0.5
    patches = row[1:]
    for layer in reversed(body):
        matrix = layer.weights().double().abs().mean(0)
        patches = 0.5 * patches + 0.5 * (patches @ (matrix / matrix.sum(-1, keepdim=True)))
    found = mmattn.rollout(maps)
    assert torch.allclose(found.values[0].double(), patches, atol=1e-6)
    assert float(found.outside[0]) == pytest.approx(float(row[0]), abs=1e-6)
    assert found.parameters["not passed on"].endswith("(cls under blocks_token_only.0.attn)")


def test_tnt_follows_its_outer_tokens_and_says_that_the_inner_ones_run_beside():
    model = sharpened(
        TNT(img_size=32, patch_size=16, embed_dim=16, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=2)
    )
    maps = mmattn.attend(model, inputs=torch.randn(1, 3, 32, 32))
    found = mmattn.rollout(maps)
    outer = [layer.weights().double().mean(0) for layer in maps.layers if layer.name.endswith("attn_out")]
    eye = torch.eye(5, dtype=torch.float64)
    expected = (0.5 * eye + 0.5 * outer[1]) @ (0.5 * eye + 0.5 * outer[0])
    assert torch.allclose(found.values[0].double(), expected[0], atol=1e-6)
    assert found.parameters["beside it"] == "2 layers of vision.0"

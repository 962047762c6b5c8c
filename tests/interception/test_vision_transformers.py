"""timm's vision transformers, against the softmaxes of their own eager path."""

import pytest
import timm
import torch
from written_out import eager_softmaxes

from mmattn.interception import capture, weights_of

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4}
MODELS = {
    "class token": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}),
    "no class token": ("vit_base_patch16_siglip_224", {**SMALL, "img_size": 64}),
    "registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}),
    "qk norm": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "qk_norm": True}),
    "mean pooled": ("vit_base_patch16_224", {**SMALL, "img_size": 64, "global_pool": "avg", "class_token": False}),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}),
    "eva without rope": ("eva_large_patch14_196", {**SMALL, "img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}),
    "distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 64}),
    "relative bias": ("beit_base_patch16_224", {**SMALL, "img_size": 64}),
    "pooled by attention": ("vit_base_patch16_siglip_gap_224", {**SMALL, "img_size": 64, "global_pool": "map"}),
    "talking heads": ("cait_xxs24_224", {**SMALL, "img_size": 64}),
    "gated sum": ("convit_tiny", {"depth": 2, "embed_dim": 12, "img_size": 64}),
}


def small(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = timm.create_model(kind, num_classes=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def picture(model: torch.nn.Module, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("talking heads", "gated sum")])
def test_captured_weights_equal_the_eager_softmax(name: str) -> None:
    model = small(name)
    images = picture(model)
    expected = eager_softmaxes(model, images)
    with torch.no_grad():
        plain = model(images)
        with capture(model) as recording:
            seen = model(images)
    assert torch.equal(plain, seen)
    assert len(recording.calls) == len(expected)
    for call, weights in zip(recording.calls, expected, strict=True):
        assert weights_of(call).shape == weights.shape
        torch.testing.assert_close(weights_of(call), weights, atol=1e-5, rtol=0)
        assert call.error is not None
        assert call.error < 1e-5
    assert recording.unseen == ()


def test_paths_are_the_modules_that_call() -> None:
    model = small("class token")
    with torch.no_grad(), capture(model) as recording:
        model(picture(model))
    assert [call.module for call in recording.calls] == ["blocks.0.attn", "blocks.1.attn"]
    assert [(call.order, call.pass_index, call.origin, call.kind) for call in recording.calls] == [
        (0, 0, "sdpa", "token"),
        (1, 0, "sdpa", "token"),
    ]


def test_talking_heads_are_read_after_mixing() -> None:
    model = small("talking heads")
    images = picture(model)
    mixed: list[torch.Tensor] = []
    for block in model.blocks:
        block.attn.proj_w.register_forward_hook(lambda module, given, out: mixed.append(out.permute(0, 3, 1, 2)))
    with torch.no_grad(), capture(model) as recording:
        model(images)
    calls = [call for call in recording.calls if call.module.endswith("attn") and "token_only" not in call.module]
    assert len(calls) == len(mixed) == 2
    for call, weights in zip(calls, mixed, strict=True):
        torch.testing.assert_close(weights_of(call), weights, atol=0, rtol=0)
        assert call.origin == "softmax"


def test_sum_of_two_distributions_is_followed() -> None:
    model = small("gated sum")
    images = picture(model)
    kept: list[torch.Tensor] = []
    for block in model.blocks[:1]:
        block.attn.attn_drop.register_forward_hook(lambda module, given, out: kept.append(out.clone()))
    with torch.no_grad(), capture(model) as recording:
        model(images)
    assert [call.module for call in recording.calls] == ["blocks.0.attn", "blocks.1.attn"]
    torch.testing.assert_close(weights_of(recording.calls[0]), kept[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(kept[0].sum(-1), torch.ones_like(kept[0].sum(-1)))


@pytest.mark.parametrize("name", ["xcit_nano_12_p8_224", "edgenext_xx_small", "davit_tiny"])
def test_channel_attention_is_labeled(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    size = 96 if name != "xcit_nano_12_p8_224" else 224
    with torch.no_grad(), capture(model) as recording:
        model(torch.randn(1, 3, size, size))
    channel = {"xcit_nano_12_p8_224": "blocks", "edgenext_xx_small": "xca", "davit_tiny": ".1.attn"}[name]
    assert {call.module for call in recording.calls if call.kind == "channel"} == {
        call.module for call in recording.calls if channel in call.module and "cls" not in call.module
    }
    assert any(call.kind == "channel" for call in recording.calls)


def test_windows_and_strided_layers_are_seen() -> None:
    for name, size in (("swin_tiny_patch4_window7_224", 224), ("levit_128s", 224)):
        model = timm.create_model(name, num_classes=3).eval()
        images = torch.randn(1, 3, size, size)
        expected = eager_softmaxes(model, images)
        with torch.no_grad(), capture(model) as recording:
            model(images)
        assert len(recording.calls) == len(expected)
        for call, weights in zip(recording.calls, expected, strict=True):
            torch.testing.assert_close(weights_of(call), weights, atol=1e-5, rtol=0)
            assert call.kind == "token"

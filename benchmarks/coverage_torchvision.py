"""torchvision's families with attention, at small sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from .coverage_models import Member


def members() -> list[Member]:
    """Return one member a family."""
    vit = partial(
        VisionTransformer, image_size=96, patch_size=16, num_layers=3, num_heads=3, hidden_dim=96, mlp_dim=192
    )
    swin = partial(
        SwinTransformer,
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 4, 8],
        window_size=[7, 7],
    )
    second = partial(
        SwinTransformer,
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 4, 8],
        window_size=[8, 8],
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )
    maxvit = partial(
        MaxVit,
        input_size=(160, 160),
        stem_channels=32,
        partition_size=5,
        block_channels=[32, 64, 96],
        block_layers=[1, 1, 1],
        head_dim=32,
        stochastic_depth_prob=0.0,
    )
    return [
        _member("ViT", "VisionTransformer", vit, (96, 96), "3 layers of 96"),
        _member("Swin", "SwinTransformer", swin, (224, 192), "2 blocks a stage, from 48"),
        _member("Swin v2", "SwinTransformer with v2 blocks", second, (256, 192), "2 blocks a stage, from 48"),
        _member("MaxViT", "MaxVit", maxvit, (160, 160), "3 stages, from 32"),
        _member("ConvNeXt", "convnext_tiny", models.convnext_tiny, (96, 96), ""),
    ]


def _member(family: str, name: str, make: Callable[..., Any], size_px: tuple[int, int], options: str) -> Member:
    def build(*, fused: bool) -> nn.Module:
        """Return the model; torchvision's attention is not switched: the math kernel shows its softmax."""
        made: nn.Module = make()
        return made

    return Member(library="torchvision", family=family, name=name, build=build, size_px=size_px, options=options)

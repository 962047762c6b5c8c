"""Small members of timm's other layouts and of torchvision, with random weights."""

from collections.abc import Callable
from functools import cache

import timm
import torch
from torch import nn
from torchvision.models import swin_transformer
from torchvision.models.maxvit import MaxVit
from torchvision.models.vision_transformer import VisionTransformer

SMALL_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}

TIMM = {
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN),
    "swin of any size": ("swin_tiny_patch4_window7_224", {**SMALL_SWIN, "dynamic_img_size": True}),
    "swin v2": ("swinv2_tiny_window8_256", SMALL_SWIN),
    "maxvit": ("test_maxvit", {}),
    "hiera": ("hiera_tiny_224", {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 1, 1)}),
    "mvit": ("mvitv2_tiny", {"img_size": 64}),
    "pvt": ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}),
    "crossvit": ("crossvit_tiny_240", {"embed_dim": (24, 48), "num_heads": (2, 2), "depth": ((1, 1, 0), (1, 1, 0))}),
    "cait": ("cait_xxs24_224", {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2}),
    "pit": ("pit_ti_224", {"img_size": 64, "depth": (1, 1, 1)}),
    "naflex": ("naflexvit_base_patch16_gap", {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "naflex, pooled": ("naflexvit_base_patch16_map", {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "botnet": ("botnet26t_256", {}),
    "clip's resnet": ("resnet50_clip", {"width_factor": 0.25}),
}

TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=5
    ),
    "swin": lambda: swin_transformer.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5
    ),
    "swin v2": lambda: swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=5,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: MaxVit(
        input_size=(112, 112),
        stem_channels=8,
        partition_size=7,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=5,
    ),
}


@cache
def staged(name: str, *, num_classes: int = 5) -> nn.Module:
    """Build a member of timm in eval mode."""
    known, given = TIMM[name]
    return lively(timm.create_model(known, num_classes=num_classes, **given))


@cache
def of_torchvision(name: str) -> nn.Module:
    """Build a member of torchvision in eval mode."""
    return lively(TORCHVISION[name]())


def lively(model: nn.Module) -> nn.Module:
    """Draw the weights of a model so that its attention is far from uniform."""
    torch.manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in path:
                parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel()) ** 0.5)
    return model.eval()

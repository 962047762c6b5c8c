"""One small member of every plain family, with random weights: the facts that tests hold the adapter to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import timm
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

SIZE = {"img_size": (64, 96), "patch_size": 16}
SMALL = {**SIZE, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build a member, its special tokens and readout, whether a stem mixes patches, the size it is run at."""

    build: Callable[[], nn.Module]
    special: tuple[str, ...] = ("cls",)
    readout: str = "cls"
    mixes: bool = False
    size_px: tuple[int, int] = (96, 64)


def vit(**options):
    return lambda: VisionTransformer(**{**SMALL, **options})


def eva(**options):
    return lambda: Eva(**{**SMALL, "use_rot_pos_emb": True, **options})


def created(name, **options):
    return lambda: timm.create_model(name, **options)


FAMILIES = {
    "ViT": Family(build=vit()),
    "ViT without class token": Family(build=vit(class_token=False, global_pool="avg"), special=(), readout="mean"),
    "ViT with registers": Family(build=vit(reg_tokens=3), special=("cls", *["register"] * 3)),
    "ViT with registers alone": Family(
        build=vit(reg_tokens=2, class_token=False, global_pool="avg", no_embed_class=True),
        special=("register", "register"),
        readout="mean",
    ),
    "ViT with qk-norm": Family(build=vit(qk_norm=True)),
    "ViT of any size": Family(build=vit(dynamic_img_size=True)),
    "ViT, parallel blocks": Family(build=vit(block_fn=ParallelScalingBlock)),
    "ViT, parallel things": Family(build=vit(block_fn=ParallelThingsBlock)),
    "ViT, norm after": Family(build=vit(block_fn=ResPostBlock)),
    "ViT, pre-norm of CLIP": Family(build=vit(pre_norm=True)),
    "differential attention": Family(build=vit(attn_layer="diff", num_heads=2)),
    "differential attention, parallel": Family(build=vit(block_fn=DiffParallelScalingBlock, num_heads=2)),
    "SigLIP": Family(build=vit(class_token=False, global_pool="map"), special=(), readout="pool"),
    "SigLIP with class token": Family(build=vit(global_pool="map"), readout="pool"),
    "pool that refines": Family(build=vit(global_pool="prr"), readout="cls"),
    "DeiT, distilled": Family(build=lambda: VisionTransformerDistilled(**SMALL), special=("cls", "distillation")),
    "EVA-02": Family(build=eva(swiglu_mlp=True, scale_mlp=True), readout="mean"),
    "EVA with registers, no class token": Family(
        build=eva(class_token=False, num_reg_tokens=2), special=("register", "register"), readout="mean"
    ),
    "EVA, pooled by attention": Family(build=eva(global_pool="map"), readout="pool"),
    "EVA, mixed rope": Family(build=eva(rope_type="mixed", use_abs_pos_emb=False, no_embed_class=True), readout="mean"),
    "EVA, grouped keys": Family(
        build=eva(attn_type="rope", num_heads=4, num_kv_heads=2, qkv_fused=False), readout="mean"
    ),
    "ViTamin": Family(
        build=created("vitamin_small_224", img_size=64, embed_dim=384, depth=1),
        special=(),
        readout="mean",
        mixes=True,
        size_px=(64, 64),
    ),
    "DINOv3": Family(
        build=created("vit_small_patch16_dinov3", img_size=(64, 96), embed_dim=48, depth=2, num_heads=3),
        special=("cls", *["register"] * 4),
        readout="mean",
        size_px=(256, 256),
    ),
    "BEiT": Family(build=lambda: Beit(**SMALL, use_abs_pos_emb=False, use_rel_pos_bias=True), readout="mean"),
    "BEiT, shared bias": Family(build=lambda: Beit(**SMALL, use_shared_rel_pos_bias=True), readout="mean"),
    "relative positions": Family(
        build=lambda: VisionTransformerRelPos(**SMALL, rel_pos_type="bias"), special=(), readout="mean"
    ),
    "relative positions, class token": Family(
        build=lambda: VisionTransformerRelPos(**SMALL, class_token=True, global_pool="token")
    ),
    "hybrid with a ResNet stem": Family(
        build=created("vit_tiny_r_s16_p8_224", img_size=(64, 96), embed_dim=48, depth=2, num_heads=3), mixes=True
    ),
    "hybrid of MobileCLIP": Family(build=created("vit_base_mci_224", img_size=(64, 96), depth=2), mixes=True),
}


@cache
def model_of(name):
    """Build a member in eval mode, its parameters (also those that start at zero) drawn at random."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" not in path and "gamma" not in path and "lambda" not in path:
                parameter.copy_(torch.randn_like(parameter) * 0.08)
    return model

"""One small member of each vision class of transformers, with random weights, and what tests hold the adapter to."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import nn

PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "initializer_range": 0.2,
}
STAGED = {
    "hidden_sizes": [16, 16, 32, 32],
    "num_attention_heads": [1, 1, 2, 2],
    "depths": [1, 1, 1, 1],
    "initializer_range": 0.2,
}
WINDOWS = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How to build a member, how many attentions it has, what it is read from, and the query side of its last."""

    build: Callable[[], nn.Module]
    layers: int
    readout: str
    tokens: int


def of(name: str, config: str, **settings) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, name)(getattr(hf, config)(**settings))


KINDS = {
    "ViT": Kind(build=of("ViTForImageClassification", "ViTConfig", **PLAIN), layers=2, readout="cls", tokens=17),
    "ViT, no head": Kind(build=of("ViTModel", "ViTConfig", **PLAIN), layers=2, readout="cls", tokens=17),
    "DeiT": Kind(
        build=of("DeiTForImageClassificationWithTeacher", "DeiTConfig", **PLAIN), layers=2, readout="cls", tokens=18
    ),
    "BEiT": Kind(
        build=of("BeitForImageClassification", "BeitConfig", **PLAIN, use_relative_position_bias=True),
        layers=2,
        readout="mean",
        tokens=17,
    ),
    "Data2Vec": Kind(
        build=of("Data2VecVisionForImageClassification", "Data2VecVisionConfig", **PLAIN),
        layers=2,
        readout="mean",
        tokens=17,
    ),
    "DINOv2": Kind(
        build=of("Dinov2ForImageClassification", "Dinov2Config", **PLAIN), layers=2, readout="cls", tokens=17
    ),
    "DINOv2 with registers": Kind(
        build=of("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **PLAIN), layers=2, readout="cls", tokens=21
    ),
    "DINOv3": Kind(
        build=of("DINOv3ViTModel", "DINOv3ViTConfig", **PLAIN, num_register_tokens=2),
        layers=2,
        readout="cls",
        tokens=19,
    ),
    "I-JEPA": Kind(
        build=of("IJepaForImageClassification", "IJepaConfig", **PLAIN), layers=2, readout="mean", tokens=16
    ),
    "MAE": Kind(build=of("ViTMAEModel", "ViTMAEConfig", **PLAIN, mask_ratio=0.0), layers=2, readout="cls", tokens=17),
    "MSN": Kind(build=of("ViTMSNForImageClassification", "ViTMSNConfig", **PLAIN), layers=2, readout="cls", tokens=17),
    "CLIP's tower": Kind(build=of("CLIPVisionModel", "CLIPVisionConfig", **PLAIN), layers=2, readout="cls", tokens=17),
    "SigLIP's tower": Kind(
        build=of("SiglipVisionModel", "SiglipVisionConfig", **PLAIN), layers=3, readout="pool", tokens=1
    ),
    "SigLIP 2's tower": Kind(
        build=of(
            "Siglip2VisionModel",
            "Siglip2VisionConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_patches=16,
            patch_size=16,
        ),
        layers=3,
        readout="pool",
        tokens=1,
    ),
    "YOLOS": Kind(
        build=of("YolosForObjectDetection", "YolosConfig", **{**PLAIN, "image_size": [64, 96]}, num_detection_tokens=5),
        layers=2,
        readout="",
        tokens=26,
    ),
    "Swin": Kind(build=of("SwinForImageClassification", "SwinConfig", **WINDOWS), layers=4, readout="mean", tokens=64),
    "Swinv2": Kind(
        build=of("Swinv2ForImageClassification", "Swinv2Config", **WINDOWS), layers=4, readout="mean", tokens=64
    ),
    "Donut's Swin": Kind(build=of("DonutSwinModel", "DonutSwinConfig", **WINDOWS), layers=4, readout="mean", tokens=64),
    "Hiera": Kind(
        build=of(
            "HieraForImageClassification",
            "HieraConfig",
            image_size=[64, 64],
            embed_dim=16,
            depths=[1, 2, 2, 1],
            num_heads=[1, 2, 4, 8],
        ),
        layers=6,
        readout="mean",
        tokens=4,
    ),
    "SegFormer": Kind(
        build=of("SegformerForSemanticSegmentation", "SegformerConfig", **STAGED, decoder_hidden_size=16),
        layers=4,
        readout="",
        tokens=256,
    ),
    "PVT": Kind(
        build=of("PvtForImageClassification", "PvtConfig", **STAGED, image_size=64), layers=4, readout="cls", tokens=5
    ),
    "PVT v2": Kind(
        build=of("PvtV2ForImageClassification", "PvtV2Config", **STAGED, image_size=64),
        layers=4,
        readout="mean",
        tokens=4,
    ),
    "CvT": Kind(
        build=of(
            "CvtForImageClassification",
            "CvtConfig",
            embed_dim=[16, 16, 32],
            num_heads=[1, 2, 2],
            depth=[1, 2, 3],
            image_size=64,
        ),
        layers=6,
        readout="cls",
        tokens=17,
    ),
    "LeViT": Kind(
        build=of(
            "LevitForImageClassification",
            "LevitConfig",
            image_size=64,
            hidden_sizes=[16, 32, 48],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        ),
        layers=5,
        readout="mean",
        tokens=1,
    ),
    "MobileViT": Kind(
        build=of(
            "MobileViTForImageClassification",
            "MobileViTConfig",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        ),
        layers=9,
        readout="mean",
        tokens=4,
    ),
    "SAM's encoder": Kind(
        build=of(
            "SamVisionModel",
            "SamVisionConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            output_channels=8,
            window_size=2,
            global_attn_indexes=[1],
        ),
        layers=2,
        readout="",
        tokens=16,
    ),
    "DPT": Kind(
        build=of(
            "DPTForDepthEstimation",
            "DPTConfig",
            **{**PLAIN, "num_hidden_layers": 4},
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            is_hybrid=False,
        ),
        layers=4,
        readout="",
        tokens=17,
    ),
}


@functools.cache
def member(name: str) -> nn.Module:
    """Return a small model, in eval mode, always with the same weights; not to be changed."""
    torch.manual_seed(0)
    return KINDS[name].build().eval()

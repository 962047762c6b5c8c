"""transformers' vision classes, from small configurations with the layout of the real ones."""

from functools import partial
from typing import Any

import transformers
from torch import nn

from .coverage_models import Member

_PLAIN = {
    "image_size": 96,
    "patch_size": 16,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
}
_WINDOWS = {
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 48,
    "depths": [2, 2, 2, 2],
    "num_heads": [2, 4, 4, 8],
    "window_size": 7,
}
_PYRAMID = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [32, 64, 96, 128],
    "num_attention_heads": [1, 2, 3, 4],
}

# family: (class, what its configuration says, width and height)
_FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "ViT": ("ViTModel", _PLAIN, (96, 96)),
    "DeiT": ("DeiTModel", _PLAIN, (96, 96)),
    "BEiT": ("BeitModel", {**_PLAIN, "use_relative_position_bias": True, "use_mask_token": False}, (96, 96)),
    "Data2VecVision": ("Data2VecVisionModel", {**_PLAIN, "use_shared_relative_position_bias": True}, (96, 96)),
    "DINOv2": ("Dinov2Model", {**_PLAIN, "patch_size": 14, "image_size": 84}, (112, 84)),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {**_PLAIN, "patch_size": 14, "image_size": 84}, (112, 84)),
    "DINOv3": ("DINOv3ViTModel", {**_PLAIN, "num_register_tokens": 4}, (128, 96)),
    "ViTMSN": ("ViTMSNModel", _PLAIN, (96, 96)),
    "ViTMAE": ("ViTMAEModel", {**_PLAIN, "mask_ratio": 0.0}, (96, 96)),
    "I-JEPA": ("IJepaModel", _PLAIN, (96, 96)),
    "Pixio": ("PixioModel", {**_PLAIN}, (96, 96)),
    "YOLOS": ("YolosModel", {**_PLAIN, "image_size": [96, 128], "num_detection_tokens": 10}, (128, 96)),
    "DPT": ("DPTModel", {**_PLAIN, "backbone_out_indices": [0, 1, 2]}, (96, 96)),
    "CLIP vision": ("CLIPVisionModel", _PLAIN, (96, 96)),
    "SigLIP vision (attention pool)": ("SiglipVisionModel", _PLAIN, (96, 96)),
    "AIMv2 vision": ("Aimv2VisionModel", {**_PLAIN, "use_head": True}, (96, 96)),
    "MLCD vision": ("MLCDVisionModel", _PLAIN, (96, 96)),
    "ViTDet": ("VitDetModel", {**_PLAIN, "window_block_indices": [0, 1], "window_size": 4}, (96, 96)),
    "ViTPose backbone": ("VitPoseBackbone", {**_PLAIN, "image_size": [128, 96], "patch_size": [16, 16]}, (96, 128)),
    "SAM's encoder": (
        "SamVisionModel",
        {
            **_PLAIN,
            "image_size": 128,
            "mlp_dim": 192,
            "window_size": 3,
            "global_attn_indexes": [2],
            "output_channels": 32,
        },
        (128, 128),
    ),
    "SAM-HQ's encoder": (
        "SamHQVisionModel",
        {
            **_PLAIN,
            "image_size": 128,
            "mlp_dim": 192,
            "window_size": 3,
            "global_attn_indexes": [2],
            "output_channels": 32,
        },
        (128, 128),
    ),
    "SAM 2's Hiera": (
        "Sam2HieraDetModel",
        {
            "hidden_size": 32,
            "image_size": [256, 256],
            "blocks_per_stage": [1, 2, 3, 2],
            "embed_dim_per_stage": [32, 64, 128, 256],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 14, 7],
            "global_attention_blocks": [4],
            "window_positional_embedding_background_size": [7, 7],
        },
        (256, 256),
    ),
    "SAM 3's encoder": (
        "Sam3ViTModel",
        {
            **_PLAIN,
            "image_size": 96,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [2],
            "pretrain_image_size": 96,
        },
        (96, 96),
    ),
    "Swin": ("SwinModel", _WINDOWS, (224, 224)),
    "Swin v2": ("Swinv2Model", {**_WINDOWS, "window_size": 8, "image_size": 256}, (256, 256)),
    "Donut's Swin": ("DonutSwinModel", {**_WINDOWS, "window_size": 7, "image_size": [224, 448]}, (448, 224)),
    "MaskFormer's Swin": ("MaskFormerSwinModel", _WINDOWS, (224, 224)),
    "Hiera": ("HieraModel", {"image_size": [224, 224], "embed_dim": 32, "depths": [1, 2, 3, 2]}, (224, 224)),
    "SegFormer": ("SegformerModel", {**_PYRAMID, "num_attention_heads": [1, 2, 3, 4]}, (160, 128)),
    "GLPN": ("GLPNModel", _PYRAMID, (160, 128)),
    "PVT": ("PvtModel", {**_PYRAMID, "image_size": 224, "sequence_reduction_ratios": [8, 4, 2, 1]}, (224, 224)),
    "PVT v2": ("PvtV2Model", {**_PYRAMID, "image_size": 128}, (128, 128)),
    "PVT v2, linear": ("PvtV2Model", {**_PYRAMID, "image_size": 224, "linear_attention": True}, (224, 224)),
    "CvT": ("CvtModel", {"embed_dim": [32, 64, 96], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, (224, 224)),
    "LeViT": (
        "LevitModel",
        {"image_size": 224, "hidden_sizes": [64, 96, 128], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2]},
        (224, 224),
    ),
    "MobileViT": (
        "MobileViTModel",
        {"image_size": 256, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320]},
        (256, 192),
    ),
    "MobileViT v2": ("MobileViTV2Model", {"image_size": 256, "width_multiplier": 0.5}, (256, 256)),
    "SwiftFormer": ("SwiftFormerModel", {}, (224, 224)),
    "PoolFormer": ("PoolFormerModel", {"depths": [1, 1, 1, 1]}, (96, 96)),
    "FocalNet": ("FocalNetModel", {"depths": [1, 1, 1, 1], "embed_dim": 32}, (96, 96)),
    "DINOv3 ConvNeXt": ("DINOv3ConvNextModel", {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128]}, (96, 96)),
}


def members() -> list[Member]:
    """Return one member a family."""
    return [
        Member(
            library="transformers",
            family=family,
            name=name,
            build=partial(_build, name, options),
            size_px=size_px,
            call=lambda model, pixels: model(pixel_values=pixels),
        )
        for family, (name, options, size_px) in _FAMILIES.items()
    ]


def _build(name: str, options: dict[str, Any], *, fused: bool) -> nn.Module:
    """Return a model from its configuration, with the library's own choice of attention, or with its eager one."""
    cls: Any = getattr(transformers, name)
    known = cls.config_class().to_dict()
    config = cls.config_class(**{key: value for key, value in options.items() if key in known or key == "image_size"})
    if fused:
        made: nn.Module = cls._from_config(config)
        return made
    plain: nn.Module = cls._from_config(config, attn_implementation="eager")
    return plain

"""timm's names: which are plain vision transformers, which have other token attention, what families there are."""

import fnmatch
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import nn

from mmattn.errors import NotFoundError, nearest
from mmattn.interception.protocol import ModelFamily

from .rehearsal import Rehearsal, check_attends, rehearse

# The timm modules whose architectures are plain vision transformers.
MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "deit",
    "eva",
    "beit",
    "vitamin",
)

_PLAIN = {
    "vit": "vision transformers: ViT, DINOv2, DINOv3, CLIP, SigLIP, AugReg, PE, hybrids",
    "deit": "DeiT, with and without distillation token",
    "deit3": "DeiT III",
    "flexivit": "FlexiViT, any patch size",
    "aimv2": "AIMv2",
    "beit": "BEiT",
    "beitv2": "BEiT v2",
    "beit3": "BEiT-3, its vision tower",
    "eva": "EVA",
    "eva02": "EVA-02, rotary positions",
    "vitamin": "ViTamin, a convolutional stem and a plain transformer",
}

# The others by layout; patterns of names. What is not here may have attention all the same: names are not refused
# for being absent, only for having none when they are rehearsed.
_OTHERS: dict[tuple[str, ...], str] = {
    ("swin_*", "swinv2_*"): "shifted windows: Swin, Swin v2, Swin v2 CR, Swin S3",
    ("maxvit_*", "maxxvit*", "coatnet_*", "coatnext_*"): "blocks and grids: MaxViT, MaxxViT, CoAtNet",
    ("hiera_*", "sam2_hiera_*", "hieradet_*"): "mask units and pooled queries: Hiera, SAM 2's encoder",
    ("mvitv2_*",): "MViT v2, pooled queries and keys",
    ("pvt_v2_*", "twins_*"): "keys from a coarser grid: PVT v2, Twins",
    ("crossvit_*",): "CrossViT, two grids that exchange class tokens",
    ("cait_*", "volo_*", "xcit_*"): "a class token that joins late: CaiT, VOLO; XCiT's class attention",
    (
        "pit_*",
        "levit_*",
        "visformer_*",
        "convit_*",
    ): "pools between stages: PiT, LeViT, Visformer; ConViT",
    ("nest_*", "tnt_*"): "nested: NesT's blocks, TNT's inner and outer tokens",
    (
        "gcvit_*",
        "davit_*",
        "samvit_*",
        "tiny_vit_*",
    ): "windows: GCViT, DaViT (not its channel blocks), SAM, TinyViT",
    ("naflexvit_*", "gemma4_vit_*", "qwen3_vit_*", "deepseek_vit_*"): "any aspect: NaFlexViT, encoders of Gemma, Qwen",
    ("botnet*", "*botnet*", "*botnext*", "*halonet*", "*halonext*", "haloregnetz*"): "in a ResNet: BoTNet, HaloNet",
    ("resnet50*_clip", "resnet101_clip"): "CLIP's ResNets, their attention pool",
    ("efficientformer_*", "efficientformerv2_*", "efficientvit_m*", "shvit_*", "iformer_*"): (
        "small and fast: EfficientFormer, EfficientViT of Microsoft, SHViT, iFormer"
    ),
    ("mobilevit_*", "mobilenetv4_hybrid_*", "mobilenetv5_*", "nextvit_*", "caformer_*", "lowformer_b*", "cpubone_*"): (
        "convolutions and attention: MobileViT, MobileNetV4 hybrid, NextViT, CAFormer, LowFormer"
    ),
    ("fastvit_sa*", "fastvit_ma*", "fastvit_mci*", "csatv2*"): "late stages with attention: FastViT, CSATv2",
}


def is_plain(name: str) -> bool:
    """Whether timm's `name` (with or without tag) is a plain vision transformer."""
    return any(timm.models.is_model_in_modules(name.partition(".")[0], [module]) for module in MODULES)


def check_known(name: str) -> None:
    """Check that timm knows a name (with or without tag).

    Raises
    ------
    NotFoundError
        It does not; the nearest names are listed.

    """
    if not timm.is_model(name.partition(".")[0]):
        known = [known for module in MODULES for known in timm.list_models(module=module)]
        known += [other for other in timm.list_models() if other not in set(known)]
        raise NotFoundError(f'timm has no model "{name}". The nearest are: {nearest(name, known)}. Pass one of those.')


def check_attention(name: str) -> None:
    """Check that models of a name have attention between tokens, before weights are fetched.

    Raises
    ------
    NoAttentionError, ModelError
        They have none, or another kind.

    """
    found = None if is_plain(name) else rehearsal_of(name.partition(".")[0])
    if found is not None:
        check_attends(found, named=name)


@lru_cache(maxsize=64)
def rehearsal_of(architecture: str) -> Rehearsal | None:
    """Return what an architecture does on the meta device; None where it cannot be built or run there."""
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(architecture).eval()
    except Exception:  # an initialisation that reads its numbers
        return None
    config: Any = getattr(model, "pretrained_cfg", {})
    found = rehearse(model, shape=(1, *config.get("input_size", (3, 224, 224))), call=lambda alive, x: alive(x))
    return None if found.problem else found


def plain_families() -> Iterable[ModelFamily]:
    """Return one line for each family of plain vision transformers in the installed timm."""
    names: dict[str, list[str]] = {}
    for module in MODULES:
        for name in timm.list_models(module=module):
            names.setdefault(name.split("_")[0], []).append(name)
    return [
        _family(f"timm:{family}_*", _PLAIN[family], own) for family, own in sorted(names.items()) if family in _PLAIN
    ]


def other_families() -> Iterable[ModelFamily]:
    """Return one line for each layout of the other families in the installed timm."""
    names = [name for name in timm.list_models() if not is_plain(name)]
    return [
        _family(f"timm:{patterns[0]}", what, own)
        for patterns, what in _OTHERS.items()
        if (own := [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)])
    ]


def _family(name: str, what: str, own: list[str]) -> ModelFamily:
    with_weights = {name.partition(".")[0] for name in timm.list_pretrained()}
    return ModelFamily(
        name=name,
        what=f"{what} ({len(own)} architectures, {len(with_weights & set(own))} pretrained)",
        how_exact="weights and places exact",
        source=f"timm {timm.__version__}, weights from the Hugging Face hub or a file (timm:NAME@FILE)",
    )


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names in a model's config, as `local-dir:` and the hub give them; None where it has none.

    That a model has a thousand classes does not say that they are ImageNet's: who made it knows.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("label_names") or ()
    return tuple(str(name) for name in names) if 0 < len(names) == getattr(model, "num_classes", 0) else None

"""timm's families: the smallest member of each layout, and the families that have no attention."""

from functools import partial
from typing import Any

import timm
from timm.layers import set_fused_attn
from torch import nn

from .coverage_models import Member

# family: (member, size in px or (width, height), options that make it smaller)
_ATTENTION: dict[str, tuple[str, int | tuple[int, int], dict[str, Any]]] = {
    "vision_transformer": ("test_vit", 160, {}),
    "vision_transformer, register tokens (DINOv2)": ("vit_small_patch14_reg4_dinov2", 168, {"depth": 4}),
    "vision_transformer, attention pool (SigLIP)": ("test_vit3", 160, {}),
    "vision_transformer, differential attention": ("vit_dwee_patch16_reg1_gap_256", 128, {"depth": 4}),
    "vision_transformer, parallel differential blocks": ("vit_dpwee_patch16_reg1_gap_256", 128, {"depth": 4}),
    "vision_transformer, parallel branches": ("vit_small_patch16_18x2_224", 96, {"depth": 3}),
    "vision_transformer, BEiT3": ("beit3_base_patch16_224", 96, {"depth": 3}),
    "vision_transformer, FlexiViT": ("flexivit_small", 240, {"depth": 3}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224, {}),
    "vision_transformer_hybrid, ResNet-50": ("vit_base_r50_s16_224", 128, {"depth": 3}),
    "vision_transformer_relpos": ("test_vit_relpos", 160, {}),
    "vision_transformer_relpos, shared": ("vit_srelpos_small_patch16_224", 128, {"depth": 4}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224, {"depth": 4}),
    "vitamin": ("vitamin_small_224", 224, {}),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 384, {"depth": 3}),
    "naflexvit, attention pool (SigLIP 2)": ("naflexvit_base_patch16_siglip", 384, {"depth": 3}),
    "deit": ("deit_tiny_patch16_224", 96, {}),
    "deit, distillation token": ("deit_tiny_distilled_patch16_224", 96, {}),
    "beit": ("beit_base_patch16_224", 96, {"depth": 3}),
    "eva": ("eva02_tiny_patch14_224", 112, {}),
    "eva, DINOv3": ("vit_tiny_patch16_dinov3_qkvb", 128, {}),
    "eva, PE core (attention pool)": ("vit_pe_core_tiny_patch16_384", 128, {}),
    "eva, PE spatial": ("vit_pe_spatial_tiny_patch16_512", 128, {}),
    "deepseek_vit": ("deepseek_vit_412m", 196, {"depth": 2}),
    "gemma4_vit": ("gemma4_vit_167m", 192, {"depth": 2}),
    "qwen3_vit": ("qwen3_vit_88m", 192, {"depth": 2}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224, {"depths": (2, 2, 2, 2)}),
    "swin_transformer, S3": ("swin_s3_tiny_224", 224, {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 256, {"depths": (2, 2, 2, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_ns_224", 224, {"depths": (2, 2, 2, 2)}),
    "maxxvit, MaxViT": ("test_maxvit", 160, {}),
    "maxxvit, MaxViT with MLP bias": ("maxvit_rmlp_pico_rw_256", 256, {}),
    "maxxvit, MaxViT parallel": ("maxvit_tiny_pm_256", 256, {}),
    "maxxvit, CoAtNet": ("test_coatnet", 160, {}),
    "maxxvit, CoAtNet with MLP bias": ("coatnet_rmlp_nano_rw_224", 224, {}),
    "maxxvit, CoAtNeXt": ("coatnext_nano_rw_224", 224, {}),
    "maxxvit, MaxxViT": ("maxxvit_rmlp_nano_rw_256", 256, {}),
    "maxxvit, MaxxViT v2": ("maxxvitv2_nano_rw_256", 256, {}),
    "twins, PCPVT": ("twins_pcpvt_small", 224, {}),
    "twins, SVT": ("twins_svt_small", 224, {}),
    "pvt_v2": ("pvt_v2_b0", 224, {}),
    "pvt_v2, linear (pooled keys)": ("pvt_v2_b2_li", 224, {}),
    "nextvit": ("nextvit_small", 224, {}),
    "mobilenetv3, MobileNetV4 hybrid": ("mobilenetv4_hybrid_medium_075", 224, {}),
    "mobilenetv5": ("mobilenetv5_base", 256, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "mvitv2, class token": ("mvitv2_small_cls", 224, {}),
    "levit": ("levit_128s", 224, {}),
    "levit, convolutional": ("levit_conv_128s", 224, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pit, distillation token": ("pit_ti_distilled_224", 224, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "hiera, absolute windows": ("hiera_small_abswin_256", 256, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 256, {}),
    "nest": ("nest_tiny", 224, {}),
    "tnt": ("tnt_s_patch16_224", 112, {}),
    "tnt, legacy": ("tnt_s_legacy_patch16_224", 112, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "crossvit, dagger": ("crossvit_9_dagger_240", 240, {}),
    "cait": ("cait_xxs24_224", 224, {"depth": 6}),
    "volo": ("volo_d1_224", 224, {}),
    "xcit": ("xcit_nano_12_p16_224", 224, {}),
    "byoanet, HaloNet": ("halonet26t", 256, {}),
    "byoanet, HaloNet with SE": ("sehalonet33ts", 256, {}),
    "byoanet, HaloNet h1": ("halonet_h1", 256, {}),
    "byoanet, BoTNet": ("botnet26t_256", 256, {}),
    "byoanet, lambda + halo + bottleneck": ("lamhalobotnet50ts_256", 256, {}),
    "byobnet, CLIP ResNet (attention pool)": ("resnet50_clip", 224, {}),
    "byobnet, global context": ("gcresnet33ts", 256, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "davit": ("davit_tiny", 224, {}),
    "fastvit": ("fastvit_sa12", 256, {}),
    "fastvit, MobileCLIP": ("fastvit_mci0", 256, {}),
    "tiny_vit": ("tiny_vit_5m_224", 224, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "mobilevit": ("mobilevit_xxs", 256, {}),
    "convit": ("convit_tiny", 224, {}),
    "cpubone": ("cpubone_nano", 224, {}),
    "csatv2": ("csatv2", 512, {}),
    "iformer": ("iformer_t", 224, {}),
    "lowformer": ("lowformer_b0", 224, {}),
    "metaformer, CAFormer": ("caformer_s18", 224, {}),
    "shvit": ("shvit_s1", 224, {}),
    "visformer": ("visformer_tiny", 224, {}),
}

# Attention in name or in spirit, but no softmax of tokens over tokens.
_OTHER: dict[str, tuple[str, int]] = {
    "byoanet, LambdaNet": ("lambda_resnet26t", 256),
    "byobnet, BAT": ("bat_resnext26ts", 256),
    "coat": ("coat_tiny", 224),
    "coat, lite": ("coat_lite_tiny", 224),
    "edgenext": ("edgenext_xx_small", 256),
    "efficientvim": ("efficientvim_m1", 224),
    "efficientvit_mit": ("efficientvit_b0", 224),
    "mobilevit, v2": ("mobilevitv2_050", 256),
    "swiftformer": ("swiftformer_xs", 224),
    "lowformer, e1": ("lowformer_e1", 224),
    "fastvit, T8": ("fastvit_t8", 256),
}


def members() -> list[Member]:
    """Return all that have attention by name."""
    found = [_member(family, name, size, options) for family, (name, size, options) in _ATTENTION.items()]
    return found + [_member(family, name, size, {}) for family, (name, size) in _OTHER.items()]


def modules_without() -> list[str]:
    """Return the modules of timm that no member above comes from."""
    mine = {family.partition(",")[0] for family in (*_ATTENTION, *_OTHER)}
    return [name for name in timm.list_modules() if name not in mine]


def smallest(module: str) -> list[str]:
    """Return the models of a module, those that their names call small first."""
    return sorted(timm.list_models(module=module), key=lambda name: ("test" not in name, len(name), name))


def plain_member(module: str) -> Member:
    """Return a member of a module, whatever it is."""
    name = smallest(module)[0]
    size = timm.get_pretrained_cfg(name)
    return _member(module, name, size.input_size[-1] if size is not None else 224, {})


def _member(family: str, name: str, size: int | tuple[int, int], options: dict[str, Any]) -> Member:
    width, height = size if isinstance(size, tuple) else (size, size)
    said = [f"{key}={value}" for key, value in options.items()]
    return Member(
        library="timm",
        family=family,
        name=name,
        build=partial(_build, name, (height, width), options),
        size_px=(width, height),
        options=", ".join(said),
    )


def _build(name: str, size: tuple[int, int], options: dict[str, Any], *, fused: bool) -> nn.Module:
    """Return a timm model for a size, with or without fused attention."""
    own = timm.get_pretrained_cfg(name)
    fixed = own is not None and tuple(own.input_size[-2:]) != size
    set_fused_attn(fused)
    try:
        if fixed:
            try:
                return timm.create_model(name, img_size=size, **options)
            except TypeError:  # takes any size
                pass
        return timm.create_model(name, **options)
    finally:
        set_fused_attn(True)

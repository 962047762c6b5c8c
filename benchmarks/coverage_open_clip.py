"""open_clip's families: every configuration of its list belongs to one, and the smallest of each is tried.

A family is how the image tower is built, how the text tower, and whether a decoder stands on both. Depths and
widths are cut, vocabularies too; what a configuration says of patches, pools, masks and positions stays.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import open_clip
import timm
import torch
import transformers as hf
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from .coverage_models import Member

WIDTH, VOCABULARY = 64, 512

# Parts of timm's names, the first that fits.
_TOWERS = {
    "convnext": "ConvNeXt",
    "eva02_": "EVA-02",
    "eva_": "EVA-01",
    "fastvit_mci": "MobileCLIP, late attention",
    "_mci_": "MobileCLIP, ViT",
    "_siglip_": "SigLIP",
    "pe_core": "PE-Core",
    "vitamin": "ViTamin",
    "swin_": "Swin",
    "_gap_": "ViT, averaged",
    "_relpos_": "ViT, relative positions",
    "_clip_": "ViT of timm",
}

_SMALL: tuple[dict[str, Any], ...] = (
    {"depths": (2, 2, 2, 2), "embed_dim": 32, "num_heads": (2, 2, 4, 4)},  # Swin
    {"embed_dim": 384, "depth": 2},  # ViTamin, whose stem has the width of the rest
    {"depth": 2},
    {},
)


@cache
def members() -> list[Member]:
    """Return the smallest configuration of each family."""
    known: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        known.setdefault(family_of(open_clip.get_model_config(name)), []).append(name)
    return [_member(family, names) for family, names in known.items()]


def family_of(config: Mapping[str, Any]) -> str:
    """Return the family of a configuration."""
    return ("CoCa, " if "multimodal_cfg" in config else "") + f"{_vision(config['vision_cfg'])} and {_text(config)}"


def _vision(given: Mapping[str, Any]) -> str:
    name = given.get("timm_model_name")
    if name:
        tower = next(said for part, said in _TOWERS.items() if part in name)
        pool = given.get("timm_pool") or "its own"
        return tower if pool in ("avg", "its own") else f"{tower} ({pool})"
    if isinstance(given["layers"], list):
        return "ResNet"
    return "ViT" + (" with a pool" if given.get("attentional_pool") else " (mean)" if given.get("pool_type") else "")


def _text(config: Mapping[str, Any]) -> str:
    given = config["text_cfg"]
    if "hf_model_name" in given:
        name = given["hf_model_name"]
        return next(said for said in ("xlm-roberta", "roberta", "mt5", "nllb") if said in name)
    mask = "text to all" if given.get("no_causal_mask") else "causal text"
    return f"{mask} ({'class token' if given.get('embed_cls') else given.get('pool_type', 'argmax')})"


def _member(family: str, names: list[str]) -> Member:
    name = min(names, key=lambda one: _pixels(open_clip.get_model_config(one)["vision_cfg"]))
    config = open_clip.get_model_config(name)
    size = config["vision_cfg"].get("image_size", 224)
    return Member(
        library="open_clip",
        family=family,
        name=name,
        build=partial(_build, name),
        size_px=(size, size),
        call=_both,
        options=f"made small; stands for {len(names)}",
        given=partial(_pair, length=_context(config), end=VOCABULARY - 1),
    )


def _pixels(given: Mapping[str, Any]) -> tuple[int, str]:
    return int(given.get("image_size", 224)), str(given.get("timm_model_name", ""))


def _context(config: Mapping[str, Any]) -> int:
    return 24 if "hf_model_name" in config["text_cfg"] else int(config["text_cfg"].get("context_length", 77))


def _both(model: nn.Module, pixels: Tensor) -> Any:
    visual: Any = model.visual
    return visual(pixels)


def _pair(pixels: Tensor, *, length: int, end: int) -> dict[str, Tensor]:
    """Return pixels with a text of random pieces, which ends in the middle of a row and is padded."""
    ids = torch.zeros(len(pixels), length, dtype=torch.long)
    real = length * 2 // 3
    ids[:, :real] = torch.randint(3, end, (len(pixels), real), generator=torch.Generator().manual_seed(2))
    ids[:, real] = end
    return {"image": pixels, "text": ids}


def _build(name: str, *, fused: bool) -> nn.Module:
    """Return the model of a configuration, made small; torch's math kernel shows its softmax."""
    config = open_clip.get_model_config(name)
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    trunk = vision.pop("timm_model_name", None)
    pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if isinstance(vision.get("layers"), list):
        vision.update(layers=[1, 1, 1, 1], width=16)
    elif trunk is None:
        vision.update(layers=2, width=WIDTH, head_width=16)
    else:
        vision = {"layers": 1, "width": WIDTH, "head_width": 16, "image_size": 32}  # its place is taken below
    foreign = text.get("hf_model_name")
    small = {"layers": 2, "width": WIDTH, "heads": 4, "vocab_size": VOCABULARY}
    text = {**({} if foreign else text), **small, "output_tokens": text.get("output_tokens", False)}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text.pop(key, None)
    model: Any
    if "multimodal_cfg" in config:
        decoder = {**config["multimodal_cfg"], **small}
        vision.update({"attn_pooler_heads": 4} if vision.get("attentional_pool") else {})
        model = CoCa(WIDTH, decoder, text, vision)
        nn.init.normal_(model.text_decoder.text_projection, std=0.1)
    else:
        custom = config.get("custom_text") or foreign or trunk
        model = (CustomTextCLIP if custom else CLIP)(WIDTH, vision, text)
    if trunk is not None:
        model.visual = _timm(trunk, pool=pool, projection=projection, size=config["vision_cfg"].get("image_size", 224))
    if foreign:
        pooler = config["text_cfg"].get("hf_pooler_type", "mean_pooler")
        model.text = _foreign(foreign, pooler=pooler, tokens=bool(text["output_tokens"]))
    return model


def _timm(name: str, *, pool: str, projection: str | None, size: int) -> nn.Module:
    """Return open_clip's image tower around a trunk of timm that is made small where it can be."""
    tower: Any = open_clip.timm_model.TimmModel("test_vit", WIDTH, image_size=size)
    given = {"num_classes": 0 if projection else WIDTH, **({"global_pool": pool} if pool else {})}
    for changes in _SMALL:
        try:
            tower.trunk = timm.create_model(name, **given, **changes)
            break
        except (TypeError, AssertionError, RuntimeError):
            continue
    out = WIDTH if not projection else tower.trunk.num_features
    keeps = projection in (None, "", "none")
    head = nn.Sequential() if keeps else nn.Sequential(OrderedDict(proj=nn.Linear(out, WIDTH, bias=False)))
    tower.head = nn.Sequential(OrderedDict(proj=nn.Linear(out, WIDTH, bias=False))) if projection == "none" else head
    return tower


def _foreign(name: str, *, pooler: str, tokens: bool) -> nn.Module:
    """Return open_clip's text tower around a small encoder of transformers."""
    plain = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    config: Any
    if "mt5" in name:
        config = hf.MT5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    elif "nllb" in name:
        sizes = {f"{side}_{what}": number for side in ("encoder", "decoder") for what, number in _ENCODER.items()}
        config = hf.M2M100Config(vocab_size=VOCABULARY, d_model=WIDTH, pad_token_id=0, **sizes)
    elif "xlm" in name:
        config = hf.XLMRobertaConfig(**plain, intermediate_size=128, max_position_embeddings=90, pad_token_id=0)
    else:
        config = hf.RobertaConfig(**plain, intermediate_size=128, max_position_embeddings=90, pad_token_id=0)
    tower: Any = HFTextEncoder("", WIDTH, config=config, pooler_type=pooler, proj_type="linear", output_tokens=tokens)
    if config.is_encoder_decoder:
        tower.transformer = tower.transformer.encoder
    return tower


_ENCODER = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}

"""One small model of each structural family of open_clip with random weights, and attention worked out apart."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers as hf
from open_clip.coca_model import CoCa, MultimodalCfg
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention
from small_towers import word_pieces
from torch import Tensor, nn
from written_out import SoftmaxLog, formula

CONTEXT = 16
WIDTH = 32


def vision(**changes: Any) -> CLIPVisionCfg:
    return CLIPVisionCfg(
        **{"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": 64, **changes}
    )


def text(**changes: Any) -> CLIPTextCfg:
    return CLIPTextCfg(**{"context_length": CONTEXT, "width": WIDTH, "heads": 2, "layers": 2, **changes})


def openai(**changes: Any) -> CLIP:
    return CLIP(24, vision(**changes), text())


def clipa() -> CLIP:
    return CLIP(24, vision(pool_type="avg"), text(no_causal_mask=True, pool_type="last"))


def resnet() -> CLIP:
    return CLIP(24, vision(layers=(1, 1, 1, 1), width=8, image_size=96, head_width=64), text())


def timm_tower(
    name: str, *, size: int, pool: str, text_cfg: CLIPTextCfg | None = None, **changes: Any
) -> CustomTextCLIP:
    """A CustomTextCLIP whose image tower is open_clip's TimmModel around a trunk that is made small."""
    given = CLIPVisionCfg(timm_model_name="test_vit", timm_pool="avg", timm_proj="linear", image_size=160)
    model = CustomTextCLIP(24, given, text() if text_cfg is None else text_cfg)
    tower: Any = model.visual
    trunk = timm.create_model(name, num_classes=0, global_pool=pool, **changes)
    tower.trunk, tower.image_size = trunk, (size, size)
    tower.head = nn.Sequential(OrderedDict(proj=nn.Linear(trunk.num_features, 24, bias=False)))
    return model


def siglip() -> CustomTextCLIP:
    words = text(no_causal_mask=True, pool_type="last", proj_bias=True)
    small = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
    return timm_tower("vit_base_patch16_siglip_224", size=64, pool="map", text_cfg=words, **small)


def coca(**changes: Any) -> CoCa:
    pool = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4}
    words = text(context_length=CONTEXT - 1, embed_cls=True, output_tokens=True)
    decoder = MultimodalCfg(context_length=CONTEXT - 1, width=WIDTH, heads=2, layers=2)
    model = CoCa(WIDTH, decoder, words, vision(output_tokens=True, **{**pool, **changes}))
    nn.init.normal_(model.text_decoder.text_projection, std=0.1)  # open_clip leaves it as memory is
    return model


def foreign_text(pooler: str) -> CustomTextCLIP:
    """A text tower of Hugging Face; its tokenizer is `word_pieces(pad=1)`."""
    config = hf.RobertaConfig(
        vocab_size=len(word_pieces(pad=1)),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        pad_token_id=1,
        initializer_range=0.5,
    )
    model = CustomTextCLIP(24, vision(), text())
    model.text = HFTextEncoder("", 24, config=config, pooler_type=pooler, proj_type="linear")
    return model


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build a member, and what is expected of its maps."""

    build: Callable[[], nn.Module]
    readout: str = "cls"
    special: tuple[str, ...] = ("cls",)
    grid: tuple[int, int] = (4, 4)
    vision_layers: int = 2


EVA = {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN = {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}

FAMILIES = {
    "OpenAI": Family(build=openai),
    "OpenAI, own attention": Family(build=lambda: openai(qk_norm=True, scale_heads=True)),
    "CLIPA": Family(build=clipa, readout="mean"),
    "ResNet": Family(build=resnet, readout="pool", special=("mean",), grid=(3, 3), vision_layers=1),
    "SigLIP": Family(build=siglip, readout="pool", special=(), vision_layers=3),
    "EVA-02": Family(build=lambda: timm_tower("eva02_tiny_patch14_224", size=56, pool="token", **EVA)),
    "PE-Core": Family(
        build=lambda: timm_tower("vit_pe_core_tiny_patch16_384", size=64, pool="map", img_size=64, depth=2),
        readout="pool",
        vision_layers=3,
    ),
    "ViTamin": Family(
        build=lambda: timm_tower("vitamin_small_224", size=64, pool="avg", img_size=64, embed_dim=384, depth=1),
        readout="mean",
        special=(),
        vision_layers=1,
    ),
    "MobileCLIP": Family(build=lambda: timm_tower("fastvit_mci0", size=128, pool="avg"), readout="mean", special=()),
    "Swin": Family(
        build=lambda: timm_tower("swin_tiny_patch4_window7_224", size=56, pool="avg", **SWIN),
        readout="mean",
        special=(),
        grid=(14, 14),
        vision_layers=4,
    ),
    "CoCa": Family(build=coca, readout="pool", vision_layers=3),
    "CoCa without a pool": Family(build=lambda: coca(attentional_pool=False)),
    "CoCa, two pools": Family(build=lambda: coca(attentional_pool="cascade"), readout="pool", vision_layers=4),
}


@functools.cache
def clip(name: str) -> Any:
    """A member; shared, and not to be changed."""
    torch.manual_seed(0)
    return FAMILIES[name].build().eval()


def worked_out(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """The weights of each attention of a model while `run` runs it, by module path, without the fused kernels.

    Torch's own layers are asked for their weights, timm's run unfused, and open_clip's are written out.
    """
    found: dict[str, Tensor] = {}
    hooks, switched = [], []
    with torch.no_grad(), SoftmaxLog() as log:
        for path, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks.append(module.register_forward_pre_hook(_asks(path, found), with_kwargs=True))
            elif isinstance(module, AttentionPool2d | Attention):
                hooks.append(module.register_forward_pre_hook(_written(path, found), with_kwargs=True))
            elif hasattr(module, "fused_attn"):
                switched.append((module, module.fused_attn))
                module.fused_attn = False
                hooks.append(module.register_forward_hook(_last(path, found, log)))
        run()
    for hook in hooks:
        hook.remove()
    for module, fused in switched:
        module.fused_attn = fused
    return found


def _asks(path: str, found: dict[str, Tensor]) -> Callable[..., None]:
    def look(module: Any, args: Any, kwargs: Any) -> None:
        if not kwargs.get("need_weights", True):
            kwargs = {**kwargs, "need_weights": True, "average_attn_weights": False}
            found[path] = module(*args, **kwargs)[1].detach()

    return look


def _last(path: str, found: dict[str, Tensor], log: SoftmaxLog) -> Callable[..., None]:
    def look(module: Any, args: Any, output: Any) -> None:
        found[path] = log.results[-1]

    return look


def _written(path: str, found: dict[str, Tensor]) -> Callable[..., None]:
    def look(module: Any, args: Any, kwargs: Any) -> None:
        x = args[0]
        if isinstance(module, AttentionPool2d):
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(1, keepdim=True), x], 1) + module.positional_embedding
            q, k = module.q_proj(x), module.k_proj(x)
        else:
            q, k, _ = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, -1)
        q, k = (one.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for one in (q, k))
        if isinstance(module, Attention):
            q, k = module.ln_q(q), module.ln_k(k)
        found[path] = formula(q, k, mask=kwargs.get("attn_mask")).float()

    return look

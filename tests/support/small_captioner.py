"""A small CoCa with random weights: its decoder asks a pool's slots, or patches where there is no pool."""

import functools
from typing import Any

import open_clip
import torch

VISION = {
    "image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "output_tokens": True, "head_width": 32,
    "attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 2,
}  # fmt: skip
TEXT = {"context_length": 20, "width": 64, "heads": 2, "layers": 1, "embed_cls": True, "output_tokens": True}
DECODER = {"width": 64, "heads": 2, "layers": 2, "context_length": 20}


@functools.cache
def coca(*, pool: bool = True) -> Any:
    """The model; shared, and not to be changed."""
    torch.manual_seed(0)
    vision = {**VISION, "attentional_pool": pool}
    model = open_clip.CoCa(embed_dim=64, multimodal_cfg=DECODER, text_cfg=TEXT, vision_cfg=vision)
    for path, parameter in model.named_parameters():
        if ("resblocks" in path or "attn" in path) and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)  # sharp maps
        if path == "text_decoder.text_projection":
            torch.nn.init.normal_(parameter)  # open_clip 3.3 leaves it as memory was
    return model.eval()

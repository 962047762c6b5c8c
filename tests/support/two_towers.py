"""A small model of open_clip with two towers, sharp, and its image tower written out up to the last attention."""

import numpy as np
import open_clip
import torch
from torch.nn import functional as F

TEXTS = ["a red cat on the mat", "two dogs"]
PHOTO = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXT = {"width": 64, "heads": 2, "layers": 2}


def small(seed=0, *, vision=None, text=None):
    torch.manual_seed(seed)
    model = open_clip.CLIP(embed_dim=16, vision_cfg={**VISION, **(vision or {})}, text_cfg={**TEXT, **(text or {})})
    for path, parameter in model.named_parameters():
        if "resblocks" in path and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)  # sharp maps
    return model.eval()


def pixels_of(photo):
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return ((torch.tensor(photo).permute(2, 0, 1) / 255 - mean) / std)[None]


def ids_of(texts):
    return open_clip.get_tokenizer("ViT-B-32")(texts)


def blanked(ids):
    """Padding between the first token and the end."""
    out = ids.clone()
    for row in out:
        row[1 : int(row.argmax())] = 0
    return out


def picture_tokens(model, pixels):
    """What enters the last block."""
    return model.visual.transformer.resblocks[0](model.visual._embeds(pixels))


def last_attention(model, *, ask):
    """The last block of the image tower written out; `ask(weights, value, query, key)` is told its parts."""
    block = model.visual.transformer.resblocks[1]
    tokens = picture_tokens(model, pixels_of(PHOTO)).detach()
    normed, heads = block.ln_1(tokens), block.attn.num_heads
    flat = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in flat)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).detach().requires_grad_()
    output = (weights @ v).transpose(1, 2).flatten(2)
    x = tokens + block.attn.out_proj(output)
    x = x + block.mlp(block.ln_2(x))
    feature = F.normalize(model.visual.ln_post(x)[:, 0] @ model.visual.proj, dim=-1)
    with torch.no_grad():
        words = F.normalize(model.encode_text(ids_of(TEXTS)), dim=-1)
    logits = model.logit_scale.exp() * feature @ words.T
    return ask(weights, output, logits[0], flat)

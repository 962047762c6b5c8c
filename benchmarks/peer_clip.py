"""Chefer, Gur & Wolf's procedure for CLIP as their notebook has it, for open_clip's own classes.

Theirs is `CLIP_explainability.ipynb` of github.com/hila-chefer/Transformer-MM-Explainability (MIT). Their repository
brings a copy of CLIP whose attention keeps its probabilities. Here the same is done to open_clip's
model: each attention's forward is replaced by its formula, which keeps them. Then, for one picture and n texts: the
picture is repeated n times, the logit of each pair is summed, and R = 1 + (A * dS/dA)^+ of the last layer is read, in
the class token's row for the picture and in the end token's for the text.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class ChefersClip:
    """A CLIP of open_clip whose attention keeps its probabilities, and their `interpret`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = cast(Any, model)
        for blocks in (self.model.visual.transformer.resblocks, self.model.transformer.resblocks):
            for block in blocks:
                block.attn.forward = _Keeping(block.attn)

    def interpret(
        self, image: Float[Tensor, "1 channel row col"], texts: Int[Tensor, "text token"]
    ) -> tuple[Float[Tensor, "text token"], Float[Tensor, "text patch"]]:
        """Return for each text the relevance of its tokens and of the picture's patches."""
        count = len(texts)
        seen = self.model.encode_image(image.repeat(count, 1, 1, 1), normalize=True)
        said = self.model.encode_text(texts, normalize=True)
        logits = self.model.logit_scale.exp() * seen @ said.T
        score = (torch.eye(count, device=image.device) * logits).sum()
        self.model.zero_grad()
        of_image = self._last(self.model.visual.transformer.resblocks, score)
        of_text = self._last(self.model.transformer.resblocks, score)
        ends = texts.argmax(dim=-1)
        return of_text[torch.arange(count), ends], of_image[:, 0, 1:]

    def _last(self, blocks: Any, score: Float[Tensor, ""]) -> Float[Tensor, "text token token"]:
        """Return R after the last layer (`start_layer=-1`)."""
        kept = blocks[-1].attn.forward.attn_probs
        (grad,) = torch.autograd.grad(score, [kept], retain_graph=True)
        relevance = torch.eye(kept.shape[-1], device=kept.device).expand(len(kept), -1, -1)
        cam = (grad * kept.detach()).clamp(min=0).mean(dim=1)
        return relevance + torch.bmm(cam, relevance)


class _Keeping:
    """An attention's forward as its formula, which keeps its probabilities [sample, head, query, key]."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        self.attention = attention
        self.attn_probs = torch.zeros(0)

    def __call__(self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        attention = self.attention
        parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (one.reshape(*x.shape[:2], attention.num_heads, -1).transpose(1, 2) for one in parts)
        scores = q * attention.head_dim**-0.5 @ k.mT
        self.attn_probs = (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1)
        mixed = (self.attn_probs @ v).transpose(1, 2).reshape(x.shape)
        return attention.out_proj(mixed), None

"""Which patches a score between a picture and a text rests on, by Chefer et al. 2021, written out.

For tokens R = 1 at first; each block adds A R, where A is the mean over heads of attention times its gradient, where
positive; the pooler's one query reads the last: its A times R. The forward pass is written out, operation by operation,
so that the gradient at each attention is at hand; a test holds it against the model's own.
"""

import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn
from torch.nn import functional as F


def chefer(model: CustomTextCLIP, pixels: Tensor, words: Tensor) -> Tensor:
    """Return the relevance of each patch for the score of picture i and text feature i, [sample, patch]."""
    with torch.enable_grad():
        seen, attentions = seen_by(model, pixels)
        score = (F.normalize(seen, dim=-1) * words).sum()
        grads = torch.autograd.grad(score, attentions)
    shares = [(a.detach() * g).clamp_min(0).mean(dim=1) for a, g in zip(attentions, grads, strict=True)]
    relevance = torch.eye(shares[0].shape[-1]).expand_as(shares[0])
    for share in shares[:-1]:
        relevance = relevance + share @ relevance
    return (shares[-1] @ relevance)[:, 0, 1:]


def seen_by(model: CustomTextCLIP, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the features of pictures, and the attention [sample, head, query, key] of each block and of the pooler."""
    visual, attentions = model.visual, []
    tokens = visual._embeds(pixels)
    for block in visual.transformer.resblocks:
        normed = block.ln_1(tokens)
        each = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        mixed, weights = _attended(block.attn, *each)
        tokens = tokens + mixed
        tokens = tokens + block.mlp(block.ln_2(tokens))
        attentions.append(weights)
    pooler = visual.attn_pool
    normed, query = pooler.ln_k(tokens), pooler.ln_q(pooler.query).expand(len(tokens), -1, -1)
    q_bias, k_bias, v_bias = pooler.attn.in_proj_bias.chunk(3)
    if pooler.attn.in_proj_weight is None:
        matrices = pooler.attn.q_proj_weight, pooler.attn.k_proj_weight, pooler.attn.v_proj_weight
    else:
        matrices = pooler.attn.in_proj_weight.chunk(3)
    q, k, v = (
        F.linear(of, matrix, bias)
        for of, matrix, bias in zip((query, normed, normed), matrices, (q_bias, k_bias, v_bias), strict=True)
    )
    pooled, weights = _attended(pooler.attn, q, k, v)
    return visual.ln_post(pooled)[:, 0] @ visual.proj, [*attentions, weights]


def _attended(attention: nn.MultiheadAttention, *each: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is mixed by attention from projected queries, keys and values, and the weights."""
    heads = attention.num_heads
    q, k, v = (one.reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in each)
    weights = (q @ k.mT * attention.head_dim**-0.5).softmax(dim=-1)
    weights.requires_grad_()
    return attention.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights

"""Grad-ECLIP: what the patches' values bring to the feature, weighed by how near their keys are to its query.

    map[i] = ReLU( sum over channels of (dS/do)_c  v_ic ) * cos(q, k_i), brought to 0 to 1 over the patches

in the last attention, whose output o the feature is read from: at the class token, or at the query of the attention
pool. Zhao, Wang, Jiang, Shen, Song, Ding & Chen (2024), "Gradient-based Visual Explanation for Transformer-based
CLIP", ICML. It gives one map for each prompt.

The gradient of the weights is dS/dA_i = dS/do . v_i, head by head; summed over heads it is the sum over all channels.

Where we depart: the attention is the model's own, with all its heads (the released code runs the last
layer with one), and S is the model's logit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.analysis.matching.glance import Glance, glance, refuse_pool_of_slots
from mmattn.analysis.matching.towers import Tower
from mmattn.analysis.queries import ask
from mmattn.errors import ModelError
from mmattn.interception.calls import Call
from mmattn.interception.protocol import Adapter, TwoTowers
from mmattn.schema.layers import AttentionLayer


def gradeclip(
    adapter: Adapter, model: nn.Module, *, image: Tower, prompts: Float[Tensor, "prompt feature"]
) -> Float[Tensor, "prompt patch"]:
    """Return for each prompt what each patch brought to its logit in the last attention.

    Raises
    ------
    ModelError
        No gradients, no single token that the feature is read from, or queries and keys that were not seen.
    """
    assert isinstance(adapter, TwoTowers)
    seen = glance(adapter, model, image)
    logits = adapter.compare(model, image=seen.features, text=prompts.to(seen.features))[0]
    layer, call = seen.layers[-1], seen.calls[-1]
    refuse_pool_of_slots(image, layer, method="gradeclip")
    row = _row(layer, seen, readout=image.prepared.readout)
    patches = torch.as_tensor(layer.key_axis.content, device=seen.features.device)
    near = _nearness(call, row)[patches]
    near = (near - near.min()) / (near.max() - near.min()).clamp(min=torch.finfo(near.dtype).tiny)
    found = torch.zeros(len(logits), len(layer.key_axis), device=near.device)
    for prompt, logit in enumerate(logits):
        slope = seen.gradients(logit)[-1]
        brought = slope.reshape(-1, *slope.shape[-2:])[:, row].sum(dim=0)[patches].float()
        found[prompt, patches] = F.relu(brought) * near
    return found


def _row(layer: AttentionLayer, seen: Glance, *, readout: str) -> int:
    """Return the token that the feature is read from."""
    weights = seen.weights[-1]
    asked = ask(layer.query_axis, None, readout=readout)
    if len(asked.tokens) != 1:
        raise ModelError(
            f'The feature is read from {asked.label}. "gradeclip" reads the row of one token: a class token, or the '
            'query of an attention pool. Use method="interaction" or "chefer".'
        )
    if tuple(weights.shape[-2:]) != (len(layer.query_axis), len(layer.key_axis)):
        raise ModelError(
            f"The last attention {layer.name} is in parts of {weights.shape[-2]} x {weights.shape[-1]} tokens. "
            '"gradeclip" reads one over all tokens. Use method="interaction" or "chefer".'
        )
    return asked.tokens[0]


def _nearness(call: Call, row: int) -> Float[Tensor, " token"]:
    """Return the cosine of a token's query with all keys, over the channels of all heads."""
    if call.q is None or call.k is None or call.q.numel() // call.q.shape[-2] != call.k.numel() // call.k.shape[-2]:
        raise ModelError(
            f"Queries and keys of {call.module} were not seen as they are (its softmax is written out, or heads share "
            'keys). "gradeclip" needs both. Use method="interaction" or "chefer".'
        )
    q, k = (one.reshape(-1, *one.shape[-2:]).float() for one in (call.q, call.k))
    return F.cosine_similarity(q[:, row].flatten()[None], k.transpose(0, 1).flatten(1), dim=1)

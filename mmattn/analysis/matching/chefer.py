"""Chefer's relevance of a picture for a prompt, as published for CLIP: attention times gradient of the last layer.

    R = I + mean over heads of (A * dS/dA)^+,      S the logit of the picture with the prompt

read in the row of the class token, or through the attention pool. Chefer, Gur & Wolf (2021), "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", in the form of their
notebook for CLIP, which reads the last layer alone (`start_layer=-1`): more layers bring artefacts.
It gives one map for each prompt; the formula of a row is that of `mmattn.analysis.chefer`.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.attribution import Attribution
from mmattn.analysis.chefer import chefer as through_layers
from mmattn.analysis.matching.glance import glance, placed
from mmattn.analysis.matching.towers import Tower
from mmattn.errors import ModelError
from mmattn.interception.protocol import Adapter, TwoTowers
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Attributed, Blocks


def chefer(
    adapter: Adapter, model: nn.Module, *, image: Tower, prompts: Float[Tensor, "prompt feature"]
) -> Float[Tensor, "prompt patch"]:
    """Return for each prompt how much each token of the picture raised its logit, by the last layer's attention.

    Raises
    ------
    ModelError
        No gradients, or attention that is put together of several softmaxes.
    """
    assert isinstance(adapter, TwoTowers)
    seen = glance(adapter, model, image)
    logits = adapter.compare(model, image=seen.features, text=prompts.to(seen.features))[0]
    attention = placed(adapter, image, seen.calls, seen.weights)
    rows = []
    for logit in logits:
        slopes = placed(adapter, image, seen.calls, seen.gradients(logit))
        layers = tuple(_times(own, slope) for own, slope in zip(attention, slopes, strict=True))
        maps = AttentionMaps(layers=layers, default_stream=image.stream, readout=image.prepared.readout)
        rows.append(through_layers(Attribution(maps=maps, target="")).values[0])
    return torch.stack(rows)


def _times(own: AttentionLayer, slope: AttentionLayer) -> AttentionLayer:
    parts = []
    for weights, gradient in zip(own.storages, slope.storages, strict=True):
        if not isinstance(weights, Blocks) or not isinstance(gradient, Blocks) or own.name != slope.name:
            raise ModelError(
                f"The attention {own.name} is put together of several softmaxes, each with a gradient of its own. "
                'Attention times gradient is of one. Use method="interaction".'
            )
        assert not isinstance(weights.source, Attributed)
        assert not isinstance(gradient.source, Attributed)
        parts.append(replace(weights, source=Attributed(weights=weights.source, gradient=gradient.source)))
    return replace(own, storage=tuple(parts), normalized="signed")

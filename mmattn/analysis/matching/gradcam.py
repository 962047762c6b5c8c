"""Grad-CAM: the last feature map of a network of convolutions, each channel weighed by its mean gradient.

    map[p] = ReLU( sum over channels of  alpha_c F[p, c] ),     alpha_c = mean over places of  dS / dF[p, c]

S is the logit of the picture with the prompt, F what leaves the last stage. Selvaraju, Cogswell, Das, Vedantam,
Parikh & Batra (2017), "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV. It
gives one map for each prompt, at the places of the last stage.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.analysis.matching.cut import find_cut
from mmattn.analysis.matching.towers import Tower
from mmattn.interception.gradients import refuse_without_gradients
from mmattn.interception.protocol import Adapter, TwoTowers


def gradcam(
    adapter: Adapter, model: nn.Module, *, image: Tower, prompts: Float[Tensor, "prompt feature"]
) -> Float[Tensor, "prompt place"]:
    """Return for each prompt what the channels that raise its logit show, place by place.

    Parameters
    ----------
    image
        A tower whose tokens are the places of its last feature map.

    Raises
    ------
    ModelError
        No gradients.
    """
    assert isinstance(adapter, TwoTowers)
    refuse_without_gradients(model)
    cut = find_cut(model, image)
    with torch.enable_grad():
        logits = adapter.compare(model, image=cut.run.features, text=prompts.to(cut.run.features))[0]
    shown = cut.tokens[0].flatten(0, -2)
    found = []
    for logit in logits:
        (slope,) = torch.autograd.grad(logit, cut.run.tokens, retain_graph=True)
        weights = slope[0].flatten(0, -2).mean(dim=0)
        found.append(F.relu(shown @ weights))
    return torch.stack(found).float()

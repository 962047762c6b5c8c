"""Raw similarity: the cosine of each patch with a prompt.

A patch's feature is what the tower would give if all its tokens had come out of the last block as that patch did:
the class token's way through the last norm and projection, or an attention pool that finds the same value
everywhere. It is the map that people draw first, and it mostly prefers the background: CLIP's patches were
never trained to match words (Li, Wang, Duan & Li 2023, "CLIP Surgery", measured it). Here to be compared with.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.analysis.matching.cut import Cut, find_cut
from mmattn.analysis.matching.towers import Run, Tower
from mmattn.errors import ModelError

# Numbers that a pass over patches may hold at once in one tensor.
_NUMBERS = 1 << 25


def similarity(
    model: nn.Module, *, image: Tower, prompts: Float[Tensor, "prompt feature"]
) -> Float[Tensor, "prompt patch"]:
    """Return the cosine of each prompt with each patch of the picture.

    Raises
    ------
    ModelError
        The last block of the image tower cannot be told, or its output is no sequence of tokens.
    """
    cut = find_cut(model, image)
    axis = image.axes[0]
    patches = torch.as_tensor(axis.content, device=cut.tokens.device)
    at_once = max(1, _NUMBERS // (len(axis) * cut.tokens.shape[-1]))
    parts = torch.split(patches, at_once)
    features = torch.cat([_features(cut, image.run, patches=part) for part in parts])
    found = torch.zeros(len(prompts), len(axis), device=features.device)
    found[:, patches] = (F.normalize(prompts, dim=-1) @ F.normalize(features, dim=-1).T).float()
    return found


def _features(cut: Cut, run: Run, *, patches: Tensor) -> Float[Tensor, "patch feature"]:
    """Return the tower's features, one for each patch: a batch in which every token is that patch."""

    def alike(module: nn.Module, given: Any, output: Any) -> Any:
        tokens = output[0] if isinstance(output, tuple) else output
        if not isinstance(tokens, Tensor) or tokens.shape != cut.tokens.shape:
            raise ModelError(
                f"What leaves the last block {cut.path} is no sequence like the one that enters it. "
                'Features of patches need one. Use method="chefer".'
            )
        chosen = tokens.reshape(-1, tokens.shape[-1])[patches]
        spread = [len(patches), *[1] * (tokens.dim() - 2), tokens.shape[-1]]
        everywhere = chosen.reshape(spread).expand(-1, *tokens.shape[1:-1], -1).contiguous()
        return (everywhere, *output[1:]) if isinstance(output, tuple) else everywhere

    handle = cut.block.register_forward_hook(alike)
    try:
        with torch.no_grad():
            return run()
    finally:
        handle.remove()

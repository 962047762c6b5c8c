"""Raw similarity: the cosine of each patch with a prompt.

A patch's feature is what the tower would give if all its tokens had come out of the last block as that patch did:
the class token's way through the last norm and projection, or an attention pool that finds the same value
everywhere. It is the map that people draw first, and it mostly prefers the background: CLIP's patches were
never trained to match words (Li, Wang, Duan & Li 2023, "CLIP Surgery", measured it). Here to be compared with.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.analysis.matching.cut import find_cut
from mmattn.analysis.matching.tail import features_alone, leaving
from mmattn.analysis.matching.towers import Tower


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
    special = len(axis) - len(patches)
    with torch.no_grad():
        features = features_alone(cut, image.run, leaving(cut, image.run)[patches], special=special)
    return cosines(prompts, features, patches=patches, length=len(axis))


def cosines(
    prompts: Float[Tensor, "prompt feature"],
    features: Float[Tensor, "content feature"],
    *,
    patches: Tensor,
    length: int,
) -> Float[Tensor, "prompt patch"]:
    """Return the cosine of each prompt with the feature of each patch, and nothing for the axis' special tokens."""
    found = torch.zeros(len(prompts), length, device=features.device)
    found[:, patches] = (F.normalize(prompts, dim=-1) @ F.normalize(features, dim=-1).T).float()
    return found

"""What is compared against, as its own users write it.

The vit-explain way (github.com/jacobgil/vit-explain, MIT): attention in plain softmax instead of the
fused kernel, every `attn_drop` hooked, all maps kept, then rollout as a product of whole matrices.
"""

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

Image = Float[Tensor, "sample channel row col"]


def vision_transformer(name: str, *, size_px: int, device: str, num_classes: int | None = None) -> nn.Module:
    """Return a timm model with random weights, always the same ones; with so many classes, where that is said."""
    torch.manual_seed(0)
    given = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, img_size=size_px, **given)
    return model.eval().to(device)


def picture(size_px: int, *, device: str) -> Image:
    """Return a normalized picture of noise."""
    return torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(1)).to(device)


def without_fused(model: nn.Module) -> nn.Module:
    """Switch every attention of a timm model to its plain softmax, without which its hooks see nothing."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = cast(Any, False)
    return model


class AllMaps:
    """All attention maps, kept by hooks on `attn_drop`; vit-explain's class without its copy to the CPU."""

    def __init__(self, model: nn.Module) -> None:
        self.model = without_fused(model)
        self.maps: list[Tensor] = []
        for name, module in model.named_modules():
            if name.endswith("attn_drop"):
                module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self.maps.append(output)

    def __call__(self, image: Image) -> list[Float[Tensor, "sample head query key"]]:
        """Run the model and return its maps."""
        self.maps = []
        with torch.no_grad():
            self.model(image)
        found, self.maps = self.maps, []
        return found


def whole_rollout(maps: Sequence[Float[Tensor, "sample head query key"]]) -> Float[Tensor, " patch"]:
    """Return the class token's rollout as vit-explain computes it, with nothing discarded.

    Its division by `a.sum(dim=-1)` along the wrong side is left out: with nothing discarded rows sum to one.
    """
    result = torch.eye(maps[0].shape[-1], device=maps[0].device)
    identity = torch.eye(maps[0].shape[-1], device=maps[0].device)
    with torch.no_grad():
        for attention in maps:
            fused = attention.mean(dim=1)
            result = torch.matmul((fused + identity) / 2, result)
    return result[0, 0, 1:]


class AllMapsAndGradients(AllMaps):
    """All attention maps with their gradients, kept by hooks, as in Chefer et al.'s Transformer-MM-Explainability."""

    def explain(self, image: Image, *, target: int) -> list[tuple[Tensor, Tensor]]:
        """Return the maps and the gradients of a class's logit."""
        self.maps = []
        score = self.model(image)[0, target]
        gradients = torch.autograd.grad(score, self.maps)
        found, self.maps = [one.detach() for one in self.maps], []
        return list(zip(found, gradients, strict=True))


def whole_chefer(pairs: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, " patch"]:
    """Return the class token's row of R as their `generate_relevance` computes it."""
    result = torch.eye(pairs[0][0].shape[-1], device=pairs[0][0].device)
    for attention, gradient in pairs:
        raised = (gradient[0] * attention[0]).clamp(min=0).mean(dim=0)
        result = result + torch.matmul(raised, result)
    return result[0, 1:]


def transformers_vit(*, size_px: int, patch_px: int, eager: bool, device: str) -> nn.Module:
    """Return transformers' ViT of the size of ViT-S, with the fused kernel or its plain softmax."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=size_px,
        patch_size=patch_px,
    )
    config._attn_implementation = "eager" if eager else "sdpa"
    return cast(nn.Module, ViTModel(config, add_pooling_layer=False)).eval().to(device)

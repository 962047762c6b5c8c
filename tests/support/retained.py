"""The eager way of every gradient reading: all attention maps kept in the graph, and autograd's gradient of each."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Largest difference as a share of the largest value: float32 against float64.
CLOSE = 1e-5


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether values are those of the reference."""
    return float((found.double() - expected).abs().max() / expected.abs().max()) < CLOSE


class _Retaining(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (F.softmax, torch.softmax, Tensor.softmax) and result.dim() >= 3:
            self.maps.append(result)
        return result


def retained(model: nn.Module, x: Tensor, classes: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Return A and dS/dA of each layer, `[block, head, query, key]`, in float64, of a copy without kernels."""
    eager = copy.deepcopy(model).double()
    for module in eager.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with _Retaining() as seen:
        logits = eager(x.double())
    assert seen.maps
    score = logits[torch.arange(len(classes)), classes].sum()
    gradients = torch.autograd.grad(score, seen.maps)
    return [(a.detach(), g) for a, g in zip(seen.maps, gradients, strict=True)]


def raised(a: Tensor, g: Tensor) -> Tensor:
    """Chefer's mean over heads of what raised the score, `[sample, query, key]`."""
    return (a * g).clamp(min=0).mean(dim=1)


def chefer_in_full(products: list[Tensor]) -> Tensor:
    """R of tokens x tokens as Chefer et al. write it, the identity taken off: one sample, lowest layer first."""
    tokens = products[0].shape[-1]
    relevance = torch.eye(tokens, dtype=torch.float64)
    for product in products:
        relevance = relevance + product @ relevance
    return relevance - torch.eye(tokens, dtype=torch.float64)


def rollout_in_full(products: list[Tensor], *, residual: float = 0.5) -> Tensor:
    """The product over layers of w I + (1 - w) C, each row of C brought to one."""
    tokens = products[0].shape[-1]
    relevance = torch.eye(tokens, dtype=torch.float64)
    for product in products:
        sums = product.sum(-1, keepdim=True)
        shares = product / torch.where(sums > 0, sums, 1.0)
        relevance = (residual * torch.eye(tokens, dtype=torch.float64) + (1 - residual) * shares) @ relevance
    return relevance

"""Independent references: attention as the formula has it, and the softmaxes that an eager model ran."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def formula(q: Tensor, k: Tensor, *, mask: Tensor | None = None, causal: bool = False, scale: float | None = None):
    """Softmax attention in float64, one row at a time; grouped key heads are shared."""
    q, k = q.double(), k.double()
    if q.dim() > 3 and k.shape[-3] != q.shape[-3]:
        k = torch.stack([k[..., head * k.shape[-3] // q.shape[-3], :, :] for head in range(q.shape[-3])], -3)
    rows = []
    for row in range(q.shape[-2]):
        scores = (q[..., row : row + 1, :] * k).sum(-1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if causal:
            scores = scores.masked_fill(torch.arange(k.shape[-2]) > row, -math.inf)
        if mask is not None:
            part = mask[..., row, :] if mask.shape[-2] > 1 else mask[..., 0, :]
            scores = scores.masked_fill(~part, -math.inf) if part.dtype == torch.bool else scores + part.double()
        exps = torch.exp(scores - scores.amax(-1, keepdim=True).clamp_min(-1e300))
        rows.append(exps / exps.sum(-1, keepdim=True).clamp_min(1e-300))
    return torch.stack(rows, -2)


class SoftmaxLog(TorchFunctionMode):
    """Keeps a copy of every softmax of three or more dimensions that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (F.softmax, torch.softmax, Tensor.softmax) and result.dim() >= 3:
            self.results.append(result.detach().clone())
        return result


def eager_softmaxes(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Run a timm model with its fused kernels off and return its softmaxes; some must have run."""
    switched = {module: module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")}
    for module in switched:
        module.fused_attn = False
    try:
        with torch.no_grad(), SoftmaxLog() as log:
            model(*inputs)
    finally:
        for module, fused in switched.items():
            module.fused_attn = fused
    assert log.results, "no softmax ran in the reference"
    return log.results

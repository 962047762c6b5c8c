"""Whether a layer's weights are the model's own: against its plain softmax, seen below Python.

The reference shares nothing with mmattn. The same model, built without fused kernels, runs under a
dispatch mode of torch, which sees the tensors of every ATen kernel. What a softmax gave is followed
through views, arithmetic and mixing by parameters (talking heads, gates) to the batched product that
sums over it; the operand of that product are the weights that the model used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks

EXACT = 1e-5
_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "baddbmm", "mm", "addmm")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison of one model found.

    Parameters
    ----------
    layers, matched
        Layers that mmattn gave; those whose weights are among the model's own.
    contracted
        Softmaxes that the model multiplied with a value, token attention or not.
    worst
        Largest difference among the matched layers.
    problems
        One phrase for each layer that has no match.
    flat
        Layers whose weights are all alike, in which an error could hide.

    """

    layers: int
    matched: int
    contracted: int
    worst: float
    problems: tuple[str, ...]
    flat: int

    @property
    def exact(self) -> bool:
        """Whether every layer was matched within `EXACT`."""
        return self.matched == self.layers > 0


class OwnWeights(TorchDispatchMode):
    """Writes down the weights of every softmax that is multiplied with a value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._learned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._weights: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the kernel and follow what came from a softmax."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [tensor for tensor in _tensors((args, kwargs)) if id(tensor) in self._weights]
        if name in _SOFTMAX or (given and not (name in _PRODUCTS and self._contracts(name, args))):
            self._follow(out)
        return out

    def _follow(self, out: Any) -> None:
        for tensor in _tensors(out):
            if tensor.is_floating_point():
                self._weights[id(tensor)] = tensor

    def _contracts(self, name: str, args: Any) -> bool:
        """Note the weights of a product with something that was not learned."""
        left, right = (args[0], args[1]) if name in ("bmm", "mm") else (args[1], args[2])
        ours = id(left) in self._weights
        other = right if ours else left
        if other.untyped_storage().data_ptr() in self._learned:
            return False
        weights = left if ours else right.transpose(-1, -2)
        self.found.append(weights.detach().clone())
        return True


def own_weights(model: nn.Module, run: Any) -> list[Tensor]:
    """Return what a model without fused kernels multiplied its values with, each `[*, query, key]`, in order."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), OwnWeights(model) as seen:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return seen.found


def compared(layers: Sequence[AttentionLayer], own: Sequence[Tensor]) -> Verdict:
    """Match each layer with one of the model's own softmaxes, each used once."""
    free = list(range(len(own)))
    worst, problems, flat = 0.0, [], 0
    for layer in layers:
        weights = _stored(layer)
        best = min(((_apart(weights, own[i]), i) for i in free), default=(float("inf"), -1))
        if best[0] <= EXACT:
            free.remove(best[1])
            worst = max(worst, best[0])
        else:
            problems.append(f"{layer.name}: {_phrase(best[0])}")
        flat += int(_is_flat(weights))
    return Verdict(
        layers=len(layers),
        matched=len(layers) - len(problems),
        contracted=len(own),
        worst=worst,
        problems=tuple(problems),
        flat=flat,
    )


def _stored(layer: AttentionLayer) -> Tensor:
    """Return `[block, head, query, key]`."""
    parts = [storage.weights() for storage in layer.storages if isinstance(storage, Blocks)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _phrase(apart: float) -> str:
    return "no softmax of the model has its shape" if apart == float("inf") else f"off by {apart:.1e}"


def _is_flat(weights: Tensor) -> bool:
    keys = weights.shape[-1]
    return keys > 1 and float((weights - weights.mean(-1, keepdim=True)).abs().max()) * keys < 0.02


def _apart(ours: Tensor, own: Tensor) -> float:
    """Return the largest difference, for the best order of blocks, heads and queries."""
    keys = ours.shape[-1]
    if own.numel() != ours.numel() or own.shape[-1] != keys:
        return float("inf")
    rows = own.reshape(-1, keys)
    best = float("inf")
    for order in _orders(ours):
        best = min(best, float((order.reshape(-1, keys) - rows).abs().max()))
        if best <= EXACT:
            break
    return best


def _orders(ours: Tensor) -> Iterator[Tensor]:
    """Yield the layer's weights in every order in which kernels lay out blocks, heads and queries."""
    blocks, heads, queries, keys = ours.shape
    for first in [n for n in range(1, blocks + 1) if blocks % n == 0]:
        split = ours.reshape(first, blocks // first, heads, queries, keys)
        for order in permutations(range(4)):
            if order.index(0) < order.index(1) or 1 in split.shape[:2]:
                yield split.permute(*order, 4)


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, list | tuple):
        for part in nested:
            yield from _tensors(part)
    elif isinstance(nested, dict):
        yield from _tensors(tuple(nested.values()))

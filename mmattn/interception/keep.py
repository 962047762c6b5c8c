"""What is kept of a tensor: exact values, detached, in memory of its own.

A reference is not enough: timm's q and k are views that keep v alive, a static cache reuses one
storage for all steps, and a mask filled in place after the softmax changes the result that was kept.
"""

import torch
from torch import Tensor

from mmattn.errors import NoAttentionError


def keep(tensor: Tensor) -> Tensor:
    """Return a detached copy; dimensions that were expanded stay expanded.

    Raises
    ------
    NoAttentionError
        Inside `torch.vmap`, where a tensor stands for a whole batch and cannot be kept.
    """
    plain = unwrapped(tensor).detach()
    strides = plain.stride()
    if 0 not in strides:
        return plain.clone(memory_format=torch.contiguous_format)
    small = plain
    for dim, stride in enumerate(strides):
        small = small if stride else small.narrow(dim, 0, min(1, small.shape[dim]))
    return small.clone(memory_format=torch.contiguous_format).expand(plain.shape)


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor under the wrappers of `torch.func.grad` and its kin."""
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return tensor
    if functorch.is_batchedtensor(tensor):
        raise NoAttentionError(
            "Attention inside torch.vmap cannot be read: each tensor stands for a whole batch there. "
            "A model that takes the batch itself can. Run the model on the batch without vmap, or in a loop."
        )
    return unwrapped(functorch.get_unwrapped(tensor))


def shares_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return bool(first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the precision that autocast would cast to on a device, or None where it is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)

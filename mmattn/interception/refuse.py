"""What cannot be read or written, refused by name with what to do."""

from typing import Any

import torch
from torch import Tensor, nn

from mmattn.errors import ModelError, NoAttentionError
from mmattn.interception.owner import checkpoint_frames, is_attention


def refuse_unreadable(model: Any) -> None:
    """Raise for what is no module, and for scripted and traced attention.

    Raises
    ------
    ModelError
        `model` is not an `nn.Module`.
    NoAttentionError
        The model, or an attention inside it, was scripted or traced: torch runs it outside Python.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"capture and intervene take an nn.Module, not {type(model).__name__}. "
            "The module is what paths are relative to. Pass the module that the function belongs to, or wrap the "
            "function in one."
        )
    for path, module in _scripted(model):
        if module is model or any(map(is_attention, module.modules())):
            kind = "traced" if "Traced" in type(module).__name__ else "scripted"
            name = getattr(module, "original_name", type(module).__name__)
            raise NoAttentionError(
                f"{path or 'The model'} ({name}) is a {kind} TorchScript module, whose attention runs outside Python. "
                "An eager module can be read. Pass the module that was given to torch.jit."
                f"{'trace' if kind == 'traced' else 'script'}, loaded with the same weights."
            )


def refuse_nested(module: nn.Module, path: str, tensors: tuple[Tensor, ...]) -> None:
    """Raise for nested tensors into torch's own attention, which takes them on its fast path alone."""
    if isinstance(module, nn.MultiheadAttention) and any(tensor.is_nested for tensor in tensors):
        raise ModelError(
            f"{path or 'The model'} ({type(module).__name__}) was given nested tensors, which nn.MultiheadAttention "
            "takes only on its native fast path, where no weights exist. Padded tensors with a key_padding_mask can "
            "be read. Pass tensor.to_padded_tensor(0.0) and a key_padding_mask."
        )


def refuse_checkpointed_edit(path: str) -> None:
    """Raise for an edit under activation checkpointing with gradients on.

    The recomputation in the backward pass runs without the edit: reentrant checkpointing would give a
    wrong gradient without a word.
    """
    frames = checkpoint_frames()
    if not frames:
        return
    given = [frame.f_locals.get("args", ()) for frame in frames if frame.f_code.co_name == "forward"]
    reentrant = any(isinstance(tensor, Tensor) and tensor.requires_grad for args in given for tensor in args)
    if torch.is_grad_enabled() or reentrant:
        # Inside reentrant checkpointing gradients are off anyway: nobody can see what holds outside.
        instead = "with an input that requires no grad (input.detach())" if reentrant else "under torch.no_grad()"
        raise ModelError(
            f"{path or 'The model'} runs under activation checkpointing with gradients on, whose backward pass "
            "recomputes attention without the edit: the gradient would be wrong. Edits are right without "
            "checkpointing, or without gradients. Turn checkpointing off (timm: model.set_grad_checkpointing(False)), "
            f"or run {instead}."
        )


def refuse_empty(model: nn.Module, *, passes: int, ran: tuple[str, ...], elsewhere: dict[str, str]) -> None:
    """Raise for a block in which no attention was seen, with the likely cause.

    Raises
    ------
    NoAttentionError
        Always.
    """
    name = type(model).__name__
    if elsewhere:
        threads = ", ".join(dict.fromkeys(elsewhere.values()))
        raise NoAttentionError(
            f"No attention was seen: {name} ran in another thread ({threads}), and a capture sees only the thread "
            "that opened it. A capture in the thread that runs the model sees it. Open the capture inside the "
            "function that the thread runs."
        )
    if ran:
        named = ", ".join(path or "the model itself" for path in ran[:5])
        raise NoAttentionError(
            f"No attention was seen in {name}, though {named} ran. Attention is a softmax whose result "
            "is multiplied with a value, or one of torch's attention kernels; a custom kernel (flash-attn, xformers) "
            "or attention without a softmax cannot be read. Switch the model to torch's scaled_dot_product_attention "
            '(transformers: attn_implementation="sdpa"), or pass a tap that emits its weights.'
        )
    scripted = [path for path, _ in _scripted(model)]
    if scripted:
        raise NoAttentionError(
            f"No attention was seen in {name}; {', '.join(scripted[:5])} is TorchScript, which runs outside Python. "
            "An eager module can be read. Pass the model without torch.jit."
        )
    if not passes:
        raise NoAttentionError(
            f"No attention was seen: {name} was not called inside the with block. The model has to run there. "
            "Call the model that you passed to capture, inside the block and in the same thread."
        )
    raise NoAttentionError(
        f"No attention was seen in {name}: it ran {passes} time{'s' if passes > 1 else ''} and no softmax was "
        "multiplied with a value. A model with attention is needed; convolutional networks such as ResNet have none. "
        "If this one has attention in a custom kernel or in a thread of its own, switch it to torch's "
        "scaled_dot_product_attention in the thread that calls it, or pass a tap that emits its weights."
    )


def _scripted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the TorchScript modules; a model that has none is told by its classes alone."""
    kinds: set[type] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        kinds.add(type(module))
        if module is not None and module._modules:
            waiting += module._modules.values()
    if not any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
        return []
    return [(path, module) for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]

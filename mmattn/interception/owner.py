"""Who makes a call: the modules that are running, read from the caller's frames.

Walking the frames to the nearest `nn.Module` installs nothing and is right under threads, where
hooks on a shared model name the wrong module (12 of 120 in our trial). `Softmax` and `Dropout`
modules are passed over: the owner of their work is the module that holds them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_HEAD_NAMES = ("num_heads", "n_heads", "num_attention_heads", "nhead", "n_head", "heads", "head_count")
_HEAD_WIDTH_NAMES = ("head_dim", "d_head", "dim_head", "attention_head_size")
_MODEL_WIDTH_NAMES = ("embed_dim", "hidden_size", "d_model", "dim")
_WIDTH_NAMES = ("in_features", "out_features", "in_channels", "out_channels", "embed_dim")
_CHECKPOINT = "torch.utils.checkpoint"


def module_paths(model: nn.Module) -> tuple[dict[int, str], list[nn.Module]]:
    """Return the path of every module under `model` by identity, and the attention modules among them.

    A compiled module's wrapper adds nothing to a path.
    """
    paths: dict[int, str] = {}
    attentions: list[nn.Module] = []
    named: dict[type, bool] = {}
    waiting = [(model, "")]
    while waiting:
        module, path = waiting.pop()
        if id(module) in paths:
            continue
        paths[id(module)] = path
        kind = type(module)
        if kind not in named or issubclass(kind, torch.jit.ScriptModule):
            named[kind] = is_attention(module)
        if named[kind]:
            attentions.append(module)
        if module._modules:  # most have none
            inner = [(child, _joined(path, name)) for name, child in module._modules.items() if child is not None]
            waiting += inner[::-1]
    return paths, attentions


def is_attention(module: nn.Module) -> bool:
    """Whether a module's class is named *Attention or *Attn, or is torch's own attention."""
    name = module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__
    return str(name).endswith(("Attention", "Attn")) or isinstance(module, nn.MultiheadAttention)


def running_modules(known: Sequence[Mapping[int, str]] = ()) -> list[nn.Module]:
    """Return the modules on this thread's stack, the innermost first, without Softmax and Dropout.

    The walk ends early: at the second module when each of the `known` tables has one of those found.
    """
    found: dict[int, nn.Module] = {}
    for frame in _frames():
        if frame.f_globals.get("__package__") == __package__:
            continue  # our own frames: reading locals costs more than this look
        module = _first_argument(frame)
        if not isinstance(module, nn.Module) or id(module) in found or _is_step(module):
            continue
        found[id(module)] = module
        if len(found) > 1 and known and all(any(number in table for number in found) for table in known):
            break
    return list(found.values())


def _joined(path: str, name: str) -> str:
    if name == "_orig_mod":
        return path
    return f"{path}.{name}" if path else name


def nearest_path(modules: list[nn.Module], paths: Mapping[int, str]) -> str | None:
    """Return the path of the innermost running module that `paths` knows; None for a stranger's call.

    A call that no module makes at all, such as a bare function in the with block, is the root's.
    """
    if not modules:
        return ""
    return next((paths[id(module)] for module in modules if id(module) in paths), None)


def is_running(model: nn.Module, *, above: int) -> bool:
    """Whether `model` is being called in a frame further out than the `above` nearest calls of it."""
    calls = 0
    for frame in _frames():
        if frame.f_code.co_name == "_call_impl" and _first_argument(frame) is model:
            calls += 1
    return calls > above


def checkpoint_frames() -> list[FrameType]:
    """Return the frames of torch's activation checkpointing on this thread's stack."""
    return [frame for frame in _frames() if frame.f_globals.get("__name__") == _CHECKPOINT]


def head_count(modules: list[nn.Module], *, folded: Tensor, width: int | None = None) -> int | None:
    """Return how many heads lie in the leading dimension of a 3-d tensor, as its owner says.

    Parameters
    ----------
    modules
        The running modules, innermost first; the first two are asked.
    folded
        `[sample * head, query, dim or key]`.
    width
        Width of one head, compared with what the owner says of it.
    """
    for module in modules[:2]:
        heads = named_head_count([module])
        if heads is None:
            continue
        said = next(
            (value for value in (getattr(module, name, None) for name in _HEAD_WIDTH_NAMES) if _is_count(value)), None
        )
        whole = heads > 1 and any(getattr(module, name, None) == width for name in _MODEL_WIDTH_NAMES)
        if folded.shape[0] % heads or whole or (said is not None and width is not None and said != width):
            return None
        return heads
    return None


def named_head_count(modules: list[nn.Module]) -> int | None:
    """Return the number of heads that the first of the modules to name one has."""
    named = (getattr(module, name, None) for module in modules for name in _HEAD_NAMES)
    return next((value for value in named if isinstance(value, int) and _is_count(value)), None)


def is_channel_width(modules: list[nn.Module], *, keys: int, values: int) -> bool:
    """Whether keys x heads are the owner's channels while value width x heads are not.

    Then the tokens are channels (XCiT, EdgeNeXt). The channels are the widths of the owner's own linear
    and convolution layers, or of those one level further down; where it has none, the width of what it
    was called with.
    """
    for module in modules[:2]:
        near = [module, *(child for child in module._modules.values() if child is not None)]
        if (told := _told_by_widths(near, keys, values)) is not None:
            return told
        if (
            told := _told_by_widths([child for part in near[1:] for child in part.children()], keys, values)
        ) is not None:
            return told
    channels = _input_widths(modules[0]) if modules else set()
    return keys in channels and values not in channels


def is_owned_by_attention() -> bool:
    """Whether one of the two innermost running modules is named as an attention."""
    names = [type(module).__name__.lower() for module in running_modules()[:2]]
    return any("attn" in name or "attention" in name for name in names)


def _told_by_widths(parts: Sequence[nn.Module], keys: int, values: int) -> bool | None:
    """Return whether `keys` is one of the parts' widths and `values` is none; None where they have none."""
    found: bool | None = None
    for part in parts:
        for name in _WIDTH_NAMES:
            width = vars(part).get(name)
            if width == values and isinstance(width, int):
                return False
            if isinstance(width, int):
                found = bool(found) or width == keys
    return found


def _input_widths(module: nn.Module) -> set[int]:
    for frame in _frames():
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount > 1 and _first_argument(frame) is module:
            given = frame.f_locals.get(code.co_varnames[1])
            if isinstance(given, Tensor) and given.dim() >= 3:
                return {given.shape[1] if given.dim() > 3 else given.shape[-1]}
    return set()


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    if not code.co_argcount:
        return None
    return frame.f_locals.get(code.co_varnames[0])


def _is_step(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Softmax" in name or "Dropout" in name


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

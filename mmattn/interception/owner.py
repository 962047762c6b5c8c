"""Who makes a call: the modules that are running, read from the caller's frames.

Walking the frames to the nearest `nn.Module` installs nothing and is right under threads, where
hooks on a shared model name the wrong module (12 of 120 in our trial). `Softmax` and `Dropout`
modules are passed over: the owner of their work is the module that holds them.
"""

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn

_HEAD_NAMES = ("num_heads", "n_heads", "num_attention_heads", "nhead", "n_head", "heads", "head_count")
_HEAD_WIDTH_NAMES = ("head_dim", "d_head", "dim_head", "attention_head_size")
_WIDTH_NAMES = ("in_features", "out_features", "in_channels", "out_channels", "embed_dim")
_CHECKPOINT = "torch.utils.checkpoint"


def module_paths(model: nn.Module) -> dict[int, str]:
    """Return the path of every module under `model` by identity, compiled wrappers left out of it."""
    paths: dict[int, str] = {}
    waiting = [(model, "")]
    while waiting:
        module, path = waiting.pop()
        if id(module) in paths:
            continue
        paths[id(module)] = path
        for name, child in module._modules.items():
            if child is not None:
                waiting.append((child, path if name == "_orig_mod" else f"{path}.{name}" if path else name))
    return paths


def running_modules() -> list[nn.Module]:
    """Return the modules on this thread's stack, the innermost first, without Softmax and Dropout."""
    found: dict[int, nn.Module] = {}
    for frame in _frames():
        module = _first_argument(frame)
        if isinstance(module, nn.Module) and not _is_step(module):
            found.setdefault(id(module), module)
    return list(found.values())


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
        heads = next(
            (value for value in (getattr(module, name, None) for name in _HEAD_NAMES) if _is_count(value)), None
        )
        if heads is None:
            continue
        said = next(
            (value for value in (getattr(module, name, None) for name in _HEAD_WIDTH_NAMES) if _is_count(value)), None
        )
        if folded.shape[0] % heads or (said is not None and width is not None and said != width):
            return None
        return int(heads)
    return None


def is_channel_width(modules: list[nn.Module], *, keys: int, values: int) -> bool:
    """Whether keys x heads are the owner's channels while value width x heads are not.

    Then the tokens are channels (XCiT, EdgeNeXt). The channels are the widths of the owner's own linear
    and convolution layers; where it has none, the width of what it was called with.
    """
    channels = next((found for module in modules[:2] if (found := _widths(module))), None)
    if channels is None:
        channels = _input_widths(modules[0]) if modules else set()
    return keys in channels and values not in channels


def is_owned_by_attention() -> bool:
    """Whether one of the two innermost running modules is named as an attention."""
    names = [type(module).__name__.lower() for module in running_modules()[:2]]
    return any("attn" in name or "attention" in name for name in names)


def _widths(module: nn.Module) -> set[int]:
    near = [module, *module.children()]
    near += [child for inner in near[1:] for child in inner.children()]
    found = (part.__dict__.get(name) for part in near for name in _WIDTH_NAMES)
    return {width for width in found if isinstance(width, int)}


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

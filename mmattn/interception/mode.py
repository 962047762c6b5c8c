"""The one point at which every model's attention is read and written: a single TorchFunctionMode.

One rule: attention is a distribution that is contracted with a value. Torch hands every function that
is called under the mode to `__torch_function__`; a look-up by identity decides whether it is one of the
few that matter (under a microsecond for all others). All captures and interventions of a thread share
one mode, so that every one of them sees the weights that were really used, edits included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from mmattn.errors import InputError
from mmattn.interception.asked import Asked
from mmattn.interception.calls import Call
from mmattn.interception.keep import keep, unwrapped
from mmattn.interception.owner import head_count, is_channel_width, running_modules
from mmattn.interception.refuse import refuse_checkpointed_edit
from mmattn.interception.selfcheck import Later

Handler = Callable[["AttentionMode", Asked], Any]

Copy = Callable[[], dict[str, Any]]
Check = Callable[[Call], Tensor | Later | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """One attention that is about to happen.

    Parameters
    ----------
    draft
        The call with the model's own tensors in it; `module`, `order` and `pass_index` are set later.
    value
        `[..., key, dim]`.
    weights
        Computes the weights, differentiably; asked only for an edit.
    run
        The model's own way; returns what the model gets.
    rerun
        The same with other weights.
    check
        Compares the kept call with the output: the largest difference over a few rows, relative, or what
        computes it later from the kept call and copies of its own.
    direct
        Whether what `run` returns is weights @ value and nothing else, `[..., query, dim]`.
    """

    draft: Call
    value: Tensor
    weights: Callable[[], Tensor]
    run: Callable[[], Any]
    rerun: Callable[[Tensor], Any]
    check: Callable[[Call, Any], Tensor | Later | None]
    direct: bool = False


@runtime_checkable
class Watcher(Protocol):
    """One capture or intervention: what the mode asks of it."""

    writes: bool
    differentiates: bool
    paths: dict[int, str]

    def path_of(self, modules: list[nn.Module]) -> str | None:
        """Return the owner's path under this watcher's model, or None for a stranger's call."""
        ...

    def number(self, call: Call, path: str) -> Call:
        """Return the call with its module, order and pass."""
        ...

    def counted(self, path: str) -> None:
        """Note that a call was dealt with."""
        ...

    def selects(self, path: str) -> bool:
        """Whether this watcher edits that module's calls."""
        ...

    def edit(self, weights: Tensor, call: Call) -> Tensor | None:
        """Return other weights, or None."""
        ...

    def differentiable(self, sight: Sight, draft: Call, path: str) -> Sight:
        """Return the sight whose ways of running note where the gradient arrives."""
        ...

    def record(self, draft: Call, path: str, copy: Copy, check: Check) -> None:
        """Keep a call; `draft` holds the model's tensors, `copy` returns copies of them by name."""
        ...


class AttentionMode(TorchFunctionMode):
    """Sees the attention calls of this thread and tells its watchers."""

    def __init__(self, handlers: dict[Any, Handler], followers: dict[Any, Handler]) -> None:
        super().__init__()
        self.handlers = handlers
        self.followers = followers
        self.followed: dict[int, Any] = {}
        self.watchers: list[Watcher] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one torch function; attention is told to the watchers on the way."""
        handler = self.handlers.get(func)
        if handler is None and self.followed:
            handler = self.followers.get(func)
        if handler is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        return handler(self, Asked(func, types, args, kwargs or {}))

    def attend(self, sight: Sight) -> Any:
        """Run one attention: edit, run, record. Nothing is seen of a backward pass' recomputation."""
        modules = running_modules([watcher.paths for watcher in self.watchers])
        seen = [(watcher, path) for watcher in self.watchers if (path := watcher.path_of(modules)) is not None]
        if not seen or torch._C._current_graph_task_id() != -1:
            return sight.run()
        unwrapped(sight.value)
        draft = _with_owner(sight.draft, sight.draft.value_dim or 1, modules)
        for watcher, path in seen:
            sight = watcher.differentiable(sight, draft, path) if watcher.differentiates else sight
        edited = _edited(sight, draft, seen)
        out = sight.run() if edited is None else sight.rerun(edited)
        if edited is not None:
            draft = draft.but(q=None, k=None, mask=None, causal=False, softcap=None, weights=edited)
        _record(sight, draft, out, seen)
        return out


@contextmanager
def watching(watcher: Watcher, handlers: dict[Any, Handler], followers: dict[Any, Handler]) -> Iterator[None]:
    """Put a watcher on this thread's mode: the first pushes one, the last to leave takes it off."""
    mode = current_mode()
    if mode is None:
        mode = AttentionMode(handlers, followers)
        mode.__enter__()  # type: ignore[no-untyped-call]
    mode.watchers.append(watcher)
    try:
        yield
    finally:
        mode.watchers.remove(watcher)
        if not mode.watchers:
            _take_off(mode)


def _take_off(mode: AttentionMode) -> None:
    """Remove a mode from this thread's stack; modes that were pushed after it stay."""
    if mode not in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        return
    above = []
    while (top := _pop_mode()) is not mode:  # type: ignore[no-untyped-call]
        above.append(top)
    for other in reversed(above):
        _push_mode(other)  # type: ignore[no-untyped-call]


def current_mode() -> AttentionMode | None:
    """Return the mode of the calling thread."""
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return next((mode for mode in stack if isinstance(mode, AttentionMode)), None)


def detached(call: Call) -> Call:
    """Return the call with its tensors detached, not copied."""
    return call.but(**_changed(call, lambda tensor: unwrapped(tensor).detach()))


def copies(call: Call) -> dict[str, Any]:
    """Return copies of the call's tensors, in memory of their own, by name."""
    return _changed(call, keep)


def checked_edit(result: Tensor | None, *, like: Tensor, path: str) -> Tensor | None:
    """Return what an edit returned, or None.

    Raises
    ------
    InputError
        Weights of another shape than the edit was given.
    """
    if result is None or (isinstance(result, Tensor) and result.shape == like.shape):
        return result
    given = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
    raise InputError(
        f"The edit of {path or 'the root module'} returned {given} for weights of shape {list(like.shape)}. "
        "An edit returns as many weights as it was given, or None. Return a tensor of the same shape."
    )


@contextmanager
def kept_from_operators(who: str) -> Iterator[None]:
    """Raise a TypeError of the user's own function as an InputError, which survives torch's operators.

    Torch 2.14: `weights @ value` takes a TypeError from inside for "I cannot multiply these".
    """
    try:
        yield
    except TypeError as error:
        raise InputError(
            f"{who} raised TypeError: {error}. The traceback above shows where. Mend the function that you passed."
        ) from error


def _changed(call: Call, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    given = {"q": call.q, "k": call.k, "weights": call.weights, "mask": call.mask}
    return {name: change(tensor) for name, tensor in given.items() if tensor is not None}


def _with_owner(draft: Call, value_dim: int, modules: list[nn.Module]) -> Call:
    """Add what the owner says: heads folded into a 3-d call, and whether the tokens are channels."""
    given = draft.q if draft.q is not None else draft.weights
    if given is None or given.is_nested:
        return draft
    heads = head_count(modules, folded=given, width=value_dim) if given.dim() == 3 else None
    keys = draft.k.shape[-2] if draft.k is not None else given.shape[-1]
    width = (given.shape[-3] if given.dim() > 3 else heads or 1) * keys
    is_channel = given.shape[-2] == keys and is_channel_width(
        modules, keys=width, values=width // max(keys, 1) * value_dim
    )
    if heads is None and not is_channel:
        return draft
    return draft.but(head_count=heads, kind="channel" if is_channel else "token")


def _edited(sight: Sight, draft: Call, seen: list[tuple[Watcher, str]]) -> Tensor | None:
    edited: Tensor | None = None
    for watcher, path in seen:
        if not watcher.writes:
            continue
        call = watcher.number(detached(draft), path)
        watcher.counted(path)
        if not watcher.selects(path):
            continue
        refuse_checkpointed_edit(path)
        weights = sight.weights() if edited is None else edited.clone()  # an edit may write into them
        result = watcher.edit(weights, call)
        if result is None:
            continue
        edited = checked_edit(result, like=weights, path=path)
    return edited


def _record(sight: Sight, draft: Call, out: Any, seen: list[tuple[Watcher, str]]) -> None:
    kept: list[dict[str, Any]] = []

    def copy() -> dict[str, Any]:
        if not kept:
            kept.append(copies(draft))
        return kept[0]

    def check(call: Call) -> Tensor | Later | None:
        return None if call.dropout else sight.check(call, out)

    with torch.no_grad():
        for watcher, path in seen:
            if not watcher.writes:
                watcher.record(draft, path, copy, check)

"""A watcher: the part that reading and writing share, which is to know one model while it runs.

Its only hooks are a pre-hook on the root, which counts outermost forwards and remembers what they were
called with, and counting pre-hooks on modules named *Attention or *Attn; all are removed on exit.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmattn.interception.calls import Call
from mmattn.interception.contract import CONTRACTIONS
from mmattn.interception.flex import flex_handlers
from mmattn.interception.follow import FOLLOWED, SOFTMAXES
from mmattn.interception.fused import FUSED
from mmattn.interception.mode import Check, Copy, Sight, current_mode, watching
from mmattn.interception.owner import is_running, module_paths, nearest_path
from mmattn.interception.rearrange import REARRANGED
from mmattn.interception.refuse import refuse_nested
from mmattn.interception.weighted_sum import SUMMED

HANDLERS = {**FUSED, **SOFTMAXES, **flex_handlers()}
FOLLOWERS = {**FOLLOWED, **REARRANGED, **CONTRACTIONS, **SUMMED}


class ModelWatcher:
    """Counts what one model does in the thread that watches it.

    Parameters
    ----------
    model
        The root that paths are relative to.
    """

    writes = False
    differentiates = False

    def __init__(self, model: nn.Module) -> None:
        self.root: nn.Module | None = model
        self.paths, self.attentions = module_paths(model)
        self.passes = 0
        self.inputs: list[tuple[Tensor, ...]] = []
        self.ran: dict[str, None] = {}
        self.elsewhere: dict[str, str] = {}
        self.called: dict[str, None] = {}
        self.sides: dict[str, set[str]] = {}
        self.order = 0
        self.thread = threading.get_ident()

    def path_of(self, modules: list[nn.Module]) -> str | None:
        """Return the owner's path under the root."""
        return nearest_path(modules, self.paths)

    def number(self, call: Call, path: str, **tensors: Any) -> Call:
        """Return the call with its module, order and pass, and with these tensors."""
        return call.but(module=path, order=self.order, pass_index=max(self.passes - 1, 0), **tensors)

    def counted(self, path: str) -> None:
        """Note that a call was dealt with."""
        self.order += 1
        self.called[path] = None

    def selects(self, path: str) -> bool:
        """Whether this watcher edits that module's calls: a reader edits none."""
        return False

    def edit(self, weights: Tensor, call: Call) -> Tensor | None:
        """Return other weights, or None."""
        return None

    def record(self, draft: Call, path: str, copy: Copy, check: Check) -> None:
        """Keep a call: a writer keeps none."""

    def differentiable(self, sight: Sight, draft: Call, path: str) -> Sight:
        """Return the sight as it is: only a reader of gradients changes how it runs."""
        return sight

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks and mode on; both are gone afterwards, whatever happens."""
        assert self.root is not None
        handles: list[RemovableHandle] = []
        try:
            root = getattr(self.root, "_orig_mod", self.root)
            handles.append(root.register_forward_pre_hook(self._on_root, with_kwargs=True))
            for module in self.attentions:
                handles.append(module.register_forward_pre_hook(self._on_attention, with_kwargs=True))
            with ExitStack() as stack:
                stack.enter_context(eager())
                stack.enter_context(watching(self, HANDLERS, FOLLOWERS))
                yield
        finally:
            for handle in handles:
                handle.remove()

    def unseen(self) -> tuple[str, ...]:
        """Return the attention modules that ran without a call in them."""
        return tuple(path for path in {**self.ran, **self.elsewhere} if not self._was_called(path))

    def _was_called(self, path: str) -> bool:
        return any(not path or called == path or called.startswith(path + ".") for called in self.called)

    def _on_root(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return
        if threading.get_ident() != self.thread:
            if current_mode() is None:
                self.elsewhere.setdefault("", threading.current_thread().name)
            return
        if is_running(module, above=1):
            return
        self.passes += 1
        self.inputs.append(tuple(tensor.detach() for tensor in tensors_of((args, kwargs))))

    def _on_attention(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        path = self.paths.get(id(module), "")
        if threading.get_ident() == self.thread:
            tensors = tensors_of((args, kwargs))
            refuse_nested(module, path, tensors)
            self.ran[path] = None
            self.sides.setdefault(path, set()).add(_side(module, args, kwargs, tensors))
        elif current_mode() is None:
            self.elsewhere.setdefault(path, threading.current_thread().name)


def _side(module: nn.Module, args: Any, kwargs: Any, tensors: tuple[Tensor, ...]) -> str:
    """Return what can be said of one call of an attention module: `self`, `cross` or `unknown`.

    torch's own attention says which tensors are query and key; any other that was given one tensor
    can only attend within it.
    """
    if isinstance(module, nn.MultiheadAttention):
        given = {**dict(zip(("query", "key"), args, strict=False)), **kwargs}
        return "self" if given.get("query") is given.get("key") else "cross"
    return "self" if len(tensors) == 1 else "unknown"


def tensors_of(given: Any) -> tuple[Tensor, ...]:
    """Return the tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, dict):
        return tensors_of(tuple(given.values()))
    if isinstance(given, (tuple, list)):
        return tuple(tensor for item in given for tensor in tensors_of(item))
    return ()


_stance_lock = threading.Lock()
_stance: list[Any] = []


@contextmanager
def eager() -> Iterator[None]:
    """Let compiled models run their eager code, where the mode sees it.

    The stance belongs to the process: compiled models in other threads run eager as well meanwhile.
    The first of several captures sets it and the last one puts it back, under a lock. Where torch's
    compiler was never loaded there is nothing compiled and nothing is done.
    """
    if "torch._dynamo" not in sys.modules and "torch.nn.attention.flex_attention" not in sys.modules:
        yield
        return
    with _stance_lock:
        if not _stance:
            _stance.append(torch.compiler.set_stance("force_eager"))
        _stance.append(None)
    try:
        yield
    finally:
        with _stance_lock:
            _stance.pop()
            if len(_stance) == 1:
                _stance.pop().__exit__(None, None, None)

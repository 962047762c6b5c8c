"""The picture's tower runs once for all texts: a hook hands it one picture, and repeats what it gives.

A model that is called with one picture for each of several texts would look at the same picture as often. In front
of the module that turns pictures into tokens the batch is cut to its first picture, and behind it the result is
repeated; the rest of the model runs as it is. Gradients pass through, so that each text's reach the one tower.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from mmattn.interception.calls import Call


@dataclass(kw_only=True, eq=False)
class Once:
    """What became of a run: how often the tower's result was repeated.

    Parameters
    ----------
    path
        Of the tower.
    count
        Number of texts.
    happened
        Whether the tower ran as a whole, with one picture a text. A tower that is called in parts (BridgeTower's) does
        not, and then runs for each text.
    """

    path: str
    count: int
    happened: bool = False

    def spread(self, calls: Sequence[Call]) -> list[Call]:
        """Return the calls as they would be had the tower looked once for each text; nothing is copied for a view."""
        if not self.happened:
            return list(calls)
        return [self._spread(call) if self._within(call.module) else call for call in calls]

    def _within(self, module: str) -> bool:
        return module == self.path or module.startswith(f"{self.path}.")

    def _spread(self, call: Call) -> Call:
        changed: dict[str, Any] = {}
        for name in ("q", "k", "weights", "mask"):
            tensor = getattr(call, name)
            if tensor is not None and (name != "mask" or (tensor.dim() > 2 and tensor.shape[0] > 1)):
                changed[name] = self.repeated(tensor)
        return call.but(**changed)

    def repeated(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return a tensor repeated along its first dimension, as a view where it has one sample."""
        return tensor.unsqueeze(0).expand(self.count, *tensor.shape).flatten(0, 1)


@contextmanager
def once(model: nn.Module, path: str, *, count: int) -> Iterator[Once]:
    """Open a context in which the module at `path` looks at one picture for `count` texts; an empty path: none does."""
    run = Once(path=path, count=count)
    if not path or count == 1:
        yield run
        return

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        run.happened = bool(tensors) and all(len(one) == count for one in tensors if one.dim())
        if not run.happened:
            return args, named
        return tuple(map(_first, args)), {name: _first(value) for name, value in named.items()}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _each(output, run) if run.happened else output

    tower = model.get_submodule(path)
    handles = tower.register_forward_pre_hook(before, with_kwargs=True), tower.register_forward_hook(after)
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() else value


def _each(output: Any, run: Once) -> Any:
    """Return what a tower gave, with each of its tensors repeated."""
    if isinstance(output, Tensor):
        return run.repeated(output).contiguous() if output.dim() else output
    if isinstance(output, MutableMapping):
        found = copy(output)
        for name, value in output.items():
            found[name] = _each(value, run)
        return found
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(_each(one, run) for one in output)
    return output

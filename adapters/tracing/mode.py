"""The mode under which a model runs on ids: rearrangements as they are, everything else by rule.

A function is known by its name, so that torch.add, Tensor.add and Tensor.add_ are one. What no rule
knows gives tokens without a place, never wrong ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import rules_elements, rules_maps, rules_products
from .functions import ABOUT, REARRANGE, SAME
from .grids import MIXED
from .ids import Ids, Story, make, plain, told
from .state import Rule, State, tensors_in

_RULES: dict[str, Rule] = {**rules_elements.RULES, **rules_maps.RULES, **rules_products.RULES}

_OPERATORS = frozenset(["add", "sub", "mul", "truediv", "div", "pow", "floordiv", "mod"])


class TraceMode(TorchFunctionMode):
    """Runs torch functions on Ids; `buffers` are the addresses of tensors that a model may not write to."""

    def __init__(self, state: State, *, buffers: frozenset[int]) -> None:
        super().__init__()
        self.state, self.buffers = state, buffers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function by its rule."""
        kwargs = kwargs or {}
        found = list(tensors_in((*args, *kwargs.values())))
        if not any(isinstance(value, Ids) for value in found):
            return self._elsewhere(func, args, kwargs, found)
        name = _name(func)
        if name == "__get__":  # .T and .data give ids, .shape and .device do not
            out = func(*args, **kwargs)
            return make(out, told(found)) if isinstance(out, Tensor) and out.is_floating_point() else out
        if name == "__set__":
            return None
        if name in ABOUT:
            return _native(func, args, kwargs)
        if name in SAME:
            return found[0]  # also where only a dtype is taken from the picture: weight.type_as(x)
        if name in REARRANGE:
            return _wrapped(_native(func, args, kwargs), told(found))
        rule = _RULES.get(name)
        return self._lost(func, name, args, kwargs) if rule is None else rule(self.state, *args, **kwargs)

    def _elsewhere(self, func: Any, args: Any, kwargs: Any, found: list[Tensor]) -> Any:
        """Run a function of nothing of the picture; remember what learned tokens become."""
        name = getattr(func, "__name__", "")
        if found and name.endswith("_") and not name.endswith("__") and found[0].data_ptr() in self.buffers:
            return found[0]  # running statistics stay what they are
        if func is functional.multi_head_attention_forward:
            types = tuple({type(value) for value in found})
            return torch.overrides.redispatch_function(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and found:
            self.state.name(out, found)
        return out

    def _lost(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run a function that no rule knows: what comes out has no place."""
        self.state.lost[name] = self.state.lost.get(name, 0) + 1
        story = told(tensors_in((*args, *kwargs.values())))

        def lose(value: Any) -> Any:
            if isinstance(value, list | tuple):
                parts = [lose(part) for part in value]
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                return make(torch.full((), float(MIXED), dtype=torch.float64).expand(value.shape), story)
            return value

        return lose(_native(func, args, kwargs))


def _name(func: Any) -> str:
    """Return the name of what a function does: without underscores, in-place and reflected forms."""
    name = str(getattr(func, "__name__", ""))
    if name in ("__get__", "__set__"):
        return name
    if name in ("__float__", "__complex__"):  # float(x), a number; x.float() is a tensor
        return "item"
    if not name.startswith("__"):
        return name.strip("_")
    bare = name.strip("_")
    return bare[1:] if bare[:1] in ("i", "r") and bare[1:] in _OPERATORS else bare


def _native(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the numbers themselves."""

    def bare(value: Any) -> Any:
        if isinstance(value, Ids):
            return plain(value)
        return type(value)(map(bare, value)) if type(value) in (list, tuple) else value

    return func(*bare(args), **{key: bare(value) for key, value in kwargs.items()})


def _wrapped(out: Any, story: Story) -> Any:
    if isinstance(out, Tensor):
        return make(out, story)
    return type(out)([_wrapped(part, story) for part in out]) if isinstance(out, list | tuple) else out

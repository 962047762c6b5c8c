"""The mode under which a model runs on ids: rearrangements as they are, everything else by rule.

A function is known by its name, so that torch.add, Tensor.add and Tensor.add_ are one. What no rule
knows gives tokens without a place, never wrong ones; so does whatever is selected by values of the
picture or by chance. Where values decide what the model does next, the trace ends.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import rules_elements, rules_maps, rules_products
from .functions import ABOUT, BINARY, CHANCE, DECIDES, REARRANGE, SAME, VIEWS
from .ids import Chosen, Ids, Story, Undecided, chosen, make, mixed, plain, told
from .state import Rule, State, bare, tensors_in

_RULES: dict[str, Rule] = {**rules_elements.RULES, **rules_maps.RULES, **rules_products.RULES}

_OPERATORS = frozenset(["add", "sub", "mul", "truediv", "div", "pow", "floordiv", "mod", "and", "or", "xor", "matmul"])

# Element by element: values that decide here scale or shift a token, and move none.
_GATES = SAME | BINARY | {"add", "where", "masked_fill"}


# The shapes that these give are not in question, and a check of them takes time.
_SURE = BINARY | {"add", "softmax", "masked_fill", "cat", "linear", "matmul", "copy", "view_as_real"}


class TraceMode(TorchFunctionMode):
    """Runs torch functions on Ids; `buffers` are the addresses of tensors that a model may not write to."""

    def __init__(self, state: State, *, buffers: frozenset[int]) -> None:
        super().__init__()
        self.state, self.buffers = state, buffers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function, and remember what it wrote into."""
        args, kwargs = self.state.writes.now(args), self.state.writes.now(kwargs or {})
        target = _target(func, args, kwargs)
        if target is not None and isinstance(kwargs.get("out"), Tensor):
            kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        out = self._run(func, args, kwargs)
        if target is None or out is target or not isinstance(out, Ids | Chosen):
            return out
        self.state.writes.write(target, out)
        return target if isinstance(target, Ids) else out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one function by its rule."""
        found = list(tensors_in((*args, *kwargs.values())))
        name, own = _name(func), str(getattr(func, "__name__", ""))
        decided = any(isinstance(value, Chosen) for value in found)
        known = any(isinstance(value, Ids) for value in found)
        if own in CHANCE and not (known and name in SAME):
            return chosen(_native(func, args, kwargs))
        if not known and not decided:
            return self._elsewhere(func, args, kwargs, found)
        if own in ("__get__", "__set__"):  # .T and .data give ids, .shape and .device do not
            out = func(*args, **kwargs) if own == "__get__" else None
            if out is torch.float64 and isinstance(found[0], Ids):
                return torch.float32  # as pixels have: models compare it with their weights'
            return self._alike(out, found[0]) if isinstance(out, Tensor) else out
        if own in DECIDES or any(isinstance(end, Ids | Chosen) for end in _ends(args)):
            raise Undecided(f"the model decides by values what it does next ({own.strip('_')})")
        if name in ABOUT:
            return _native(func, args, kwargs)
        if decided and not (known and name in _GATES) and name != "setitem":
            return self._decided(func, name, args, kwargs)
        return self._known(func, name, args, kwargs, found)

    def _known(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Tensor]) -> Any:
        """Run a function of tokens."""
        if name in SAME:
            return self._same(name, found)
        if name in REARRANGE:
            return self._rearranged(func, name, args, kwargs, found)
        rule = _RULES.get(name)
        return self._lost(func, name, args, kwargs) if rule is None else self._ruled(rule, func, name, args, kwargs)

    def _same(self, name: str, found: list[Tensor]) -> Tensor:
        if name in ("to", "type", "type_as") and not isinstance(found[0], Ids):
            return found[0]  # only a dtype is taken from the picture: weight.type_as(x)
        kept = next(value for value in found if isinstance(value, Ids))
        return make(plain(kept), kept.story)

    def _rearranged(self, func: Any, name: str, args: Any, kwargs: Any, found: list[Tensor]) -> Any:
        subject = args[0] if args else next(iter(kwargs.values()))
        if isinstance(subject, list | tuple):  # stack: parts that are not of the picture have no place
            parts = [part if isinstance(part, Ids) else mixed(part.shape) for part in subject]
            return _wrapped(_native(func, (parts, *args[1:]), kwargs), told(found))
        if not isinstance(subject, Ids):
            if not name.endswith("_as"):  # the picture says which entries of a table are taken
                return self._lost(func, name, args, kwargs)
            out = _native(func, args, kwargs)
            self.state.name(out, [subject])
            return out
        return _wrapped(_native(func, args, kwargs), told(found), base=subject if name in VIEWS else None)

    def _alike(self, out: Tensor, of: Tensor) -> Any:
        return chosen(out) if isinstance(of, Chosen) or not out.is_floating_point() else make(out, told([of]))

    def _decided(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run a function of numbers that values or chance decide."""
        subject = args[0] if args else next(iter(kwargs.values()), None)
        moved = name in REARRANGE or name in SAME
        if moved and any(isinstance(value, Chosen) for value in tensors_in((*args[1:], *kwargs.values()))):
            return self._lost(func, name, args, kwargs)
        if isinstance(subject, Chosen) and (moved or name in BINARY or name == "add"):
            return _mapped(_native(func, args, kwargs), chosen)
        return self._lost(func, name, args, kwargs)

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

    def _ruled(self, rule: Rule, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run a rule; where it fails, or what it gives is not of the shape that torch gives, places are lost."""
        if name == "setitem":  # what cannot be written ends the trace: what stood there is gone
            return rule(self.state, *args, **kwargs)
        try:
            out = rule(self.state, *args, **kwargs)
        except (
            AssertionError,
            AttributeError,
            IndexError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
            StopIteration,
        ):
            return self._lost(func, name, args, kwargs)
        if name in _SURE:
            return out
        expected = _outline(func, args, kwargs)
        if isinstance(expected, tuple) and isinstance(out, tuple):
            rest = [_shapeless(want) if got is None else got for got, want in zip(out, expected, strict=True)]
            return type(out)(rest) if type(out) is not tuple else tuple(rest)
        if not isinstance(expected, Tensor) or (isinstance(out, Tensor) and out.shape == expected.shape):
            return out
        return self._lost(func, name, args, kwargs)

    def _lost(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Run a function that no rule knows for its shapes: what comes out has no place."""
        self.state.lost[name] = self.state.lost.get(name, 0) + 1
        story = told(tensors_in((*args, *kwargs.values())))
        return _mapped(_outline(func, args, kwargs), lambda value: _shapeless(value, story))


def _shapeless(value: Any, story: Story | None = None) -> Any:
    """Return what stands for an outline: tokens without a place, or numbers that values decide."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() or value.is_complex():
        return mixed(value.shape, story)
    return chosen(torch.zeros(value.shape, dtype=value.dtype))


def _outline(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what a function gives, without values: only shapes."""

    def outline(value: Any) -> Any:
        if isinstance(value, Tensor):
            dtype = torch.float32 if value.is_floating_point() else value.dtype
            return torch.empty(value.shape, dtype=dtype, device="meta")
        return type(value)(map(outline, value)) if type(value) in (list, tuple) else value

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return func(*outline(args), **{key: outline(value) for key, value in kwargs.items()})
    except Exception as error:
        name = getattr(func, "__name__", "")
        raise Undecided(f"{name} cannot be followed without values ({type(error).__name__})") from None


def _name(func: Any) -> str:
    """Return the name of what a function does: without underscores, in-place and reflected forms."""
    name = str(getattr(func, "__name__", ""))
    if not name.startswith("__"):
        return name.strip("_")
    bare = name.strip("_")
    return bare[1:] if bare[:1] in ("i", "r") and bare[1:] in _OPERATORS and bare != "rmatmul" else bare


def _ends(values: Any) -> Iterator[Any]:
    """Yield the ends of slices among arguments."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _ends(value)
        elif isinstance(value, slice):
            yield from (value.start, value.stop, value.step)


def _target(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Return the tensor that a function writes into, if it does."""
    name = str(getattr(func, "__name__", ""))
    into = kwargs.get("out")
    if into is None and args:
        in_place = name.endswith("_") and not name.startswith("__")
        operator = name.startswith("__i") and name.strip("_")[1:] in _OPERATORS
        into = args[0] if in_place or operator else None
    return into if isinstance(into, Tensor) else None


def _native(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the numbers themselves."""
    return func(*bare(args), **{key: bare(value) for key, value in kwargs.items()})


def _mapped(out: Any, change: Any) -> Any:
    """Return what a function gave with each tensor changed."""
    if isinstance(out, list | tuple):
        parts = [_mapped(part, change) for part in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    return change(out) if isinstance(out, Tensor) else out


def _wrapped(out: Any, story: Story, *, base: Ids | None = None) -> Any:
    def wrap(tensor: Tensor) -> Ids:
        ids = make(tensor, story)
        ids.base = None if base is None else base.base if base.base is not None else base
        return ids

    return _mapped(out, wrap)

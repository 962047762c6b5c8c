"""One torch function as it was asked for: the function, its arguments, and ways to run it again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Asked(NamedTuple):
    """What `__torch_function__` was given."""

    func: Any
    types: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Run it as it was asked for."""
        return self.func(*self.args, **self.kwargs)

    def run_with(self, instead: Mapping[int, Tensor]) -> Any:
        """Run it with other tensors in place of some, by identity; nothing is written to `out`."""

        def swapped(given: Any) -> Any:
            if isinstance(given, (tuple, list)):
                return type(given)([swapped(item) for item in given])
            return instead.get(id(given), given)

        kwargs = {name: swapped(given) for name, given in self.kwargs.items() if name != "out"}
        return self.func(*[swapped(given) for given in self.args], **kwargs)

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments, in order, those in lists included."""
        given: list[Tensor] = []
        for item in (*self.args, *self.kwargs.values()):
            if isinstance(item, Tensor):
                given.append(item)
            elif isinstance(item, (tuple, list)):
                given += [inner for inner in item if isinstance(inner, Tensor)]
        return given

    def option(self, names: str, position: int, default: Any = None) -> Any:
        """Return an argument by one of its names or its position."""
        for name in names.split():
            if name in self.kwargs:
                return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    @property
    def is_in_place(self) -> bool:
        """Whether the function changes its first argument."""
        name = getattr(self.func, "__name__", "")
        return (name.endswith("_") and not name.endswith("__")) or name in {"__imul__", "__iadd__", "__itruediv__"}


def forms(names: str) -> list[Any]:
    """Return every form in which torch hands the functions of these names to a mode."""
    found: list[Any] = []
    for name in names.split():
        found += [form for home in (torch, Tensor, functional) if (form := getattr(home, name, None)) is not None]
        packet = None if name.startswith("__") else getattr(torch.ops.aten, name, None)
        if packet is not None:
            found += [packet, *(getattr(packet, overload) for overload in packet.overloads())]
    return found

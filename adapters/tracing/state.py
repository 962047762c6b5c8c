"""What the rules of a trace share: its grids, who is told of attention, the roles of learned tokens."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .contract import Seen
from .grids import Grids
from .ids import Chosen, Ids, Story, plain
from .writes import Writes

Rule = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """What rules may ask and tell.

    Parameters
    ----------
    grids
        Takes new tokens.
    roles
        Roles of the learned tokens among the parameters, by storage address.
    attention
        Is told every attention and the story of its query; returns its number.
    residual
        Is told the event whose output is added to something.
    folded
        Is told the events whose output is summed over overlapping neighbourhoods.

    """

    grids: Grids
    roles: Mapping[int, str]
    attention: Callable[[Seen, Story], int]
    residual: Callable[[int], None]
    folded: Callable[[frozenset[int]], None]
    named: dict[int, tuple["weakref.ref[Tensor]", str]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    writes: Writes = field(default_factory=Writes)

    def role(self, tensor: Tensor) -> str:
        """Return the role of a learned token, or of what was made of one; empty for anything else."""
        found = self.named.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        return self.roles.get(tensor.untyped_storage().data_ptr(), "") if tensor.numel() else ""

    def name(self, made: Tensor, of: list[Tensor]) -> None:
        """Remember that a tensor was made of a learned token, if it was."""
        role = next((found for tensor in of if (found := self.role(tensor))), "")
        if role:
            self.named[id(made)] = (weakref.ref(made), role)


def given(names: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a torch function by name: `names` in their order, `input` for the first."""
    listed = names.split()
    found = dict(zip(listed, args, strict=False))
    return found | {listed[0] if key in ("input", "self") else key: value for key, value in kwargs.items()}


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among values, also those inside lists, tuples and slices."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, slice):
            yield from tensors_in((value.start, value.stop, value.step))
        elif isinstance(value, Tensor):
            yield value


def bare(value: Any) -> Any:
    """Return a value, and the tensors in lists and tuples, as plain numbers."""
    if isinstance(value, Ids | Chosen):
        return plain(value)
    return type(value)(map(bare, value)) if type(value) in (list, tuple) else value


def of_picture(args: Any, kwargs: Mapping[str, Any]) -> Ids:
    """Return the first argument that is of the picture."""
    return next(value for value in tensors_in((*args, *kwargs.values())) if isinstance(value, Ids))

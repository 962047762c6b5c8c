"""What stands in tensors that a model wrote into: ids written into a plain buffer make it a tensor of ids.

A write into a view also changes what it is a view of, and may have changed it anywhere: that has no
places from then on.
"""

from typing import Any

import torch
from torch import Tensor

from .ids import Chosen, Ids, mixed, plain, thin


class Writes:
    """Stand-ins of plain tensors that were written into, kept for as long as the trace runs."""

    def __init__(self) -> None:
        self._stands_for: dict[int, tuple[Tensor, Tensor]] = {}

    def now(self, value: Any) -> Any:
        """Return the arguments of a function with what stands in them now."""
        if not self._stands_for:
            return value
        if isinstance(value, Tensor):
            kept, ids = self._stands_for.get(id(value), (None, value))
            return ids if kept is value else value
        if isinstance(value, dict):
            return {key: self.now(part) for key, part in value.items()}
        return type(value)(map(self.now, value)) if type(value) in (list, tuple) else value

    def write(self, target: Tensor, ids: Tensor) -> None:
        """Write ids (or numbers that values decide) into a tensor, in place."""
        if not isinstance(target, Ids) or not isinstance(ids, Ids):
            self._stands_for[id(target)] = (target, ids)
            base = None if isinstance(target, Ids | Chosen) else target._base
            if base is not None:
                self._stands_for[id(base)] = (base, mixed(base.shape))
            return
        target.story = ids.story
        if _equal(target, ids):
            return
        if target.base is not None:
            target.base.set_(plain(mixed(target.base.shape)))  # type: ignore[call-overload] # torch's stub knows storages only
        target.set_(plain(ids))  # type: ignore[call-overload]


def _equal(one: Ids, two: Ids) -> bool:
    if one.shape != two.shape:
        return False
    return torch.equal(thin(plain(one)), thin(plain(two))) or torch.equal(plain(one), plain(two))

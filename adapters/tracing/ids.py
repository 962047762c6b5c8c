"""Ids: a tensor whose numbers say which token each element belongs to, in place of values.

An element belongs to one token, or to a pair (the logit of a query and a key): then both ids are
packed into one double, so that torch's own rearrangements move them together. A half beside them
says that a mask forbids the pair.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .grids import MIXED, MOST_IDS


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened to a tensor of ids.

    Parameters
    ----------
    events
        Attentions whose output it is made of, until a residual is added.
    softmax
        Whether it went through a softmax.

    """

    events: frozenset[int] = field(default_factory=frozenset)
    softmax: bool = False


class Ids(Tensor):
    """A double tensor of packed ids with a story; the mode gives it its behaviour."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    story: Story = Story()
    base: "Ids | None" = None  # what it is a view of: a write changes both


class Chosen(Tensor):
    """Numbers that values of the picture, or chance, decide: what they select has no place that a trace knows."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Undecided(Exception):  # noqa: N818 # no error: where a trace ends, and why
    """The model goes on by values of the picture (or by chance), which indices cannot decide."""


def make(values: Tensor, story: Story | None = None) -> Ids:
    """Return packed ids as Ids."""
    out: Ids = values.to(torch.float64).as_subclass(Ids)
    out.story = story or Story()
    return out


def plain(ids: Tensor) -> Tensor:
    """Return the numbers of Ids as a plain tensor."""
    return ids.as_subclass(Tensor)


def chosen(values: Tensor) -> Chosen:
    """Return numbers that something other than places decides."""
    return plain(values).as_subclass(Chosen)


def mixed(shape: Sequence[int], story: Story | None = None) -> Ids:
    """Return tokens without a place."""
    return make(torch.full((), float(MIXED), dtype=torch.float64).expand(tuple(shape)), story)


def told(tensors: Iterable[Any]) -> Story:
    """Return the common story of several tensors."""
    stories = [tensor.story for tensor in tensors if isinstance(tensor, Ids)]
    if len(stories) == 1:
        return stories[0]
    return Story(
        events=frozenset().union(*(story.events for story in stories)),
        softmax=any(story.softmax for story in stories),
    )


def first(packed: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return the first id of each pair (the only one of a token)."""
    return packed.to(torch.int64) % MOST_IDS


def second(packed: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return the second id of each pair, 0 for a token."""
    return packed.to(torch.int64) // MOST_IDS


def packed(one: Int[Tensor, "*#any"], two: Int[Tensor, "*#any"] | int = 0) -> Float[Tensor, "*any"]:
    """Return ids packed as pairs."""
    return (one + two * MOST_IDS).to(torch.float64)


FORBIDDEN = 0.5

# A key whose additive mask lies this far below its row's largest gets e^-50 of a share at most: Swin
# masks with -100 on top of a learned bias.
FAR_BELOW = 50.0


def forbids(mask: Tensor) -> Tensor | None:
    """Return where an additive mask (or one of booleans, True: may attend) forbids keys; None if nowhere."""
    if mask.dtype == torch.bool:
        found = ~mask
    elif mask.is_floating_point() and mask.dim() > 1:
        found = mask < mask.amax(-1, keepdim=True) - FAR_BELOW
    else:
        return None
    return found if bool(found.any()) else None


def forbidden(values: Float[Tensor, "*any"]) -> Tensor:
    """Return where pairs are forbidden."""
    return values % 1 > 0


def forbid(values: Float[Tensor, "*any"], where: Tensor) -> Float[Tensor, "*any"]:
    """Return pairs with some of them forbidden."""
    shape = torch.broadcast_shapes(values.shape, where.shape)  # type: ignore[no-untyped-call]
    small, where = thin(values), where.cpu()
    return torch.where(where & ~forbidden(small), small + FORBIDDEN, small).expand(shape)


def compact(ids: Tensor) -> Tensor:
    """Return the same numbers without the memory of what they were cut from."""
    return thin(ids).clone().expand(ids.shape)


def is_pair(ids: Tensor) -> bool:
    """Whether any element belongs to a query and a key."""
    values = thin(plain(ids))
    return bool(values.numel()) and float(values.max()) >= MOST_IDS


def thin(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Return the tensor with every repeated dimension (stride 0) cut to one."""
    for dim in range(values.dim()):
        if values.shape[dim] > 1 and values.stride(dim) == 0:
            values = values.narrow(dim, 0, 1)
    return values


def thinned(ids: Tensor, dim: int) -> Float[Tensor, "..."]:
    """Return the numbers with a dimension that repeats in memory repeated without it, as channels do after a copy."""
    values = plain(ids)
    return values.narrow(dim, 0, 1).expand(values.shape) if is_constant(values, [dim]) else values


def is_constant(values: Shaped[Tensor, "..."], dims: Sequence[int]) -> bool:
    """Whether the numbers do not change along some dimensions."""
    small = thin(values)
    return all(small.shape[dim] == 1 or bool((small == small.narrow(dim, 0, 1)).all()) for dim in dims)

"""Rules for what is done element by element, and for joining and writing: tokens stay, masks forbid."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .functions import BINARY
from .ids import FAR_BELOW, Ids, Story, forbid, forbids, is_pair, make, plain, told
from .pointwise import combined, joined
from .state import Rule, State, given, of_picture, tensors_in


def _softmax(state: State, *args: Any, **kwargs: Any) -> Ids:
    ids = of_picture(args, kwargs)
    return make(plain(ids), Story(events=ids.story.events, softmax=True, merged=ids.story.merged))


def _binary(state: State, *args: Any, **kwargs: Any) -> Ids:
    found = [value for value in tensors_in((*args, *kwargs.values())) if value.dim() or isinstance(value, Ids)]
    out = found[0]
    for other in found[1:]:
        if isinstance(out, Ids) or isinstance(other, Ids):
            out = combined(out, other, grids=state.grids)
    assert isinstance(out, Ids)
    return out


def _add(state: State, *args: Any, **kwargs: Any) -> Ids:
    found = [value for value in tensors_in((*args, *kwargs.values())) if value.dim() or isinstance(value, Ids)]
    if len(found) == 1:
        return of_picture(found, {})
    left, right = found[:2]
    out = combined(left, right, grids=state.grids)
    if not isinstance(left, Ids) or not isinstance(right, Ids):
        mask = forbids(right if isinstance(left, Ids) else left)
        return out if mask is None or not is_pair(out) else make(forbid(plain(out), mask), out.story)
    resolved = left.story.events ^ right.story.events
    for event in resolved:
        ours, theirs = (left, right) if event in left.story.events else (right, left)
        state.residual(event, ours, theirs)
    story = told([left, right])
    return make(plain(out), Story(events=story.events - resolved, softmax=story.softmax, merged=story.merged))


def _masked_fill(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Keep logits, of which those that are filled with very little are forbidden."""
    asked = given("x mask value", args, kwargs)
    x, mask, value = asked["x"], asked["mask"], asked["value"]
    if not isinstance(x, Ids):
        return of_picture((mask, value), {})
    low = float(value.max() if isinstance(value, Tensor) else value) < -FAR_BELOW
    if not low or isinstance(mask, Ids) or not is_pair(x):
        return x
    return make(forbid(plain(x), mask), x.story)


def _where(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("condition x other", args, kwargs)
    known = of_picture((asked.get("x"), asked.get("other"), asked["condition"]), {})
    shape = torch.broadcast_shapes(*(value.shape for value in tensors_in(asked.values())))  # type: ignore[no-untyped-call]
    return make(plain(known).expand(shape), known.story)


def _cat(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("tensors dim", args, kwargs)
    parts = [part for part in asked["tensors"] if part.numel() or part.dim() > 1]
    roles = [state.role(part) for part in parts]
    return joined(parts, asked.get("dim", 0), roles=roles, grids=state.grids)


def _glu(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("x dim", args, kwargs)
    return make(plain(asked["x"]).chunk(2, asked.get("dim", -1))[0], asked["x"].story)


def _pad(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Pad with nothing, whatever the number was."""
    asked = given("x pad mode value", args, kwargs)
    return make(functional.pad(plain(asked["x"]), asked["pad"], mode=asked.get("mode", "constant")), asked["x"].story)


def _setitem(state: State, x: Any, where: Any, value: Any) -> None:
    """Write into ids, after giving repeated dimensions memory of their own."""
    if not isinstance(x, Ids):
        state.lost["setitem"] = state.lost.get("setitem", 0) + 1
    elif isinstance(value, Ids):
        whole = plain(x).contiguous().clone()
        whole[where] = plain(value)
        x.set_(whole)  # type: ignore[call-overload] # torch's stub knows storages only


def _copy(state: State, *args: Any, **kwargs: Any) -> Any:
    return args[1] if isinstance(args[1], Ids) else args[0]


RULES: dict[str, Rule] = {
    "softmax": _softmax,
    "softmin": _softmax,
    "add": _add,
    "masked_fill": _masked_fill,
    "where": _where,
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "glu": _glu,
    "pad": _pad,
    "setitem": _setitem,
    "copy": _copy,
}
RULES |= dict.fromkeys(BINARY, _binary)

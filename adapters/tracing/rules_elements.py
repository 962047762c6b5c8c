"""Rules for what is done element by element, and for joining and writing: tokens stay, masks forbid."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .functions import BINARY
from .grids import MIXED, NOTHING
from .ids import FAR_BELOW, Chosen, Ids, Story, chosen, forbid, forbids, is_pair, make, mixed, plain, told
from .pointwise import combined, joined
from .state import Rule, State, bare, given, of_picture, tensors_in


def _softmax(state: State, *args: Any, **kwargs: Any) -> Ids:
    ids = of_picture(args, kwargs)
    return make(plain(ids), Story(events=ids.story.events, softmax=True))


def _binary(state: State, *args: Any, **kwargs: Any) -> Ids:
    found = [value for value in tensors_in((*args, *kwargs.values())) if value.dim() or isinstance(value, Ids)]
    out = found[0]
    for other in found[1:]:
        if isinstance(out, Ids) or isinstance(other, Ids):
            out = combined(out, other, grids=state.grids)
    assert isinstance(out, Ids)
    return make(plain(out), out.story)


def _add(state: State, *args: Any, **kwargs: Any) -> Ids:
    found = [value for value in tensors_in((*args, *kwargs.values())) if value.dim() or isinstance(value, Ids)]
    if len(found) == 1:
        return make(plain(of_picture(found, {})), of_picture(found, {}).story)
    left, right = found[:2]
    if isinstance(left, Ids) and isinstance(right, Ids) and left.story.events - right.story.events:
        left, right = right, left  # the stream says whose the sum is, not what attention adds to it
    out = combined(left, right, grids=state.grids)
    if not isinstance(left, Ids) or not isinstance(right, Ids):
        mask = forbids(right if isinstance(left, Ids) else left)
        return out if mask is None or not is_pair(out) else make(forbid(plain(out), mask), out.story)
    resolved = left.story.events ^ right.story.events
    for event in resolved:
        state.residual(event)
    story = told([left, right])
    return make(plain(out), Story(events=story.events - resolved, softmax=story.softmax))


def _masked_fill(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Keep logits, of which those that are filled with very little are forbidden."""
    asked = given("x mask value", args, kwargs)
    x, mask, value = asked["x"], asked["mask"], asked["value"]
    if not isinstance(x, Ids):
        return of_picture((mask, value), {})
    low = float(value.max() if isinstance(value, Tensor) else value) < -FAR_BELOW
    if not low or isinstance(mask, Ids | Chosen) or not is_pair(x):
        return make(plain(x), x.story)
    return make(forbid(plain(x), mask), x.story)


def _where(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Take each element from where it is taken; numbers in place of logits may forbid them."""
    asked = given("condition x other", args, kwargs)
    condition, x, other = asked["condition"], asked["x"], asked["other"]
    if not isinstance(condition, Tensor):  # Tensor.where: x.where(condition, other)
        condition, x = x, condition
    shape = torch.broadcast_shapes(*(value.shape for value in tensors_in((condition, x, other))))  # type: ignore[no-untyped-call]
    unknown = isinstance(condition, Ids | Chosen)
    if not isinstance(x, Ids) or not isinstance(other, Ids):
        known, number = (x, other) if isinstance(x, Ids) else (other, x)
        assert isinstance(known, Ids)
        low = float(number.max() if isinstance(number, Tensor) else number) < -FAR_BELOW
        if unknown or not low or not is_pair(known):
            return make(plain(known).expand(shape), known.story)
        return make(forbid(plain(known).expand(shape), ~condition if known is x else condition), known.story)
    one, two = plain(x), plain(other)
    taken = torch.where(one == two, one, float(MIXED)) if unknown else torch.where(condition, one, two)
    return make(taken.expand(shape), told([x, other]))


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
    unknown = any(isinstance(part, Chosen | Ids) for part in tensors_in((where,)))
    if not isinstance(value, Ids):
        if isinstance(value, Chosen):
            state.writes.write(x, mixed(x.shape) if x.is_floating_point() else chosen(x))
        elif not isinstance(x, Ids):
            x[bare(where)] = value  # what stands there then is of neither
        elif isinstance(value, Tensor) and not unknown:
            whole = plain(x).contiguous().clone()
            whole[where] = torch.where(whole[where] > NOTHING, whole[where], float(MIXED))
            state.writes.write(x, make(whole, x.story))
    elif unknown:
        state.writes.write(x, mixed(x.shape, value.story))
    elif not isinstance(x, Ids):
        whole = torch.where(x == 0, 0.0, float(MIXED)).to(torch.float64).cpu()
        whole[where] = plain(value)
        state.writes.write(x, make(whole, value.story))
    else:
        whole = plain(x).contiguous().clone()
        whole[where] = plain(value)
        state.writes.write(x, make(whole, told([x, value])))


def _copy(state: State, *args: Any, **kwargs: Any) -> Any:
    asked = given("x src", args, kwargs)
    x, src = asked["x"], asked["src"]
    return make(plain(src).expand(x.shape), src.story) if isinstance(src, Ids) else x


def _index_add(state: State, *args: Any, **kwargs: Any) -> Ids:
    """Add to some entries, as NaFlex adds positions sample by sample; tokens that are added mix with those there."""
    asked = given("x dim index source", args, kwargs)
    x, source = asked["x"], asked["source"]
    if isinstance(x, Ids) and not isinstance(source, Ids):
        return x
    return make(torch.full((), float(MIXED), dtype=torch.float64).expand(x.shape), told([x, source]))


RULES: dict[str, Rule] = {
    "index_add": _index_add,
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

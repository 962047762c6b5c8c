"""Following a softmax to the contraction that sums over its last dimension.

A distribution is remembered by the identity of its tensor and by the dimension that sums to one, its
key dimension. Every torch function that takes a remembered tensor either keeps that dimension, moves
it, or ends the trail. Layout changes are followed by running the same function on a tensor without
memory (the meta device) whose strides mark the key dimension.

A softmax may also be written by hand: `exp(x) / exp(x).sum(dim)`, or the exp of a log_softmax.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import ne
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmattn.interception.asked import Asked, forms
from mmattn.interception.mode import AttentionMode, Handler


@dataclass(frozen=True, kw_only=True, eq=False)
class Trail:
    """What is known of a remembered tensor.

    Parameters
    ----------
    key
        The key dimension.
    born
        Shape of the softmax' result.
    grown
        Whether dimensions of one were added since: such a dimension is no query.
    dropout
        Probability of the dropout on the way; then `clean` is the tensor without it.
    stage
        `weights`; or on the way to them `exp`, the `total` of an exp, the `log` of the weights, the
        `chosen` largest of them, or their `product` with a value.
    exp
        Identity of the exp that a total sums, or of the product.
    operands
        The weights and the value of a product that is still to be summed.
    stacked
        How many distributions were put side by side along a new dimension; 0 for none.
    """

    key: int
    born: tuple[int, ...]
    grown: bool = False
    dropout: float = 0.0
    clean: Tensor | None = None
    stage: Literal["weights", "exp", "total", "log", "chosen", "product"] = "weights"
    exp: int = 0
    stacked: int = 0
    operands: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One function that was applied to one remembered tensor, whose shape was `shape`."""

    asked: Asked
    trail: Trail
    source: Tensor
    shape: torch.Size


Rule = Callable[[Step, Tensor], Trail | None]


def trail_of(mode: AttentionMode, tensor: Any) -> Trail | None:
    """Return the trail of a remembered tensor."""
    found = mode.followed.get(id(tensor))
    return None if found is None or found[0]() is not tensor else found[1]


def remember(mode: AttentionMode, tensor: Tensor, trail: Trail) -> None:
    """Follow `tensor` from now on, for as long as it lives."""
    number, table = id(tensor), mode.followed

    def forget(reference: Any) -> None:
        if number in table and table[number][0] is reference:
            del table[number]

    table[number] = (weakref.ref(tensor, forget), trail)


def known_in(mode: AttentionMode, asked: Asked) -> list[tuple[Tensor, Trail]]:
    """Return the remembered tensors among the arguments."""
    found = ((tensor, trail_of(mode, tensor)) for tensor in asked.tensors())
    return [(tensor, trail) for tensor, trail in found if trail is not None]


def without_dropout(mode: AttentionMode, asked: Asked) -> Any:
    """Do to the tensors before dropout what is done to those after it; None where there was no dropout."""
    cleans = {id(tensor): trail.clean for tensor, trail in known_in(mode, asked) if trail.clean is not None}
    if not cleans:
        return None
    return asked.run_with({number: clean.clone() for number, clean in cleans.items()} if asked.is_in_place else cleans)


def on_softmax(mode: AttentionMode, asked: Asked) -> Any:
    """Remember the result of a softmax, or of a log_softmax, whose exp it is."""
    result = asked.run()
    dim = asked.option("dim", 4, -1) if asked.func is functional.gumbel_softmax else asked.option("dim", 1)
    if isinstance(result, Tensor) and isinstance(dim, int) and result.dim() >= 2:
        stage: Literal["log", "weights"] = "log" if "log_softmax" in str(asked.func) else "weights"
        remember(mode, result, Trail(key=dim % result.dim(), born=tuple(result.shape), stage=stage))
    return result


def on_exp(mode: AttentionMode, asked: Asked) -> Any:
    """Remember an exp: divided by its own sum it is a softmax."""
    trail = trail_of(mode, asked.option("input self", 0))
    result = asked.run()
    if isinstance(result, Tensor) and result.dim() >= 2:
        logs = trail is not None and trail.stage == "log"
        start = Trail(key=-1, born=tuple(result.shape), stage="exp")
        remember(mode, result, replace(trail, stage="weights") if trail is not None and logs else start)
    return result


def on_total(mode: AttentionMode, asked: Asked) -> Any:
    """Remember the sum of an exp over one dimension."""
    result = asked.run()
    source = asked.option("input self", 0)
    trail = trail_of(mode, source)
    dim = asked.option("dim axis", 1)
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if trail is not None and trail.stage == "exp" and isinstance(dim, int):
        remember(mode, result, replace(trail, stage="total", key=dim % source.dim(), exp=id(source), clean=None))
    return result


def on_quotient(mode: AttentionMode, asked: Asked) -> Any:
    """Remember exp / total as a distribution; divide distributions as any elementwise function does."""
    above, below = asked.option("input self", 0), asked.option("other", 1)
    upper, lower = trail_of(mode, above), trail_of(mode, below)
    if upper is None or lower is None or upper.stage != "exp" or lower.stage != "total" or lower.exp != id(above):
        return _elementwise(mode, asked)
    key, dims = lower.key, above.dim()
    result = asked.run()
    if below.dim() == dims and below.shape[key] == 1:
        remember(mode, result, Trail(key=key, born=tuple(result.shape)))
    return result


def on_dropout(mode: AttentionMode, asked: Asked) -> Any:
    """Dropout is transparent: the weights are those before it."""
    source = asked.option("input", 0)
    trail = trail_of(mode, source)
    if trail is None or trail.stage == "product":
        return _elementwise(mode, asked)
    p = float(asked.option("p", 1, 0.5))
    if p and asked.option("training train", 2, True):
        before = trail.clean if trail.clean is not None else source.clone()
        trail = replace(trail, dropout=1 - (1 - trail.dropout) * (1 - p), clean=before)
    result = asked.run()
    remember(mode, result, trail)
    return result


def on_sum(mode: AttentionMode, asked: Asked) -> Any:
    """Follow a sum of distributions (ConViT's gate), or with a number or what the whole batch shares."""
    known = known_in(mode, asked)
    if not known:
        return asked.run()
    source, trail = known[0]
    shape = source.shape
    others = [tensor for tensor in asked.tensors() if trail_of(mode, tensor) is None]
    clean = without_dropout(mode, asked)
    result = asked.run()
    agree = all(other.key == trail.key and other.stage == trail.stage != "product" for _, other in known)
    if agree and result.shape == shape and all(_is_shared(other, source) for other in others):
        remember(mode, result, replace(trail, clean=clean, dropout=max(other.dropout for _, other in known)))
    elif result is source:
        mode.followed.pop(id(result), None)
    return result


def _is_shared(other: Tensor, source: Tensor) -> bool:
    return isinstance(other, nn.Parameter) or other.dim() < source.dim() or other.shape[0] < source.shape[0]


def follower(rule: Rule) -> Handler:
    """Make a handler of a rule that says what becomes of one trail."""

    def handle(mode: AttentionMode, asked: Asked) -> Any:
        known = known_in(mode, asked)
        if not known:
            return asked.run()
        source, trail = known[0]
        step = Step(asked=asked, trail=trail, source=source, shape=source.shape)
        clean = without_dropout(mode, asked)
        result = asked.run()
        for index, piece in enumerate(_pieces(result)):
            if not isinstance(piece, Tensor):
                continue
            after = rule(step, piece)
            if after is not None:
                remember(mode, piece, replace(after, clean=None if clean is None else _pieces(clean)[index]))
            elif piece is source:
                mode.followed.pop(id(piece), None)
        return result

    return handle


def _pieces(result: Any) -> Sequence[Any]:
    return result if isinstance(result, (tuple, list)) else (result,)


def same(step: Step, result: Tensor) -> Trail | None:
    """Casts, copies, masks and gates: the shape stays."""
    return step.trail if result.shape == step.shape and step.trail.stage != "product" else None


def _reshaped(step: Step, result: Tensor) -> Trail | None:
    """Views in the same order of entries: the key dimension has as many entries behind it as before."""
    trail, shape = step.trail, step.shape
    if trail.stage == "total":
        return trail
    if trail.stage in ("exp", "product"):
        return None
    behind = prod(shape[trail.key + 1 :])
    fits = [
        dim
        for dim, size in enumerate(result.shape)
        if size == shape[trail.key] and prod(result.shape[dim + 1 :]) == behind
    ]
    if not fits:
        return None
    from_end = len(shape) - trail.key
    key = min(fits, key=lambda dim: abs(result.dim() - dim - from_end))
    return replace(trail, key=key, grown=trail.grown or result.dim() > len(shape))


def _moved(step: Step, result: Tensor) -> Trail | None:
    """Transposes, slices and new dimensions: the function runs on a tensor that only has strides."""
    trail, shape = step.trail, step.shape
    if trail.stage == "total":
        return trail
    if trail.stage in ("exp", "product"):
        return None
    probe = torch.empty_strided(shape, [int(dim == trail.key) for dim in range(len(shape))], device="meta")
    try:
        plain = _without_choice(step.asked)
        moved = plain.run_with({id(step.source): probe})
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    differs = int(plain is not step.asked)  # as many dimensions may differ in size
    piece = next((piece for piece in _pieces(moved) if _differing(piece.shape, result.shape) <= differs), None)
    marked = [] if piece is None else [dim for dim, stride in enumerate(piece.stride()) if stride]
    if piece is not None and len(marked) > 1:
        marked = [dim for dim in marked if piece.shape[dim] > 1]  # a new last dimension has stride one
    if len(marked) != 1:
        return None
    return replace(trail, key=marked[0], grown=trail.grown or result.dim() > len(shape))


def _without_choice(asked: Asked) -> Asked:
    """Return an indexing with `:` in place of its only list of positions: torch puts what is chosen there."""
    if asked.func is not Tensor.__getitem__:
        return asked
    index = asked.args[1]
    items = index if isinstance(index, tuple) else (index,)
    chosen = [isinstance(item, list) or (isinstance(item, Tensor) and item.dim() == 1) for item in items]
    if sum(chosen) != 1:
        return asked
    plain = tuple(slice(None) if is_list else item for item, is_list in zip(items, chosen, strict=True))
    return asked._replace(args=(asked.args[0], plain))


def _differing(one: torch.Size, other: torch.Size) -> int:
    return sum(map(ne, one, other)) if len(one) == len(other) else len(one) + len(other)


def table(rules: dict[str, Handler]) -> dict[Any, Handler]:
    """Return handlers by torch function, of handlers by the functions' names."""
    return {form: handler for names, handler in rules.items() for form in forms(names)}


_elementwise = follower(same)

FOLLOWED: dict[Any, Handler] = {
    **table(
        {
            "contiguous clone detach detach_ alias to _to_copy type type_as float half bfloat16 double cpu cuda "
            "nan_to_num nan_to_num_ clamp clamp_ clamp_min clamp_min_ requires_grad_ positive mul mul_ multiply "
            "multiply_ __mul__ __rmul__ __imul__ masked_fill masked_fill_ where": _elementwise,
            "div div_ divide divide_ true_divide true_divide_ __truediv__ __itruediv__": on_quotient,
            "view reshape flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ view_as reshape_as _unsafe_view "
            "ravel": follower(_reshaped),
            "transpose transpose_ permute movedim moveaxis swapaxes swapdims t __getitem__ narrow select slice split "
            "split_with_sizes chunk tensor_split unbind expand expand_as adjoint": follower(_moved),
            "dropout dropout_ feature_dropout dropout1d dropout2d dropout3d": on_dropout,
            "add add_ sub sub_ subtract subtract_ __add__ __radd__ __iadd__ __sub__ __isub__ __rsub__ rsub": on_sum,
            "sum": on_total,
        }
    ),
    **{getattr(Tensor, name).__get__: follower(_moved) for name in ("T", "mT", "H", "mH")},
}

SOFTMAXES: dict[Any, Handler] = {
    **table(
        {
            "softmax _softmax _safe_softmax log_softmax _log_softmax softmin gumbel_softmax": on_softmax,
            "exp exp_": on_exp,
        }
    ),
    torch.special.softmax: on_softmax,
    torch.special.log_softmax: on_softmax,
}

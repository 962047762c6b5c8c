"""Following a softmax to the contraction that sums over its last dimension.

A distribution is remembered by the identity of its tensor and by the dimension that sums to one, its
key dimension. Every torch function that takes a remembered tensor either keeps that dimension, moves
it, or ends the trail. Layout changes are followed by running the same function on a tensor without
memory (the meta device) whose strides mark the key dimension.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """

    key: int
    born: tuple[int, ...]
    grown: bool = False
    dropout: float = 0.0
    clean: Tensor | None = None


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


def on_softmax(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Remember the result of a softmax."""
    result = func(*args, **kwargs)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(result, Tensor) and isinstance(dim, int) and result.dim() >= 2:
        remember(mode, result, Trail(key=dim % result.dim(), born=tuple(result.shape)))
    return result


def _follower(rule: Callable[[Trail, Any, tuple[Any, ...], dict[str, Any], Tensor, Tensor], Trail | None]) -> Handler:
    """Make a handler of a rule that says what becomes of one trail."""

    def handle(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = _known(mode, args, kwargs)
        if not known:
            return func(*args, **kwargs)
        source, trail = known[0]
        clean = without_dropout(mode, func, args, kwargs)
        result = func(*args, **kwargs)
        for index, piece in enumerate(result if isinstance(result, (tuple, list)) else [result]):
            if not isinstance(piece, Tensor):
                continue
            after = rule(trail, func, args, kwargs, source, piece)
            if after is not None:  # the trail without dropout goes the same way
                part = clean[index] if isinstance(clean, (tuple, list)) else clean
                remember(mode, piece, replace(after, clean=part))
            elif piece is source:
                mode.followed.pop(id(piece), None)
        return result

    return handle


def without_dropout(mode: AttentionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do to the tensors before dropout what is done to those after it; None where there was no dropout."""
    cleans = {id(tensor): trail.clean for tensor, trail in _known(mode, args, kwargs) if trail.clean is not None}
    if not cleans:
        return None
    if getattr(func, "__name__", "").endswith("_"):
        cleans = {number: clean.clone() for number, clean in cleans.items()}

    def swapped(given: Any) -> Any:
        return cleans.get(id(given), given)

    return func(*map(swapped, args), **{name: swapped(given) for name, given in kwargs.items()})


def _known(mode: AttentionMode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Tensor, Trail]]:
    found = ((tensor, trail_of(mode, tensor)) for tensor in tensors_in(args, kwargs))
    return [(tensor, trail) for tensor, trail in found if trail is not None]


def _same(
    trail: Trail, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, result: Tensor
) -> Trail | None:
    """Casts, copies, masks and gates: the shape stays."""
    return trail if result.shape == source.shape else None


def _reshaped(
    trail: Trail, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, result: Tensor
) -> Trail | None:
    """Views in the same order of entries: the key dimension has as many entries behind it as before."""
    width = source.shape[trail.key]
    behind = _product(source.shape[trail.key + 1 :])
    fits = [
        dim for dim, size in enumerate(result.shape) if size == width and _product(result.shape[dim + 1 :]) == behind
    ]
    if not fits:
        return None
    from_end = source.dim() - trail.key
    key = min(fits, key=lambda dim: abs(result.dim() - dim - from_end))
    return replace(trail, key=key, grown=trail.grown or result.dim() > source.dim())


def _moved(
    trail: Trail, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, result: Tensor
) -> Trail | None:
    """Transposes, slices and new dimensions: the function runs on a tensor that only has strides."""
    strides = [int(dim == trail.key) for dim in range(source.dim())]
    probe = torch.empty_strided(source.shape, strides, device="meta")

    def swapped(given: Any) -> Any:
        return probe if given is source else given

    try:
        moved = func(*map(swapped, args), **{name: swapped(given) for name, given in kwargs.items()})
    except (RuntimeError, IndexError, NotImplementedError):
        return None
    pieces = moved if isinstance(moved, (tuple, list)) else [moved]
    piece = next((piece for piece in pieces if piece.shape == result.shape), None)
    if piece is None:
        return None
    marked = [dim for dim, stride in enumerate(piece.stride()) if stride]
    if len(marked) != 1:
        return None
    return replace(trail, key=marked[0], grown=trail.grown or result.dim() > source.dim())


def _product(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    given: list[Tensor] = []
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor):
            given.append(item)
        elif isinstance(item, (tuple, list)):
            given += [inner for inner in item if isinstance(inner, Tensor)]
    return given


def on_dropout(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dropout is transparent: the weights are those before it."""
    source = args[0] if args else kwargs.get("input")
    trail = trail_of(mode, source)
    if trail is None:
        return func(*args, **kwargs)
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    if training and p:
        before = trail.clean if trail.clean is not None else source.clone()
        trail = replace(trail, dropout=1 - (1 - trail.dropout) * (1 - float(p)), clean=before)
    result = func(*args, **kwargs)
    remember(mode, result, trail)
    return result


def on_sum(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Follow a sum of distributions (ConViT's gate), or with a number or what the whole batch shares."""
    known = _known(mode, args, kwargs)
    if not known:
        return func(*args, **kwargs)
    source, trail = known[0]
    shape = source.shape
    others = [tensor for tensor in tensors_in(args, kwargs) if trail_of(mode, tensor) is None]
    clean = without_dropout(mode, func, args, kwargs)
    result = func(*args, **kwargs)
    agree = all(other.key == trail.key for _, other in known)
    if agree and result.shape == shape and all(_is_shared(other, source) for other in others):
        remember(mode, result, replace(trail, clean=clean, dropout=max(other.dropout for _, other in known)))
    return result


def _is_shared(other: Tensor, source: Tensor) -> bool:
    return isinstance(other, nn.Parameter) or other.dim() < source.dim() or other.shape[0] < source.shape[0]


def _named(names: str) -> list[Any]:
    """Return every form in which torch hands these functions to a mode."""
    found: list[Any] = []
    for name in names.split():
        for home in (torch, Tensor, F):
            if (form := getattr(home, name, None)) is not None:
                found.append(form)
        packet = getattr(torch.ops.aten, name, None) if not name.startswith("__") else None
        if packet is not None:
            found += [packet, *(getattr(packet, overload) for overload in packet.overloads())]
    return found


def table(rules: dict[str, Handler]) -> dict[Any, Handler]:
    """Return handlers by torch function, of rules by the functions' names."""
    return {form: handler for names, handler in rules.items() for form in _named(names)}


FOLLOWED: dict[Any, Handler] = {
    **table(
        {
            "contiguous clone detach detach_ alias to _to_copy type type_as float half bfloat16 double cpu cuda "
            "nan_to_num nan_to_num_ clamp clamp_ clamp_min clamp_min_ requires_grad_ positive "
            "mul mul_ multiply multiply_ __mul__ __rmul__ __imul__ div div_ divide divide_ true_divide true_divide_ "
            "__truediv__ __itruediv__ masked_fill masked_fill_ where": _follower(_same),
            "view reshape flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ view_as reshape_as _unsafe_view "
            "ravel": _follower(_reshaped),
            "transpose transpose_ permute movedim moveaxis swapaxes swapdims t __getitem__ narrow select slice split "
            "split_with_sizes chunk tensor_split unbind expand expand_as adjoint": _follower(_moved),
            "dropout dropout_ feature_dropout dropout1d dropout2d dropout3d": on_dropout,
            "add add_ sub sub_ subtract subtract_ __add__ __radd__ __iadd__ __sub__ __isub__ __rsub__ rsub "
            "lerp": on_sum,
        }
    ),
    **{getattr(Tensor, name).__get__: _follower(_moved) for name in ("T", "mT", "H", "mH")},
}

SOFTMAXES: dict[Any, Handler] = {
    **table({"softmax _softmax _safe_softmax": on_softmax}),
    torch.special.softmax: on_softmax,
}

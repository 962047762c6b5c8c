"""The contraction: where a distribution meets the value, is read, and can be replaced.

`matmul`, `bmm`, `baddbmm` and `einsum`, with the value on either side. A product over another dimension
than the key mixes heads (CaiT's talking heads): it is followed, and what is read are the mixed weights.
"""

import string
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.interception.calls import Call
from mmattn.interception.follow import Trail, remember, table, tensors_in, trail_of, without_dropout
from mmattn.interception.mode import AttentionMode, Handler, Sight
from mmattn.interception.owner import running_modules
from mmattn.interception.selfcheck import relative_error, row_numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    """One product of remembered weights with a value.

    Parameters
    ----------
    weights, value
        The operands, as the function was given them.
    order
        The permutation of `weights` that gives `[..., query, key]`; the last two are those.
    queryless
        Whether the weights have no query dimension of their own: one is put in.
    out_query
        Where the query dimension stands in the result; None if there is none.
    """

    weights: Tensor
    value: Tensor
    trail: Trail
    order: tuple[int, ...]
    queryless: bool = False
    out_query: int | None
    width: int


def on_matmul(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See `weights @ value` and `value @ weights^T`."""
    names = [name for name in ("input", "self", "other", "mat2", "tensor2") if name in kwargs]
    operands = [*args[:2], *(kwargs[name] for name in names)][:2]
    if func in _REVERSED:
        operands.reverse()
    return _on_product(mode, func, args, kwargs, operands)


def on_baddbmm(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See `input + weights @ value`."""
    operands = [*args[1:3], *(kwargs[name] for name in ("batch1", "batch2", "mat1", "mat2") if name in kwargs)][:2]
    return _on_product(mode, func, args, kwargs, operands)


def _on_product(
    mode: AttentionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Any]
) -> Any:
    if len(operands) < 2 or not all(isinstance(operand, Tensor) for operand in operands):
        return func(*args, **kwargs)
    left, right = operands
    on_left, on_right = trail_of(mode, left), trail_of(mode, right)
    found = None
    left_meets = on_left is not None and on_left.key == left.dim() - 1
    right_meets = on_right is not None and right.dim() > 1 and on_right.key == right.dim() - 2
    if left_meets and right_meets:
        return func(*args, **kwargs)  # how alike two distributions are
    if left_meets and on_left is not None:
        order = tuple(range(left.dim()))
        width = right.shape[-1] if right.dim() > 1 else 1
        found = _Product(weights=left, value=right, trail=on_left, order=order, out_query=-2, width=width)
    elif right_meets and on_right is not None:
        order = (*range(right.dim() - 2), right.dim() - 1, right.dim() - 2)
        width = left.shape[-2] if left.dim() > 1 else 1
        found = _Product(weights=right, value=left, trail=on_right, order=order, out_query=-1, width=width)
    if found is not None and is_attention(found):
        return _attend(mode, func, args, kwargs, found)
    return _mix(mode, func, args, kwargs)


def on_einsum(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """See an einsum of two operands that sums over the key dimension of one of them."""
    equation, operands = args[0], list(args[1:])
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    trails = [trail_of(mode, operand) for operand in operands]
    if not isinstance(equation, str) or len(operands) != 2 or not any(trails):
        return func(*args, **kwargs)
    first, second, result = _letters(equation, operands)
    found = None
    for index, trail in enumerate(trails):
        if trail is None:
            continue
        mine, others = (first, second) if index == 0 else (second, first)
        letter = mine[trail.key]
        if letter in result or letter not in others:
            continue
        free = [other for other in mine if other in result and other not in others]
        leading = [other for other in mine if other != letter and other not in free[-1:]]
        order = tuple(mine.index(other) for other in [*leading, *free[-1:], letter])
        widths = [operands[1 - index].shape[others.index(other)] for other in others if other not in mine]
        found = _Product(
            weights=operands[index],
            value=operands[1 - index],
            trail=trail,
            order=order,
            queryless=not free,
            out_query=result.index(free[-1]) if free else None,
            width=widths[-1] if widths else 1,
        )
        break
    if found is not None and is_attention(found):
        return _attend(mode, func, args, kwargs, found)
    return _mix(mode, func, args, kwargs, letters=(first, second, result))


def on_linear(mode: AttentionMode, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Follow a linear layer over the head dimension; one over the key dimension ends the trail."""
    return _mix(mode, func, args, kwargs)


def is_attention(product: _Product) -> bool:
    """Whether the value varies with the sample and the weights have a query dimension of their own.

    A learned codebook is no value. Where every dimension of the weights but the key is shared with the
    value, each token mixes its own entries: a dense router or deformable sampling; a single row over a
    sample's tokens (additive attention, Bahdanau et al. 2015) is told from a router by its owner's name.
    """
    value, weights = product.value, product.weights
    if isinstance(value, nn.Parameter) or isinstance(value._base, nn.Parameter):
        return False
    if weights.dim() > 2 and value.dim() < 3:
        return False
    if value.dim() < 2:
        return False
    sole = product.queryless or (
        weights.shape[product.order[-2]] == 1 and product.trail.grown and 1 not in product.trail.born[1:-1]
    )
    if not sole:
        return True
    return len(product.trail.born) == 2 and _owner_attends()


def _owner_attends() -> bool:
    return any(
        "attn" in name or "attention" in name
        for name in (type(module).__name__.lower() for module in running_modules()[:2])
    )


def _attend(mode: AttentionMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], product: _Product) -> Any:
    trail, used = product.trail, product.weights
    clean = used if trail.clean is None else trail.clean

    def canonical(tensor: Tensor) -> Tensor:
        ordered = tensor.permute(product.order)
        return ordered.unsqueeze(-2) if product.queryless else ordered

    def run() -> Any:
        return func(*args, **kwargs)

    def rerun(edited: Tensor) -> Any:
        dropped = F.dropout(edited, trail.dropout) if trail.dropout else edited
        plain = dropped.squeeze(-2) if product.queryless else dropped
        back = sorted(range(len(product.order)), key=product.order.__getitem__)
        return _with(func, args, kwargs, {id(used): plain.permute(back).to(used.dtype)})

    def check(kept: Call, out: Any) -> Tensor | None:
        if kept.weights is None or product.out_query is None or func in _ADDING or out.is_meta or not out.numel():
            return None
        rows = row_numbers(kept.weights.shape[-2], out.device)
        few = kept.weights.index_select(-2, rows)
        back = sorted(range(len(product.order)), key=product.order.__getitem__)
        again = _with(
            func, args, kwargs, {id(used): few.permute(back).to(used.dtype), id(product.value): product.value.detach()}
        )
        return relative_error(again, out.detach().index_select(product.out_query, rows))

    draft = Call(
        module="",
        order=0,
        pass_index=0,
        origin="softmax",
        weights=canonical(clean),
        dropout=trail.dropout,
        value_dim=product.width,
    )
    return mode.attend(
        Sight(draft=draft, value=product.value, weights=lambda: canonical(clean), run=run, rerun=rerun, check=check)
    )


def _with(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], instead: dict[int, Tensor]) -> Any:
    def swapped(given: Any) -> Any:
        if isinstance(given, (tuple, list)):
            return type(given)(map(swapped, given))
        return instead.get(id(given), given)

    return func(*map(swapped, args), **{name: swapped(given) for name, given in kwargs.items() if name != "out"})


def _mix(
    mode: AttentionMode,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    letters: tuple[str, str, str] | None = None,
) -> Any:
    """Follow a product with a small shared matrix over another dimension than the key."""
    known = [(tensor, trail) for tensor in tensors_in(args, kwargs) if (trail := trail_of(mode, tensor)) is not None]
    clean = without_dropout(mode, func, args, kwargs) if known else None
    result = func(*args, **kwargs)
    if len(known) != 1:
        return result
    source, trail = known[0]
    others = [tensor for tensor in tensors_in(args, kwargs) if tensor is not source]
    if not others or any(other.dim() >= source.dim() and not _is_kernel(func, other) for other in others):
        return result
    key = _mixed_key(func, source, trail, result, letters, others[0], tensors_in(args, kwargs)[0] is source)
    if key is not None and result.shape[key] == source.shape[trail.key]:
        remember(mode, result, Trail(key=key, born=trail.born, grown=trail.grown, dropout=trail.dropout, clean=clean))
    return result


def _is_kernel(func: Any, other: Tensor) -> bool:
    return func in _CONVOLUTIONS


def _mixed_key(
    func: Any,
    source: Tensor,
    trail: Trail,
    result: Tensor,
    letters: tuple[str, str, str] | None,
    other: Tensor,
    source_first: bool,
) -> int | None:
    if letters is not None:
        mine = letters[0] if source_first else letters[1]
        return letters[2].index(mine[trail.key]) if mine[trail.key] in letters[2] else None
    if result.dim() != source.dim():
        return None
    if func in _CONVOLUTIONS:
        return trail.key if trail.key >= 2 or source.dim() < 4 else None
    summed = source.dim() - 1 if source_first else source.dim() - 2
    return None if trail.key == summed else trail.key


def _letters(equation: str, operands: list[Tensor]) -> tuple[str, str, str]:
    """Return the letters of two operands and the result, an ellipsis spelled out."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in string.ascii_uppercase + string.ascii_lowercase if letter not in equation]
    dots = [operand.dim() - len(term.replace("...", "")) for term, operand in zip(terms, operands, strict=True)]
    longest = max([count for term, count in zip(terms, dots, strict=True) if "..." in term], default=0)
    filler = "".join(spare[:longest])
    full = [term.replace("...", filler[longest - count :]) for term, count in zip(terms, dots, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(inputs) - set(".,") if inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    return full[0], full[1], result.replace("...", filler)


_CONVOLUTIONS = set(table({"conv1d conv2d conv3d convolution": on_linear}))
_REVERSED = {Tensor.__rmatmul__}
_ADDING = set(table({"baddbmm baddbmm_ addmm": on_baddbmm}))

CONTRACTIONS: dict[Any, Handler] = {
    **table(
        {
            "matmul bmm mm __matmul__ __rmatmul__": on_matmul,
            "baddbmm addmm": on_baddbmm,
            "einsum": on_einsum,
            "linear conv1d conv2d conv3d convolution": on_linear,
        }
    ),
    torch.linalg.matmul: on_matmul,
}

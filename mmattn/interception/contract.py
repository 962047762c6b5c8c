"""The contraction: where a distribution meets the value, is read, and can be replaced.

`matmul`, `bmm`, `baddbmm` and `einsum`, with the value on either side. A product over another dimension
than the key mixes heads (CaiT's talking heads): it is followed, and what is read are the mixed weights.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmattn.interception.asked import Asked, forms
from mmattn.interception.calls import Call
from mmattn.interception.follow import Trail, known_in, remember, table, trail_of, without_dropout
from mmattn.interception.mode import AttentionMode, Handler, Sight
from mmattn.interception.owner import is_owned_by_attention, named_head_count, running_modules
from mmattn.interception.selfcheck import Later, fused_check, relative_error, rows_of

_REVERSED = set(forms("__rmatmul__"))
_MATMULS = set(forms("matmul bmm __matmul__"))
_ADDING = set(forms("baddbmm addmm"))
_CONVOLUTIONS = set(forms("conv1d conv2d conv3d convolution"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """Remembered weights and the value they meet.

    Parameters
    ----------
    weights, value
        The operands, as the function was given them.
    order
        The permutation of `weights` that gives `[..., query, key]`.
    queryless
        Whether the weights have no query dimension of their own: one is put in.
    out_query
        Where the query dimension stands in the result; None if there is none.
    value_dim
        Width of the value.
    """

    weights: Tensor
    value: Tensor
    trail: Trail
    order: tuple[int, ...]
    queryless: bool = False
    out_query: int | None
    value_dim: int

    @property
    def is_plain(self) -> bool:
        """Whether it reads `[..., query, key]` and `[..., key, dim]` as they are, window by window and head by head."""
        count = self.weights.dim()
        plain = self.order == tuple(range(count)) and self.out_query in (-2, count - 2) and not self.queryless
        return plain and self.value.dim() == count > 2

    def read(self, tensor: Tensor) -> Tensor:
        """Return `[..., query, key]` of a tensor laid out as the operand is."""
        ordered = tensor.permute(self.order)
        return ordered.unsqueeze(-2) if self.queryless else ordered

    def written(self, weights: Tensor) -> Tensor:
        """Return the operand of `[..., query, key]`: the inverse of `read`."""
        plain = weights.squeeze(-2) if self.queryless else weights
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return plain.permute(back).to(self.weights.dtype)


def on_matmul(mode: AttentionMode, asked: Asked) -> Any:
    """See `weights @ value` and `value @ weights^T`."""
    operands = [asked.option("input self", 0), asked.option("other mat2 tensor2", 1)]
    if asked.func in _REVERSED:
        operands.reverse()
    return _on_operands(mode, asked, operands)


def on_baddbmm(mode: AttentionMode, asked: Asked) -> Any:
    """See `input + weights @ value`."""
    return _on_operands(mode, asked, [asked.option("batch1 mat1", 1), asked.option("batch2 mat2", 2)])


def on_einsum(mode: AttentionMode, asked: Asked) -> Any:
    """See an einsum of two operands that sums over the key dimension of one of them."""
    equation, *operands = asked.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    trails = [trail_of(mode, operand) for operand in operands]
    if not isinstance(equation, str) or len(operands) != 2 or not any(trails):
        return asked.run()
    letters = _letters(equation, operands)
    for index, trail in enumerate(trails):
        product = None if trail is None else einsum_product(letters, operands, trail, weights_at=index)
        if product is not None and is_attention(product):
            return attend_product(mode, asked, product)
    return on_mixing(mode, asked, letters=letters)


def on_tensordot(mode: AttentionMode, asked: Asked) -> Any:
    """See a tensordot as the einsum that it is."""
    operands, dims = [asked.option("a self", 0), asked.option("b other", 1)], asked.option("dims", 2, 2)
    trails = [trail_of(mode, operand) for operand in operands]
    if not any(trails) or isinstance(dims, Tensor):
        return asked.run()
    first, second = operands
    pairs = (range(first.dim() - dims, first.dim()), range(dims)) if isinstance(dims, int) else dims
    left = list(string.ascii_letters[: first.dim()])
    right = list(string.ascii_letters[first.dim() : first.dim() + second.dim()])
    for mine, other in zip(*pairs, strict=True):
        right[other] = left[mine]
    free = [letter for letter in left + right if (letter in left) != (letter in right)]
    letters = ("".join(left), "".join(right), "".join(free))
    for index, trail in enumerate(trails):
        product = None if trail is None else einsum_product(letters, operands, trail, weights_at=index)
        if product is not None and is_attention(product):
            return attend_product(mode, asked, product)
    return asked.run()


def on_multi_dot(mode: AttentionMode, asked: Asked) -> Any:
    """See `multi_dot([weights, value])`."""
    tensors = list(asked.option("tensors", 0))
    return _on_operands(mode, asked, tensors) if len(tensors) == 2 else asked.run()


def on_mixing(mode: AttentionMode, asked: Asked, *, letters: tuple[str, str, str] | None = None) -> Any:
    """Follow a product with a small shared matrix over another dimension than the key; else the trail ends."""
    known = known_in(mode, asked)
    clean = without_dropout(mode, asked) if known else None
    result = asked.run()
    if len(known) != 1 or not isinstance(result, Tensor):
        return result
    source, trail = known[0]
    if trail.stage == "product":
        return result
    tensors = asked.tensors()
    others = [tensor for tensor in tensors if tensor is not source]
    is_kernel = asked.func in _CONVOLUTIONS
    if not others or any(other.dim() >= source.dim() and not is_kernel for other in others):
        return result
    first = tensors[0] is source
    if letters is not None:
        mine = letters[0] if first else letters[1]
        key = letters[2].index(mine[trail.key]) if mine[trail.key] in letters[2] else None
    else:
        summed = 1 if is_kernel else source.dim() - 1 if first else source.dim() - 2
        key = None if trail.key == summed or result.dim() != source.dim() else trail.key
    if key is not None and result.shape[key] == source.shape[trail.key]:
        kept = replace(trail, key=key, clean=clean)
        remember(mode, result, kept)
    return result


def _on_operands(mode: AttentionMode, asked: Asked, operands: list[Any]) -> Any:
    left, right = operands
    on_left, on_right = trail_of(mode, left), trail_of(mode, right)
    left_meets = on_left is not None and on_left.key == left.dim() - 1
    right_meets = on_right is not None and right.dim() > 1 and on_right.key == right.dim() - 2
    if left_meets and right_meets:
        return asked.run()  # how alike two distributions are
    product = None
    if left_meets and on_left is not None:
        order = tuple(range(left.dim()))
        width = right.shape[-1] if right.dim() > 1 else 1
        product = Product(weights=left, value=right, trail=on_left, order=order, out_query=-2, value_dim=width)
    elif right_meets and on_right is not None:
        order = (*range(right.dim() - 2), right.dim() - 1, right.dim() - 2)
        width = left.shape[-2] if left.dim() > 1 else 1
        product = Product(weights=right, value=left, trail=on_right, order=order, out_query=-1, value_dim=width)
    if product is not None and is_attention(product):
        return attend_product(mode, asked, product)
    return on_mixing(mode, asked)


def is_attention(product: Product) -> bool:
    """Return whether the value varies with the sample and the weights have a query dimension of their own.

    A learned codebook is no value. Where every dimension of the weights but the key is shared with the
    value, each token mixes its own entries: a dense router or deformable sampling; a single row over a
    sample's tokens (additive attention, Bahdanau et al. 2015) is told from a router by its owner's name,
    several rows by the owner's number of heads as well.
    """
    value, weights, trail = product.value, product.weights, product.trail
    if trail.stage != "weights" or isinstance(value, nn.Parameter) or isinstance(value._base, nn.Parameter):
        return False
    if value.dim() < (3 if weights.dim() > 2 else 2):
        return False
    own_rows = 0 if product.queryless else weights.shape[product.order[-2]]
    if trail.stacked and own_rows == trail.stacked and not is_owned_by_attention():
        return False  # several gates
    lent = trail.grown and own_rows == 1 and 1 not in trail.born[1:-1]
    if not product.queryless and not lent:
        return True
    shared = [weights.shape[dim] for dim in product.order[: -1 if product.queryless else -2]]
    if len(trail.born) == 3 and len(shared) == 2:
        return is_owned_by_attention() and shared[1] == named_head_count(running_modules()[:2])
    return len(trail.born) == 2 and is_owned_by_attention()


def attend_product(mode: AttentionMode, asked: Asked, product: Product, *, run: Callable[[], Any] | None = None) -> Any:
    """Tell the watchers of a product; `run` is the model's own way, where it is not `asked` itself."""
    trail, used = product.trail, product.weights
    weights = product.read(used if trail.clean is None else trail.clean)

    def rerun(edited: Tensor) -> Any:
        dropped = functional.dropout(edited, trail.dropout) if trail.dropout else edited
        return asked.run_with({id(used): product.written(dropped)})

    def check(kept: Call, out: Any) -> Tensor | Later | None:
        if kept.weights is None or product.out_query is None or asked.func in _ADDING or out.is_meta or not out.numel():
            return None
        if product.is_plain and asked.func in _MATMULS and out.shape[-1] == product.value.shape[-1]:
            return fused_check(kept, product.value, out)  # later, and of one head: half the time of a Swin's capture
        few = product.written(rows_of(kept.weights))
        again = asked.run_with({id(used): few, id(product.value): product.value.detach()})
        return relative_error(again, rows_of(out.detach(), product.out_query))

    draft = Call(
        module="",
        order=0,
        pass_index=0,
        origin="softmax",
        weights=weights,
        dropout=trail.dropout,
        value_dim=product.value_dim,
    )
    same_lead = weights.shape[:-2] == product.value.shape[:-2]
    sight = Sight(
        draft=draft,
        value=product.value,
        weights=weights.clone,
        run=run or asked.run,
        rerun=rerun,
        check=check,
        direct=product.is_plain and asked.func in _MATMULS and not trail.dropout and trail.clean is None and same_lead,
    )
    return mode.attend(sight)


def einsum_product(
    letters: tuple[str, str, str], operands: list[Any], trail: Trail, *, weights_at: int
) -> Product | None:
    """Return the product that an einsum is, or None where the key is not what it sums over."""
    mine, others, result = letters[weights_at], letters[1 - weights_at], letters[2]
    key = mine[trail.key]
    if key in result or key not in others:
        return None
    free = [letter for letter in mine if letter in result and letter not in others]
    leading = [letter for letter in mine if letter != key and letter not in free[-1:]]
    value = operands[1 - weights_at]
    widths = [size for letter, size in zip(others, value.shape, strict=True) if letter not in mine]
    return Product(
        weights=operands[weights_at],
        value=value,
        trail=trail,
        order=tuple(mine.index(letter) for letter in [*leading, *free[-1:], key]),
        queryless=not free,
        out_query=result.index(free[-1]) if free else None,
        value_dim=widths[-1] if widths else 1,
    )


def _letters(equation: str, operands: list[Tensor]) -> tuple[str, str, str]:
    """Return the letters of two operands and of the result, an ellipsis spelled out."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    dots = [operand.dim() - len(term.replace("...", "")) for term, operand in zip(terms, operands, strict=True)]
    longest = max((count for term, count in zip(terms, dots, strict=True) if "..." in term), default=0)
    filler = "".join(spare[:longest])
    full = [term.replace("...", filler[longest - count :]) for term, count in zip(terms, dots, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(inputs) - set(".,") if inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    return full[0], full[1], result.replace("...", filler)


CONTRACTIONS: dict[Any, Handler] = {
    **table(
        {
            "matmul bmm mm __matmul__ __rmatmul__": on_matmul,
            "baddbmm addmm": on_baddbmm,
            "einsum": on_einsum,
            "tensordot": on_tensordot,
            "linear conv1d conv2d conv3d convolution": on_mixing,
        }
    ),
    torch.linalg.matmul: on_matmul,
    torch.linalg.multi_dot: on_multi_dot,
}

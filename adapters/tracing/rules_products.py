"""Rules for products of two tensors: with weights, with each other, and attention itself."""

from string import ascii_letters
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .contract import attended, contracted, matmul_labels
from .ids import Chosen, Ids, forbids, make, plain, told
from .merge import merged
from .pointwise import as_queries, combined
from .state import Rule, State, given


def matmul(state: State, left: Tensor, right: Tensor, **_: Any) -> Ids:
    """Return the ids of a matrix product."""
    one, two, out = matmul_labels(left.dim(), right.dim())
    return _product(state, (left, one), (right, two), out)


def _rmatmul(state: State, left: Tensor, right: Tensor) -> Ids:
    return matmul(state, right, left)


def _baddbmm(state: State, bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> Ids:
    out = matmul(state, left, right)
    return combined(out, bias, grids=state.grids) if isinstance(bias, Ids) else out


def _einsum(state: State, equation: str, *operands: Any) -> Ids:
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    labels, out = _labels(equation, [tensor.dim() for tensor in tensors])
    if any(len(set(own)) < len(own) for own in labels):
        raise ValueError("a label repeats within an operand: a diagonal")
    if len(tensors) == 1:
        return _weighted(state, (tensors[0], labels[0]), (torch.ones(()), ""), out)
    made: Any = (tensors[0], labels[0])
    for place, (tensor, own) in enumerate(zip(tensors[1:], labels[1:], strict=True), 2):
        needed = set(out).union(*labels[place:])
        kept = "".join(label for label in dict.fromkeys(made[1] + own) if label in needed)
        asked = out if place == len(tensors) else kept
        made = (_product(state, made, (tensor, own), asked), asked)
    assert isinstance(made[0], Ids)
    return made[0]


def _labels(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """Return the labels of each operand and of the result, with letters in place of dots."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    hidden = [dim - len(part.replace("...", "")) for part, dim in zip(inputs, dims, strict=True)]
    fill = "".join(letter for letter in ascii_letters if letter not in equation)[
        : max([0, *(count for part, count in zip(inputs, hidden, strict=True) if "..." in part)])
    ]
    inputs = [
        part.replace("...", fill[len(fill) - count :] if count else "")
        for part, count in zip(inputs, hidden, strict=True)
    ]
    if not arrow:
        letters = "".join(inputs)
        out = "".join(sorted(label for label in set(letters) if letters.count(label) == 1))
    return inputs, out.replace("...", fill)


def _product(state: State, one: tuple[Tensor, str], two: tuple[Tensor, str], out: str) -> Ids:
    (left, left_labels), (right, right_labels) = one, two
    if isinstance(left, Ids) and isinstance(right, Ids):
        story = told([left, right])
        return contracted(left, left_labels, right, right_labels, out, report=lambda seen: state.attention(seen, story))
    return _weighted(state, one, two, out) if isinstance(left, Ids) else _weighted(state, two, one, out)


def _weighted(state: State, known: tuple[Tensor, str], other: tuple[Tensor, str], out: str) -> Ids:
    """Return the ids of a product with something that is not of the picture: weights, or learned queries."""
    ids, labels = known
    weights, others = other
    assert isinstance(ids, Ids)
    rows = [label for label in others if label not in labels and label in out]
    if len(rows) == 1 and state.role(weights) and not ids.story.softmax:
        place = others.index(rows[0])
        moved = [label for label in others if label != rows[0]]
        moved.insert(len(moved) - 1, rows[0])
        learned = as_queries(weights.movedim(place, -2), ids, grids=state.grids)
        if learned.dim() == len(moved):
            return contracted(learned, "".join(moved), ids, labels, out, report=lambda _: -1)
    summed = [place for place, label in enumerate(labels) if label not in out]
    small = merged(ids, summed, grids=state.grids) if summed else ids
    values = plain(small).squeeze(summed) if summed else plain(small)
    left = [label for label in labels if label in out]
    values = values.permute([left.index(label) for label in out if label in left])
    sizes: dict[str, int] = {}
    for label, size in zip(labels + others, (*ids.shape, *weights.shape), strict=True):
        sizes[label] = max(size, sizes.get(label, 1))
    for place, label in enumerate(out):
        if label not in left:
            values = values.unsqueeze(place)
    return make(values.expand([sizes[label] for label in out]), ids.story)


def _sdpa(state: State, *args: Any, **kwargs: Any) -> Ids:
    asked = given("query key value attn_mask dropout_p is_causal", args, kwargs)
    known = next(asked[name] for name in ("key", "value", "query") if isinstance(asked[name], Ids))
    q, k = (
        asked[name] if isinstance(asked[name], Ids) else as_queries(asked[name], known, grids=state.grids)
        for name in ("query", "key")
    )
    mask = asked.get("attn_mask")
    masked = forbids(mask) if isinstance(mask, Tensor) and not isinstance(mask, Ids) else None
    return _attended(state, q, k, asked["value"].shape[-1], masked)


def _multi_head(state: State, *args: Any, **kwargs: Any) -> tuple[Ids, None]:
    """Follow torch's own multi-head attention, whose tensors are `[token, sample, dim]`, or `[token, dim]`."""
    asked = given(_MULTI_HEAD, args, kwargs)
    known = next(asked[name] for name in ("key", "value", "query") if isinstance(asked[name], Ids))
    if known.dim() == 2:
        raised = {name: _one_sample(asked[name]) for name in ("query", "key", "value")}
        out, _ = _multi_head(state, **(asked | raised))
        return make(plain(out).squeeze(1), out.story), None
    masked = _masked(asked, asked["query"].shape[1], asked["query"].shape[0], asked["key"].shape[0])
    batch_first = make(plain(known).transpose(0, 1), known.story)
    turned = [
        make(plain(asked[name]).transpose(0, 1), asked[name].story)
        if isinstance(asked[name], Ids)
        else as_queries(asked[name].transpose(0, 1), batch_first, grids=state.grids)
        for name in ("query", "key")
    ]
    out = _attended(state, turned[0], turned[1], asked["query"].shape[-1], masked)
    return make(plain(out).transpose(0, 1), out.story), None


_MULTI_HEAD = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn dropout_p "
    "out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask"
)


def _one_sample(tensor: Tensor) -> Tensor:
    return make(plain(tensor).unsqueeze(1), tensor.story) if isinstance(tensor, Ids) else tensor.unsqueeze(1)


def _masked(asked: dict[str, Any], samples: int, queries: int, keys: int) -> Bool[Tensor, "sample query key"] | None:
    """Return which keys no head may look at; here booleans mean the opposite of everywhere else: True forbids."""
    found = []
    for name in ("attn_mask", "key_padding_mask"):
        mask = asked.get(name)
        if not isinstance(mask, Tensor) or isinstance(mask, Ids | Chosen):
            continue
        where = mask if mask.dtype == torch.bool else forbids(mask)
        if where is None:
            continue
        if name == "key_padding_mask":
            where = where.reshape(-1, 1, keys)
        elif where.dim() == 3:
            where = where.reshape(samples, -1, queries, keys).all(1)
        found.append(where.expand(samples, queries, keys))
    return None if not found else torch.stack(found).any(0)


def _attended(state: State, q: Ids, k: Ids, width: int, masked: Tensor | None) -> Ids:
    story = told([q, k])
    q, k = (merged(ids, [-1], grids=state.grids) for ids in (q, k))
    return attended(q, k, width, report=lambda seen: state.attention(seen, story), masked=masked)


def _as_complex(state: State, x: Ids) -> Ids:
    """Follow pairs of channels taken as one complex number (rotary positions): the token stays."""
    return make(plain(merged(x, [-1], grids=state.grids)).squeeze(-1), x.story)


def _as_real(state: State, x: Ids) -> Ids:
    return make(plain(x)[..., None].expand(*x.shape, 2), x.story)


RULES: dict[str, Rule] = {
    "view_as_complex": _as_complex,
    "view_as_real": _as_real,
    "matmul": matmul,
    "bmm": matmul,
    "mm": matmul,
    "mv": matmul,
    "dot": matmul,
    "rmatmul": _rmatmul,
    "baddbmm": _baddbmm,
    "addmm": _baddbmm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _sdpa,
    "multi_head_attention_forward": _multi_head,
}

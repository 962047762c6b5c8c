"""Products of two tensors of ids: logits become pairs of ids, attention over values is an event.

What is known of an element is what does not change along the summed dimension. Of q . k^T both the
query's and the key's id stay: a pair. Of A . v the query's id stays, and the key's is summed away:
that is attention, and the pair says which query and key stood where.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .grids import NOTHING
from .ids import Ids, Story, first, forbidden, is_constant, make, packed, plain, second, thin, told

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One attention: which token is the query and which the key of each weight.

    Parameters
    ----------
    query, key
        `[*lead, query]` and `[*lead, key]`, ids; lead dimensions are windows and heads.
    forbidden
        Where a mask keeps a query from a key; None if nowhere.

    """

    query: Int[Tensor, "*lead query"]
    key: Int[Tensor, "*lead key"]
    forbidden: Bool[Tensor, "*lead query key"] | None = None


Report = Callable[[Seen], int]


def matmul_labels(left: int, right: int) -> tuple[str, str, str]:
    """Return how the dimensions of a matrix product correspond, as in einsum."""
    if left == 1 or right == 1:
        one, two = ("k" if left == 1 else "nk"), ("k" if right == 1 else "km")
    else:
        one, two = "nk", "km"
    lead = _LETTERS[: max(left, right, 2) - 2].upper()
    one = lead[len(lead) - max(0, left - 2) :] + one if left > 2 else one
    two = lead[len(lead) - max(0, right - 2) :] + two if right > 2 else two
    return one, two, lead + one[-2:].replace("k", "") + two[-2:].replace("k", "")


def contracted(left: Ids, one: str, right: Ids, two: str, out: str, *, report: Report) -> Ids:
    """Return the ids of the product of two tensors whose dimensions have the labels `one` and `two`."""
    sizes = dict(zip(one, left.shape, strict=True))
    for label, size in zip(two, right.shape, strict=True):
        sizes[label] = max(size, sizes.get(label, 1))
    summed = [label for label in dict.fromkeys(one + two) if label not in out]
    shape = [sizes[label] for label in out]
    parts = [_constant(tensor, labels, summed, out) for tensor, labels in ((left, one), (right, two))]
    story = told([left, right])
    event = _event(left, one, right, two, out, summed, report)
    if event is not None:
        query, number = event
        return make(
            query.to(torch.float64).expand(shape),
            Story(events=frozenset({number}), softmax=False, merged=story.merged),
        )
    (a, b), (c, d) = parts
    kept = [part for part in (a, b, c, d) if part is not None]
    if not kept:
        return make(torch.full((), float(NOTHING), dtype=torch.float64).expand(shape), story)
    two_ids = kept[1] if len(kept) > 1 else torch.zeros((), dtype=torch.int64)
    return make(
        packed(kept[0], two_ids).expand(shape),
        Story(events=story.events, softmax=story.softmax and len(kept) > 1, merged=story.merged),
    )


def _constant(
    tensor: Ids, labels: str, summed: list[str], out: str
) -> tuple[Int[Tensor, "..."] | None, Int[Tensor, "..."] | None]:
    """Return the first and second id where they do not change along what is summed, over the labels of `out`."""
    values = plain(tensor)
    dims = [labels.index(label) for label in summed if label in labels]
    found: list[Tensor | None] = []
    small = thin(values)
    for ids in (first(small), second(small)):
        if not bool(ids.any()) or not is_constant(ids.to(torch.float64), dims):
            found.append(None)
            continue
        for dim in dims:
            ids = ids.narrow(dim, 0, 1)
        found.append(_placed(ids, labels, out))
    return found[0], found[1]


def _placed(ids: Int[Tensor, "..."], labels: str, out: str) -> Int[Tensor, "..."]:
    """Return ids with one dimension for each label of `out`."""
    for dim in reversed([i for i, label in enumerate(labels) if label not in out]):
        ids = ids.squeeze(dim)
    left = [label for label in labels if label in out]
    ids = ids.permute([left.index(label) for label in out if label in left])
    for dim, label in enumerate(out):
        if label not in left:
            ids = ids.unsqueeze(dim)
    return ids


def _event(
    left: Ids, one: str, right: Ids, two: str, out: str, summed: list[str], report: Report
) -> tuple[Int[Tensor, "..."], int] | None:
    """Return the query's ids over `out` and the event's number, if one of the two is attention over the other."""
    if len(summed) != 1:
        return None
    for weights, labels, value, others in ((left, one, right, two), (right, two, left, one)):
        if not weights.story.softmax or summed[0] not in labels or value.story.softmax:
            continue
        dim = labels.index(summed[0])
        values = thin(plain(weights))
        ids = [first(values), second(values)]
        varies = [not is_constant(part.to(torch.float64), [dim]) for part in ids]
        if not bool(ids[1].any()):
            if not bool(ids[0].any()) or varies[0]:
                continue
            return _report_loose(weights, labels, value, others, out, summed[0], report)
        which = 0 if varies[1] or not varies[0] else 1
        if varies[which]:
            continue
        query = ids[which].narrow(dim, 0, 1)
        rows = [label for label in labels if label != summed[0] and label not in others]
        if len(rows) != 1:
            continue
        row = labels.index(rows[0])
        keys = ids[1 - which]
        masked = forbidden(values)
        number = report(
            Seen(
                query=query.expand(_full(weights, {dim: 1})).movedim((row, dim), (-2, -1)).squeeze(-1),
                key=keys.expand(weights.shape).movedim((row, dim), (-2, -1)).narrow(-2, 0, 1).squeeze(-2),
                forbidden=masked.expand(weights.shape).movedim((row, dim), (-2, -1)) if bool(masked.any()) else None,
            )
        )
        return _placed(query, labels, out), number
    return None


def _report_loose(
    weights: Ids, labels: str, value: Ids, others: str, out: str, summed: str, report: Report
) -> tuple[Int[Tensor, "..."], int] | None:
    """Report weights that each token makes for its neighbourhood, without keys of their own: VOLO's outlook."""
    rows = [label for label in labels if label != summed and label not in others]
    if len(rows) != 1:
        return None
    row, dim = labels.index(rows[0]), labels.index(summed)
    query = first(plain(weights)).narrow(dim, 0, 1).movedim((row, dim), (-2, -1)).squeeze(-1)
    lead = [label for label in labels if label not in (rows[0], summed)]
    keys = first(plain(value))
    for label in [label for label in others if label not in labels]:
        keys = keys.narrow(others.index(label), 0, 1)
    order = [label for label in others if label in lead or label == summed]
    keys = keys.squeeze([others.index(label) for label in others if label not in labels])
    keys = keys.permute([order.index(label) for label in [*[x for x in lead if x in order], summed]])
    for place, label in enumerate(lead):
        if label not in order:
            keys = keys.unsqueeze(place)
    keys = keys.expand([*(weights.shape[labels.index(label)] for label in lead), -1])
    number = report(Seen(query=query, key=keys))
    return _placed(first(plain(weights)).narrow(dim, 0, 1), labels, out), number


def _full(tensor: Tensor, change: dict[int, int]) -> list[int]:
    return [change.get(dim, size) for dim, size in enumerate(tensor.shape)]


def attended(
    query: Ids, key: Ids, value_width: int, *, report: Report, masked: Bool[Tensor, "..."] | None = None
) -> Ids:
    """Return the output of a fused attention over `[..., query, dim]` and `[..., key, dim]`."""
    q, k = first(plain(query)[..., 0]), first(plain(key)[..., 0])
    lead = torch.broadcast_shapes(q.shape[:-1], _repeated(k, q).shape[:-1])
    q, k = q.expand(*lead, -1), _repeated(k, q).expand(*lead, -1)
    if masked is not None:
        masked = masked.cpu().expand(*lead, q.shape[-1], k.shape[-1])
    number = report(Seen(query=q, key=k, forbidden=masked))
    out: Float[Tensor, "..."] = q.to(torch.float64)[..., None].expand(*q.shape, value_width)
    return make(out, Story(events=frozenset({number}), merged=told([query, key]).merged))


def _repeated(key: Int[Tensor, "*lead key"], query: Int[Tensor, "*lead query"]) -> Int[Tensor, "*lead key"]:
    """Return the keys once for each query head where several share them."""
    if key.dim() < 2 or query.dim() != key.dim() or key.shape[-2] in (1, query.shape[-2]):
        return key
    return key.repeat_interleave(query.shape[-2] // key.shape[-2], dim=-2)

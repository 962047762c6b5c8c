"""Products of two tensors of ids: logits become pairs of ids, attention over values is an event.

What is known of an element is what does not change along the summed dimension. Of q . k^T both the
query's and the key's id stay: a pair. Of A . v the query's id stays, and the key's is summed away:
that is attention, and the pair says which query and key stood where. Dimensions have labels, as in
einsum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .grids import NOTHING
from .ids import Ids, Story, first, forbidden, is_constant, make, packed, plain, second, thin, told


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One attention: which token is the query and which the key of each weight.

    Parameters
    ----------
    query, key
        `[*lead, query]` and `[*lead, key]`, ids; lead dimensions are windows and heads.
    forbidden
        Where a mask keeps a query from a key; None if nowhere.
    kind
        `token`; `linear`: each channel spreads over all tokens, so that no token has weights of its
        own; `gate`: one distribution over all tokens, for all of them. These two have no ids.

    """

    query: Int[Tensor, "*lead query"]
    key: Int[Tensor, "*lead key"]
    forbidden: Bool[Tensor, "*lead query key"] | None = None
    kind: Literal["token", "linear", "gate"] = "token"


Report = Callable[[Seen], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labeled:
    """Ids whose dimensions have labels."""

    ids: Ids
    labels: str

    def place(self, label: str) -> int:
        """Return the dimension of a label."""
        return self.labels.index(label)


def matmul_labels(left: int, right: int) -> tuple[str, str, str]:
    """Return how the dimensions of a matrix product correspond.

    Examples
    --------
    >>> matmul_labels(4, 3)
    ('ABnk', 'Bkm', 'ABnm')

    """
    lead = "ABCDEFGH"[: max(left, right, 2) - 2]
    one = lead[len(lead) - left + 2 :] + "nk" if left > 1 else "k"
    two = lead[len(lead) - right + 2 :] + "km" if right > 1 else "k"
    return one, two, lead + ("n" if left > 1 else "") + ("m" if right > 1 else "")


def contracted(left: Ids, left_labels: str, right: Ids, right_labels: str, out: str, *, report: Report) -> Ids:
    """Return the ids of a product over the labels of `out`; attention among it is reported."""
    one, two = _Labeled(ids=left, labels=left_labels), _Labeled(ids=right, labels=right_labels)
    sizes: dict[str, int] = {}
    for label, size in zip(left_labels + right_labels, (*left.shape, *right.shape), strict=True):
        sizes[label] = max(size, sizes.get(label, 1))
    shape = [sizes[label] for label in out]
    summed = [label for label in sizes if label not in out]
    story = told([left, right])
    for weights, value in ((one, two), (two, one)):
        found = _attention(weights, value, summed, report) if len(summed) == 1 else None
        if found is not None:
            query, number = found
            outcome = Story(events=frozenset({number}))
            return make(_placed(query, weights.labels, out).to(torch.float64).expand(shape), outcome)
    kept = [ids for side in (one, two) for ids in _unchanged(side, summed, out)]
    if not kept:
        nothing = torch.full((), float(NOTHING), dtype=torch.float64).expand(shape)
        return make(nothing, Story(events=story.events))
    if len(kept) > 1 and bool((kept[0] == kept[1]).all()):
        kept = kept[:1]  # a token by itself: a scaling, not a logit
    paired = packed(kept[0], kept[1] if len(kept) > 1 else 0)
    softmax = story.softmax and len(kept) > 1
    return make(paired.expand(shape), Story(events=story.events, softmax=softmax))


def _unchanged(side: _Labeled, summed: Sequence[str], out: str) -> list[Int[Tensor, "..."]]:
    """Return the first and second ids that do not change along what is summed, over the labels of `out`."""
    dims = [side.place(label) for label in summed if label in side.labels]
    found = []
    values = thin(plain(side.ids))
    for ids in (first(values), second(values)):
        if bool(ids.any()) and is_constant(ids, dims):
            found.append(_placed(_cut(ids, dims), side.labels, out))
    return found


def _cut(ids: Int[Tensor, "..."], dims: Sequence[int]) -> Int[Tensor, "..."]:
    """Return the first entry along some dimensions, each kept as one."""
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids


def _placed(ids: Int[Tensor, "..."], labels: str, out: str) -> Int[Tensor, "..."]:
    """Return ids with one dimension for each label of `out`."""
    ids = ids.squeeze([place for place, label in enumerate(labels) if label not in out])
    left = [label for label in labels if label in out]
    ids = ids.permute([left.index(label) for label in out if label in left])
    for place, label in enumerate(out):
        if label not in left:
            ids = ids.unsqueeze(place)
    return ids


def _attention(
    weights: _Labeled, value: _Labeled, summed: Sequence[str], report: Report
) -> tuple[Int[Tensor, "..."], int] | None:
    """Return the query's ids and the event's number, if this is attention over the other."""
    if not weights.ids.story.softmax or value.ids.story.softmax or summed[0] not in weights.labels:
        return None
    rows = [label for label in weights.labels if label not in value.labels]
    if len(rows) != 1:
        return None
    dim, row = weights.place(summed[0]), weights.place(rows[0])
    values = thin(plain(weights.ids))
    ids = [first(values), second(values)]
    if not bool(ids[1].any()):
        return _neighbourhoods(weights, value, row=row, dim=dim, report=report)
    varies = [not is_constant(part, [dim]) for part in ids]
    asks = _asking(ids, varies, row=row, keys=first(thin(plain(value.ids))))
    if asks is None:
        return None
    query = _cut(ids[asks], [dim])
    masked = forbidden(values)

    def last(tensor: Tensor, dim_size: int = -1) -> Tensor:
        shape = [dim_size if place == dim and dim_size > 0 else size for place, size in enumerate(weights.ids.shape)]
        return tensor.expand(shape).movedim((row, dim), (-2, -1))

    seen = Seen(
        query=last(query, 1).squeeze(-1),
        key=last(ids[1 - asks])[..., 0, :],
        forbidden=last(masked) if bool(masked.any()) else None,
    )
    return query, report(seen)


def _asking(
    ids: Sequence[Int[Tensor, "..."]], varies: Sequence[bool], *, row: int, keys: Int[Tensor, "..."]
) -> int | None:
    """Return which of both ids is the query's: the one that stays along the keys.

    Of a lone key both stay: then it is the one that changes along the rows, or is not among the values.
    """
    if all(varies):
        return None
    if any(varies):
        return 1 if varies[0] else 0
    along = [not is_constant(part, [row]) for part in ids]
    if along[0] != along[1]:
        return 0 if along[0] else 1
    values = set(torch.unique(keys).tolist())
    known = [set(torch.unique(part).tolist()) <= values for part in ids]
    return None if known[0] == known[1] else 1 if known[0] else 0


def _neighbourhoods(
    weights: _Labeled, value: _Labeled, *, row: int, dim: int, report: Report
) -> tuple[Int[Tensor, "..."], int] | None:
    """Report weights that each token makes for its neighbourhood without keys of their own: VOLO's outlook."""
    ids = first(plain(weights.ids))
    if not bool(ids.any()):
        return None
    if not is_constant(ids, [dim]):
        none = torch.zeros(0, dtype=torch.int64)
        report(Seen(query=none, key=none, kind="linear" if weights.ids.shape[row] > 1 else "gate"))
        return None
    query = _cut(ids, [dim])
    label = weights.labels[dim]
    lead = "".join(own for place, own in enumerate(weights.labels) if place not in (row, dim))
    alone = [place for place, own in enumerate(value.labels) if own not in weights.labels]
    keys = _placed(_cut(first(plain(value.ids)), alone), value.labels, lead + label)
    if not bool(keys.any()):
        return None
    keys = keys.expand([*(weights.ids.shape[weights.place(own)] for own in lead), -1])
    return query, report(Seen(query=query.movedim((row, dim), (-2, -1)).squeeze(-1), key=keys))


def attended(
    query: Ids, key: Ids, value_width: int, *, report: Report, masked: Bool[Tensor, "..."] | None = None
) -> Ids:
    """Return the output of a fused attention over `[*lead, query, dim]` and `[*lead, key, dim]`, and report it."""
    q, k = first(plain(query)[..., 0]), first(plain(key)[..., 0])
    if k.dim() == q.dim() > 1 and k.shape[-2] not in (1, q.shape[-2]):  # several heads share their keys
        k = k.repeat_interleave(q.shape[-2] // k.shape[-2], dim=-2)
    lead = torch.broadcast_shapes(q.shape[:-1], k.shape[:-1])  # type: ignore[no-untyped-call]
    q, k = q.expand(*lead, -1), k.expand(*lead, -1)
    if masked is not None:
        masked = masked.cpu().expand(*lead, q.shape[-1], k.shape[-1])
    number = report(Seen(query=q, key=k, forbidden=masked))
    story = Story(events=frozenset({number}))
    return make(q.to(torch.float64)[..., None].expand(*q.shape, value_width), story)

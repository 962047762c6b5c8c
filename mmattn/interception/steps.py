"""A text that a model wrote token by token: the calls of all its passes as those of one pass over the whole sequence.

    pass 0     the prompt's P tokens ask         queries P, keys P
    pass i     one written token asks            queries 1, keys P + i, most of them from a cache
    together   queries P + N, keys P + N         row r as it was when token r asked

Each step keeps its one query and its one new key, so that memory stays linear in tokens: a `Steps` reduces calls while
they are recorded. What is put right on the way:

- keys stand where the cache has them: at the end of a growing one, at their place in one of fixed length, and behind
  what a sliding window has let go;
- grouped queries that were packed (transformers packs the heads of one query as if they were queries of its key head,
  `[B, key heads, groups, D]`) are heads again, and keys that were repeated for the prompt are few again;
- masks of all passes become one. A model without a cache, which reads the whole text anew at each token, has all of it
  in its last pass. Attention to what does not grow (the picture's tokens across) keeps its keys.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.interception.calls import Call


@dataclass(kw_only=True, eq=False)
class _First:
    """What is kept of a module's first call, to tell what is new in the later ones."""

    keys: Tensor
    queries: int


@dataclass(kw_only=True, eq=False)
class Steps:
    """Reduces the calls of a model that writes, and joins them: `capture(model, reduce=steps.reduce)`.

    Examples
    --------
    >>> q, k = torch.rand(2, 1, 2, 3, 4), torch.rand(1, 2, 4, 4)
    >>> steps = Steps()
    >>> first = Call(module="a", order=0, pass_index=0, q=q[0], k=k[:, :, :3], causal=True, scale=0.5)
    >>> second = Call(module="a", order=1, pass_index=1, q=q[1][:, :, :1], k=k, scale=0.5)
    >>> whole = steps.joined([steps.reduce(first), steps.reduce(second)])[0]
    >>> whole.q.shape[2], torch.equal(whole.k, k), whole.causal
    (4, True, True)
    """

    first: dict[str, _First] = field(default_factory=dict)

    def reduce(self, call: Call) -> Call:
        """Return a call of a later pass with its new key alone; of the first pass as it is."""
        if call.k is None or call.q is None or call.k.dim() != 4:
            return call
        if call.pass_index == 0 or call.module not in self.first:
            self.first[call.module] = _First(keys=call.k.detach(), queries=call.q.shape[2])
            return call
        first = self.first[call.module]
        if _same(call.k, first.keys):
            return call.but(k=call.k[:, :, :0])
        if call.q.shape[2] == call.k.shape[2] > 1 and call.q.shape[2] > first.queries:
            return call  # the whole text anew
        place = min(first.queries + call.pass_index, call.k.shape[2]) - 1
        return call.but(k=call.k[:, :, place : place + 1])

    def joined(self, calls: Sequence[Call]) -> list[Call]:
        """Return one call for each module, over the whole sequence; what ran in the first pass alone stays as it was.

        Raises
        ------
        ModelError
            Passes that do not follow each other: several calls of a module in one of them, or other numbers of tokens.
        """
        self.first.clear()
        by_module: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            by_module[call.module].append(call)
        last = max((call.pass_index for call in calls), default=0)
        found = []
        for module, own in by_module.items():
            passes = [call.pass_index for call in own]
            if set(passes) == {0}:
                found += own
            elif passes == list(range(last + 1)):
                found.append(_whole(own))
            else:
                raise ModelError(
                    f"{module} made {len(own)} calls in {last + 1} passes ({passes[:8]}), one in each is expected of "
                    "attention that goes on with a text. Pass the written text to mmattn.attend as text= instead."
                )
        return sorted(found, key=lambda call: call.order)


def _whole(calls: Sequence[Call]) -> Call:
    """Return the calls of one module in all passes as one call."""
    first, steps = calls[0], calls[1:]
    if first.weights is not None:
        return _dense(first, steps)
    rows, final = _rows(first), steps[-1]
    assert first.q is not None
    assert first.k is not None
    assert final.q is not None
    assert final.k is not None
    if final.q.shape[2] == final.k.shape[2] == rows + len(steps) > 1 and final.k.shape[2] > 1:
        return final.but(pass_index=0, order=first.order)
    asked = [_unpacked(first.q, rows), *(_unpacked(one.q, 1) for one in steps)]
    if len({one.shape[1] for one in asked}) > 1:
        raise _unequal(first, sum(one.q.shape[2] for one in calls if one.q is not None), -1, rows + len(steps))
    queries = torch.cat(asked, dim=2)
    cross = final.k.shape[2] == 0
    keys = first.k if cross else _keys(first, steps, rows)
    if queries.shape[2] != rows + len(steps) or (not cross and keys.shape[2] != queries.shape[2]):
        raise _unequal(first, queries.shape[2], keys.shape[2], rows + len(steps))
    if queries.shape[1] % keys.shape[1]:
        keys = first.k
    mask = _mask(first, steps, rows=rows, width=keys.shape[2], grows=not cross)
    plain = mask is None and not cross
    return first.but(q=queries, k=keys, mask=mask, causal=plain, error=_worst(calls))


def _rows(first: Call) -> int:
    """Return how many tokens the first pass had: a packed single token looks like several."""
    assert first.q is not None
    assert first.k is not None
    queries, keys = first.q.shape[2], first.k.shape[2]
    return 1 if keys == 1 and queries > 1 else queries


def _unpacked(q: Tensor | None, rows: int) -> Tensor:
    assert q is not None
    return q if q.shape[2] == rows else q.reshape(q.shape[0], -1, rows, q.shape[3])


def _keys(first: Call, steps: Sequence[Call], rows: int) -> Tensor:
    """Return the keys of all tokens; heads that were repeated for the prompt are taken once."""
    parts = [first.k, *(one.k for one in steps)]
    kept = [part for part in parts if part is not None]
    few = min(part.shape[1] for part in kept)
    kept[0] = kept[0][:, :, :rows]
    return torch.cat([part[:, :: part.shape[1] // few] for part in kept], dim=2)


def _mask(first: Call, steps: Sequence[Call], *, rows: int, width: int, grows: bool) -> Tensor | None:
    """Return the masks of all passes as one; None where each token sees all that stand before it (or all there are)."""
    given = [one.mask for one in (first, *steps)]
    if all(mask is None for mask in given) and (not grows or first.causal):
        return None
    additive = next((mask.dtype for mask in given if mask is not None and mask.dtype != torch.bool), None)
    device = next(mask.device for mask in (*given, first.q) if mask is not None)
    parts = [_seen(first.mask, count=rows, upto=rows if grows else width, causal=first.causal, device=device)]
    for number, one in enumerate(steps):
        upto = rows + number + 1 if grows else width
        parts.append(_seen(_row(one.mask), count=1, upto=upto, causal=False, device=device))
    lead = torch.broadcast_shapes(*(part.shape[:2] for part in parts))  # type: ignore[no-untyped-call]
    return torch.cat([_filled(part, lead=lead, width=width, additive=additive) for part in parts], dim=2)


def _row(mask: Tensor | None) -> Tensor | None:
    """Return the mask of one query with a row of its own: that of packed heads has theirs."""
    if mask is None or mask.dim() != 4 or mask.shape[2] == 1:
        return mask
    return mask.reshape(mask.shape[0], -1, 1, mask.shape[3])


def _seen(mask: Tensor | None, *, count: int, upto: int, causal: bool, device: torch.device) -> Tensor:
    """Return which of the first `upto` keys some queries saw: a cache may hold the last of them, or more."""
    if mask is None:
        seen = torch.ones(1, 1, count, upto, dtype=torch.bool, device=device)
        return seen.tril() if causal else seen
    mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)[..., :upto].expand(-1, -1, count, -1)
    away = upto - mask.shape[3]
    if not away:
        return mask
    nothing = torch.zeros((), dtype=torch.bool) if mask.dtype == torch.bool else torch.tensor(-torch.inf)
    return torch.cat([nothing.to(mask).expand(*mask.shape[:3], away), mask], dim=3)


def _filled(seen: Tensor, *, lead: tuple[int, ...], width: int, additive: torch.dtype | None) -> Tensor:
    """Return a part of the mask over all keys: those that came later are forbidden."""
    if additive is not None and seen.dtype == torch.bool:
        seen = torch.zeros(seen.shape, dtype=additive, device=seen.device).masked_fill(~seen, -torch.inf)
    nothing = False if seen.dtype == torch.bool else -torch.inf
    whole = torch.full((*lead, seen.shape[2], width), nothing, dtype=seen.dtype, device=seen.device)
    whole[..., : seen.shape[3]] = seen
    return whole


def _dense(first: Call, steps: Sequence[Call]) -> Call:
    """Return weights that were seen as they are, row by row."""
    parts = [one.weights for one in (first, *steps) if one.weights is not None]
    rows, total = parts[0].shape[-2], parts[0].shape[-2] + len(steps)
    if parts[-1].shape[-2] == parts[-1].shape[-1] == total:
        return steps[-1].but(pass_index=0, order=first.order)
    width = max(part.shape[-1] for part in parts)
    if any(part.shape[-2] != 1 for part in parts[1:]) or len(parts) != 1 + len(steps):
        raise _unequal(first, sum(part.shape[-2] for part in parts), width, total)
    beyond = [part[..., rows + number :] for number, part in enumerate(parts)]  # of a cache of fixed length: not in use
    grows = parts[0].shape[-1] != width or (width >= total and not any(bool(part.any()) for part in beyond))
    width = total if grows else width
    found = []
    for number, part in enumerate(parts):
        upto = rows + number if grows else width
        seen = part[..., :upto]
        found.append(torch.nn.functional.pad(seen, (upto - seen.shape[-1], width - upto)))
    return first.but(weights=torch.cat(found, dim=-2), mask=None, causal=False, error=_worst([first, *steps]))


def _same(k: Tensor, first: Tensor) -> bool:
    return k.shape == first.shape and bool(torch.equal(k, first))


def _worst(calls: Sequence[Call]) -> float | None:
    known = [call.error for call in calls if call.error is not None]
    return max(known) if known else None


def _unequal(call: Call, queries: int, keys: int, wanted: int) -> ModelError:
    return ModelError(
        f"The passes of {call.module} have {queries} queries and {keys} keys together, and the text has {wanted} "
        "tokens. One token asks in each step. Pass the written text to mmattn.attend as text= instead."
    )

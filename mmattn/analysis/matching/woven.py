"""All tokens that a text's words reach, side by side, and each layer as who asks whom among them.

    nodes    | patches | slots | words |        one number a token; an axis that several layers share has its own once
    threads  a layer, lowest first: the nodes that ask, the nodes that are asked

So that a reading through several sides (words that ask slots that asked patches, streams that ask each other in
turns) is one matrix over all nodes. A text that a decoder reads in part (CoCa's) has the same nodes in both.

In a round of co-attention (BridgeTower, LXMERT) two sides ask each other at once: each is asked as it stood before
the round. Such a round is told by the number in its modules' paths.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mmattn.schema.axes import Axis, Joined, Tokens
from mmattn.schema.layers import AttentionLayer

_Ids = Int[Tensor, " node"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Thread:
    """A layer among the nodes.

    Parameters
    ----------
    asks, asked
        The nodes of its query axis and of its key axis.
    round
        A number that the layers of a round of co-attention share; None outside of one.
    """

    layer: AttentionLayer
    asks: Int[Tensor, " query"]
    asked: Int[Tensor, " key"]
    round: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Woven:
    """The threads that words reach, lowest first, and how many nodes there are."""

    threads: tuple[Thread, ...]
    axes: tuple[tuple[Axis, Int[Tensor, " _"]], ...]
    count: int

    def nodes(self, axis: Axis) -> Int[Tensor, " token"]:
        """Return the nodes of an axis of these layers."""
        return next(ids for known, ids in self.axes if known is axis or known == axis)


def weave(layers: Sequence[AttentionLayer], *, start: Sequence[AttentionLayer]) -> Woven:
    """Return the layers through which the words that ask in some layers reach anything.

    Parameters
    ----------
    layers
        Of one sample, lowest first.
    start
        Those in which words ask patches, or slots.
    """
    table = _Table()
    for layer in start:
        table.add(layer.query_axis)
    chosen: list[AttentionLayer] = []
    while (more := [one for one in layers if one not in chosen and table.holds(one.query_axis)]) != []:
        chosen += more
        for layer in more:
            table.add(layer.key_axis)
    kept = [layer for layer in layers if layer in chosen]
    rounds = _rounds(kept)
    threads = tuple(
        Thread(layer=layer, asks=table.ids(layer.query_axis), asked=table.ids(layer.key_axis), round=rounds.get(layer))
        for layer in kept
    )
    return Woven(threads=threads, axes=tuple(table.rows), count=table.count)


class _Table:
    """Numbers for the tokens of axes, a part of a sequence by itself."""

    def __init__(self) -> None:
        self.rows: list[tuple[Axis, _Ids]] = []
        self.count = 0

    def add(self, axis: Axis) -> None:
        if self._find(axis) is not None:
            return
        if isinstance(axis, Joined):
            ids = torch.full((len(axis),), -1)
            for part, where in zip(axis.parts, axis.tokens, strict=True):
                self.add(part)
                ids[torch.as_tensor(where)] = self.ids(part)
            ids[ids < 0] = self._new(int((ids < 0).sum()))
        else:
            known = self._shared(axis) if isinstance(axis, Tokens) else None
            ids = self._new(len(axis)) if known is None else known
        self.rows.append((axis, ids))

    def ids(self, axis: Axis) -> _Ids:
        found = self._find(axis)
        assert found is not None
        return found

    def holds(self, axis: Axis) -> bool:
        if self._find(axis) is not None:
            return True
        parts: Sequence[Axis] = axis.parts if isinstance(axis, Joined) else ()
        if any(self._find(part) is not None for part in parts):
            self.add(axis)
            return True
        if isinstance(axis, Tokens) and self._shared(axis) is not None:
            self.add(axis)
            return True
        return False

    def _find(self, axis: Axis) -> _Ids | None:
        return next((ids for known, ids in self.rows if known is axis or known == axis), None)

    def _new(self, length: int) -> _Ids:
        self.count += length
        return torch.arange(self.count - length, self.count)

    def _shared(self, axis: Tokens) -> _Ids | None:
        """Return nodes for a text of which a part, or more than it, has nodes already."""
        for known, ids in self.rows:
            if not isinstance(known, Tokens) or known.text != axis.text:
                continue
            short, long = sorted((known, axis), key=len)
            for first in range(len(long) - len(short) + 1):
                stop = first + len(short)
                if long.pieces[first:stop] == short.pieces and long.roles[first:stop] == short.roles:
                    if long is known:
                        return ids[first:stop]
                    return torch.cat([self._new(first), ids, self._new(len(long) - stop)])
        return None


def _rounds(layers: Sequence[AttentionLayer]) -> dict[AttentionLayer, int]:
    """Return which layers form a round in which two sides ask each other."""
    found: dict[AttentionLayer, int] = {}
    for run in _runs(layers):
        own: list[AttentionLayer] = []
        for layer in reversed(run):  # each side asks itself once and the other once; what stands before is no part
            if any(one.kind == layer.kind and one.query_axis == layer.query_axis for one in own):
                break
            own.append(layer)
        ways = [(one.query_axis, one.key_axis) for one in own if one.kind == "cross"]
        if any(one == (back[1], back[0]) for one in ways for back in ways):
            found.update(dict.fromkeys(own, len(found)))
    return found


def _runs(layers: Sequence[AttentionLayer]) -> Iterator[list[AttentionLayer]]:
    """Yield layers that follow each other and have the same first number in their paths."""
    run: list[AttentionLayer] = []
    for layer in layers:
        if run and (_number(layer) is None or _number(layer) != _number(run[-1])):
            yield run
            run = []
        run.append(layer)
    if run:
        yield run


def _number(layer: AttentionLayer) -> str | None:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer.name)
    return found[1] if found else None

"""Axes whose tokens are numbered and nothing more: bare positions, learned slots, nodes of a graph."""

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from mmattn.errors import InputError, NotFoundError, PlaceError, nearest
from mmattn.schema.places import AxisBase


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Positions(AxisBase):
    """Tokens of which nothing is known but their index: what a bare `capture` gives.

    Examples
    --------
    >>> Positions.count(3).place(2)
    2

    """

    noun: ClassVar[str] = "the sequence"

    @classmethod
    def count(cls, length: int) -> "Positions":
        """Return an axis of `length` positions."""
        return cls(roles=("content",) * length)

    def places(self) -> Int[np.ndarray, " content"]:
        """Return the indices of all content tokens."""
        return self.content

    def place(self, token: SupportsIndex) -> int:
        """Return the index of the token: itself."""
        return self._content_token(token)

    def token_at(self, point: SupportsIndex) -> int:
        """Return the token with this index."""
        index = operator.index(point)
        if not 0 <= index < len(self) or self.roles[index] != "content":
            raise PlaceError(
                f"No token stands at {index} in {self.noun}. {self._listing()}. Pass the index of a content token."
            )
        return index

    def tokens_in(self, place: tuple[int, int]) -> Int[np.ndarray, " found"]:
        """Return the content tokens with an index in `[start, end)`."""
        found = self.content[(self.content >= place[0]) & (self.content < place[1])]
        return found if len(found) else np.array([self.token_at(place[0])])

    def __repr__(self) -> str:
        return self._one_line(str(len(self.content)))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Slots(Positions):
    """Learned queries without a place in the input: perceiver latents, a Q-Former, a pooling probe.

    Examples
    --------
    >>> Slots.count(1)
    Slots(1)

    """

    noun: ClassVar[str] = "the slots"

    @classmethod
    def count(cls, length: int) -> "Slots":
        """Return an axis of `length` slots."""
        return cls(roles=("content",) * length)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Nodes(AxisBase):
    """Tokens that are nodes of a graph; a place is the node's id in the graph that the user gave.

    Parameters
    ----------
    ids
        For each token its node, each at most once; -1 for special tokens (a graph token).
    node_type
        Type of all these nodes in a graph of several types; empty in a plain graph.
    labels
        One name a token, where nodes have names.
    positions
        `[token, 2]`, where the user laid the nodes; NaN where not.
    full_ids
        For a sampled graph: each node's id in the full one; -1 for special tokens.

    Examples
    --------
    >>> axis = Nodes.count(3, labels=("ann", "bob", "eve"))
    >>> axis.place(2), axis.token_at(2), axis.token_of_label("bob")
    (2, 2, 1)

    """

    noun: ClassVar[str] = "the graph"

    ids: Int[np.ndarray, " token"]
    node_type: str = ""
    labels: tuple[str, ...] | None = None
    positions: Float[np.ndarray, "token 2"] | None = None
    full_ids: Int[np.ndarray, " token"] | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "labels", "positions", "full_ids"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.roles):
                raise InputError(
                    f"{len(value)} {name} do not fit {len(self.roles)} nodes. There is one for each token. "
                    "Pass them in the order of the nodes."
                )
        placed = self.ids[self.content]
        if placed.size and (placed.min() < 0 or len(np.unique(placed)) != placed.size):
            raise InputError(
                f"Node ids run from {placed.min()} to {placed.max()} with {len(np.unique(placed))} different ones for "
                f"{placed.size} nodes. Each node has its own id, from 0. Check the list of nodes."
            )

    @classmethod
    def count(
        cls,
        length: int,
        *,
        node_type: str = "",
        labels: tuple[str, ...] | None = None,
        positions: Float[np.ndarray, "token 2"] | None = None,
        full_ids: Int[np.ndarray, " token"] | None = None,
    ) -> "Nodes":
        """Return an axis of the nodes 0 to `length` - 1 in order."""
        return cls(
            roles=("content",) * length,
            ids=np.arange(length),
            node_type=node_type,
            labels=labels,
            positions=positions,
            full_ids=full_ids,
        )

    @cached_property
    def _sorted(self) -> tuple[Int[np.ndarray, " content"], Int[np.ndarray, " content"]]:
        order = self.content[np.argsort(self.ids[self.content], kind="stable")]
        return self.ids[order], order

    def places(self) -> Int[np.ndarray, " content"]:
        """Return the node ids of all content tokens, in the order of `content`."""
        return np.take(self.ids, self.content)

    def place(self, token: SupportsIndex) -> int:
        """Return the node id of a token in the graph that the user gave."""
        return int(self.ids[self._content_token(token)])

    def token_at(self, point: SupportsIndex) -> int:
        """Return the token of a node id."""
        node = operator.index(point)
        ids, order = self._sorted
        at = int(np.searchsorted(ids, node))
        if at == len(ids) or ids[at] != node:
            known = f"{ids[0]} to {ids[-1]}" if len(ids) else "none"
            raise PlaceError(
                f"There is no node {node} in {self.noun}: it has {len(ids)} nodes{self._of_type()}, ids {known}. "
                "Ids are those of the graph that was given. Pass one of those."
            )
        return int(order[at])

    def tokens_in(self, place: tuple[int, int]) -> Int[np.ndarray, " found"]:
        """Return the tokens of node ids in `[start, end)`, by token."""
        ids, order = self._sorted
        found = np.sort(order[(ids >= place[0]) & (ids < place[1])])
        return found if len(found) else np.array([self.token_at(place[0])])

    def token_of_label(self, label: str) -> int:
        """Return the first token with this label; raises NotFoundError with the nearest labels."""
        labels = self.labels or ()
        if label not in labels:
            raise NotFoundError(
                f"No node{self._of_type()} is called {label!r}. Known labels: {nearest(label, labels)}. "
                "Pass one of those, or a node id."
            )
        return labels.index(label)

    def token_of_full_id(self, node: SupportsIndex) -> int:
        """Return the token of a node by its id in the full graph that this one was sampled from."""
        full = self.ids if self.full_ids is None else self.full_ids
        found = self.content[full[self.content] == operator.index(node)]
        if not len(found):
            raise NotFoundError(
                f"Node {operator.index(node)} of the full graph is not among the {len(self.content)} sampled nodes"
                f"{self._of_type()}. Only sampled nodes took part. Sample the neighborhood of that node."
            )
        return int(found[0])

    def _of_type(self) -> str:
        return f" of type {self.node_type}" if self.node_type else ""

    def __repr__(self) -> str:
        named = ", labelled" if self.labels else ""
        return self._one_line(f"{len(self.content)} nodes{self._of_type()}{named}")

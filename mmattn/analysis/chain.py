"""Which layers follow each other, and how relevance gets from one to the one below.

A residual stream is carried from layer to layer. Under every layer stands its *carrier*: the axis that
holds the stream there, which is what the layer below wrote (its query axis). Going down through layer L,
from the carrier over it to the carrier under it:

    row under L = (1 - w) A^T row . T(keys -> under)  +  w row . T(queries -> under)

T is the overlap of places (`mmattn.schema.transfer`): patches that were merged, keys that were pooled,
queries that were pooled together with their residual. What T cannot take along is lost and said.

- A **class-attention** layer (CaiT, VOLO, CrossViT's fusion) writes only the class token; the patches pass by
  it untouched, so the carrier over it holds both, and only the class token's share goes through the layer.
- Several **branches** (`vision.0`, `vision.1`) each have a carrier of their own. A class-attention layer that
  reads the patches of another branch hands their share over to that branch (CrossViT). A branch that no such
  layer reads is not followed, and said (the inner tokens of TNT, which are added to the outer ones).
- A stream whose grids come back (fine, coarse, fine) is no chain: branches that run side by side were not
  told apart. A product over it would be a number without a meaning, so it is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmattn.errors import InputError, ModelError
from mmattn.schema.axes import Axis, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.transfer import Transfer, transfer


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One layer with the ways into it and out of it.

    Parameters
    ----------
    layer
        What is passed.
    enter
        From the carrier over it to its queries; what it loses passes by the layer where `passes_by`.
    from_keys
        From its keys to the carrier under it.
    from_over
        From the carrier over it to the carrier under it, for the residual stream and what passes by; None
        where there is neither.
    passes_by
        Whether the layer writes only a part of the carrier (class attention).
    other, from_other_keys
        The branch whose patches the layer reads, where that is not its own, and the way to its carrier; the
        special tokens among the keys are then its own.
    """

    layer: AttentionLayer
    enter: Transfer
    from_keys: Transfer
    from_over: Transfer | None = None
    passes_by: bool = False
    other: str = ""
    from_other_keys: Transfer | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A chain of layers, of one branch or several.

    Parameters
    ----------
    steps
        From the highest to the lowest.
    tops, bottoms
        The carriers of each branch over its highest and under its lowest layer.
    asked
        The branches that ask: that of the highest layer, and those that read it and are read by it.
    beside
        Branches that no followed layer reads, with their number of layers: they are left out.
    """

    steps: tuple[Step, ...]
    tops: dict[str, Axis]
    bottoms: dict[str, Axis]
    asked: tuple[str, ...]
    beside: dict[str, int]


class _NoBridgeError(Exception):
    """A layer that cannot be passed, and why."""

    def __init__(self, layer: AttentionLayer, why: str) -> None:
        super().__init__(why)
        self.layer = layer


def writes_special_only(layer: AttentionLayer) -> bool:
    """Whether a layer writes special tokens alone, so that all patches pass by it (class attention)."""
    axis = layer.query[0]
    return not isinstance(axis, Slots) and not len(axis.content)


def link(layers: Sequence[AttentionLayer], *, start: int, most: int, job: str = "Rollout") -> Chain:
    """Return the chain of `layers[start:]`, or say from which layer on there is one.

    Parameters
    ----------
    layers
        Lowest first.
    start
        The lowest that takes part.
    most
        The highest that a caller can start from.
    job
        Who passes them, for errors.

    Raises
    ------
    ModelError
        Where two layers cannot be joined; the message names the layer and the lowest `start_layer` that works.
    """
    try:
        return _link(layers, start)
    except _NoBridgeError as broken:
        layer, why = broken.layer, str(broken)
    for later in range(start + 1, most + 1):
        try:
            _link(layers, later)
        except _NoBridgeError:
            continue
        advice = f"From layer {later} ({layers[later].name}) on it can: pass start_layer={later}."
        raise ModelError(f"{job} cannot pass layer {layer.name}: {why} {advice}")
    raise ModelError(
        f"{job} cannot pass layer {layer.name}: {why} It can from no other layer either. "
        "Read single layers with mmattn.look(maps, layer=...)."
    )


def _link(every: Sequence[AttentionLayer], start: int) -> Chain:
    layers = every[start:]
    branches = {name: [layer for layer in layers if layer.stream == name] for name in _streams(layers)}
    for name, own in branches.items():
        _refuse_return([layer for layer in every if layer.stream == name], own)
    over, under = _carriers(branches)
    tops = {name: over[own[-1]] for name, own in branches.items()}
    other = _others(layers, over, under, tops)
    reads = {name: {other[layer] for layer in own} - {""} for name, own in branches.items()}
    highest = layers[-1].stream
    followed = _closure(highest, reads)
    standing = tops = {name: axis for name, axis in tops.items() if name in followed}
    steps = []
    for layer in [layer for layer in reversed(layers) if layer.stream in followed]:
        steps.append(_step(layer, over[layer], under[layer], other=other[layer], standing=standing))
        standing = {**standing, layer.stream: under[layer]}
    return Chain(
        steps=tuple(steps),
        tops=tops,
        bottoms=standing,
        asked=(highest, *(name for name in tops if name in reads[highest] and highest in reads[name])),
        beside={name: len(own) for name, own in branches.items() if name not in followed},
    )


def _streams(layers: Sequence[AttentionLayer]) -> list[str]:
    return list(dict.fromkeys(layer.stream for layer in layers))


def _carriers(
    branches: dict[str, list[AttentionLayer]],
) -> tuple[dict[AttentionLayer, Axis], dict[AttentionLayer, Axis]]:
    """Return the carrier over and under each layer."""
    over: dict[AttentionLayer, Axis] = {}
    under: dict[AttentionLayer, Axis] = {}
    for own in branches.values():
        carrier = _lowest(own[0])
        for layer in own:
            under[layer] = carrier
            carrier = over[layer] = _written(layer, carrier)
    return over, under


def _others(
    layers: Sequence[AttentionLayer],
    over: dict[AttentionLayer, Axis],
    under: dict[AttentionLayer, Axis],
    tops: dict[str, Axis],
) -> dict[AttentionLayer, str]:
    """Return for each layer the branch whose patches it reads, nothing where they are its own."""
    standing, found = dict(tops), {}
    for layer in reversed(layers):
        found[layer] = _other_branch(layer, over=over[layer], standing=standing)
        standing[layer.stream] = under[layer]
    return found


def _closure(highest: str, reads: dict[str, set[str]]) -> set[str]:
    """Return the branches that are read, directly or through others."""
    followed, waiting = {highest}, [highest]
    while waiting:
        new = reads[waiting.pop()] - followed
        followed |= new
        waiting += sorted(new)
    return followed


def _lowest(layer: AttentionLayer) -> Axis:
    """Return what stands under the lowest layer: its queries, or its keys where these are more (pooled queries)."""
    query, key = layer.query_axis, layer.key_axis
    return query if len(query.content) >= len(key.content) and not isinstance(query, Slots) else key


def _written(layer: AttentionLayer, under: Axis) -> Axis:
    """Return the carrier over a layer: its queries, with the patches that pass by a class-attention layer."""
    if not writes_special_only(layer):
        return layer.query_axis
    return under if set(layer.query_axis.special()) <= set(under.special()) else layer.key_axis


def _step(layer: AttentionLayer, over: Axis, under: Axis, *, other: str, standing: dict[str, Axis]) -> Step:
    if layer.residual == "learned":
        raise _NoBridgeError(layer, "its residual is learned, and nobody knows how much it counts.")
    passes_by = writes_special_only(layer)
    try:
        return Step(
            layer=layer,
            enter=transfer(over, layer.query_axis),
            from_keys=transfer(layer.key_axis, under),
            from_over=transfer(over, under) if passes_by or layer.residual != "none" else None,
            passes_by=passes_by,
            other=other,
            from_other_keys=transfer(layer.key_axis, standing[other]) if other else None,
        )
    except InputError as problem:
        raise _NoBridgeError(layer, f"{str(problem).split('. ')[0]}.") from None


def _other_branch(layer: AttentionLayer, *, over: Axis, standing: dict[str, Axis]) -> str:
    """Return the branch whose patches a class-attention layer reads, or nothing where they are its own."""
    if not writes_special_only(layer) or not len(layer.key_axis.content) or _same_places(layer.key_axis, over):
        return ""
    others = (name for name, axis in standing.items() if name != layer.stream and _same_places(layer.key_axis, axis))
    return next(others, "")


def _same_places(one: Axis, two: Axis) -> bool:
    return type(one) is type(two) and np.array_equal(one.places(), two.places())


def _refuse_return(every: Sequence[AttentionLayer], chosen: Sequence[AttentionLayer]) -> None:
    """Raise where a branch's grid comes back after another: those layers run side by side, they are no stages."""
    grids: list[Axis] = []
    back: AttentionLayer | None = None
    for layer in every:
        axis = layer.query_axis
        if not len(axis.content) or (grids and axis == grids[-1]):
            continue
        if axis in grids and back is None:
            back = layer
        grids.append(axis)
    several = len({layer.query_axis for layer in chosen if len(layer.query_axis.content)}) > 1
    if back is not None and several:
        raise _NoBridgeError(
            back,
            f"its tokens ({back.query_axis!r}) were left for others and come back, so these layers run side by side "
            "and do not follow each other.",
        )

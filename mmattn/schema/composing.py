"""Attention led on: words that ask slots, which asked the picture's patches before.

A decoder that looks at learned queries (CoCa's pool, a Q-Former, perceiver latents) never looks at a patch. What
leads from its words to patches is a product of two maps:

    W[head, word, patch] = sum over slots of  A[head, word, slot]  mean over heads of P[slot, patch]

It says nothing of values, and nothing of how patches mixed before the slots asked them: a layer that was made so
carries that in its note, `composed`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.schema.axes import Axis, Joined, PatchGrid, Slots
from mmattn.schema.joined import Part
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Dense


def way_to_patches(layer: AttentionLayer, layers: Sequence[AttentionLayer]) -> tuple[AttentionLayer, ...] | None:
    """Return the cross-attention that leads from the keys of a layer to patches, nearest first.

    Empty where its keys are patches, None where they lead to none. Of several layers by which the same slots ask,
    the last counts. Keys that are a sequence (a Q-Former's slots before words) lead on by their part.
    """
    return _way(layer.key[0], layers, (layer,))


def composed(layer: AttentionLayer, layers: Sequence[AttentionLayer]) -> AttentionLayer:
    """Return a layer with its keys led on to patches; the layer itself where they are patches already.

    Parameters
    ----------
    layers
        Those of the same maps, that layer among them.

    Raises
    ------
    ModelError
        Its keys lead to no patches.

    Examples
    --------
    >>> grid, slots = (PatchGrid.plain(rows=1, cols=2, patch_px=(8, 8), size_px=(16, 8)),), (Slots.count(2),)
    >>> def made(name, query, key, weights):
    ...     blocks = (Blocks(source=Dense(weights=torch.tensor(weights)[None, None])),)
    ...     return AttentionLayer(name=name, query=query, key=key, heads=1, storage=blocks, kind="cross")
    >>> pool = made("pool", slots, grid, [[0.5, 0.5], [0.0, 1.0]])
    >>> words = made("decoder", (Slots.count(1),), slots, [[0.5, 0.5]])
    >>> found = composed(words, [pool, words])
    >>> found.weights().tolist(), found.note
    ([[[0.25, 0.75]]], 'composed with pool')
    """
    way = way_to_patches(layer, layers)
    if way is None:
        raise ModelError(
            f"The keys of {layer.name} ({layer.key[0]!r}) lead to no patches: no layer is known by which they asked "
            "the picture. A map of the picture needs one. See its own keys: mmattn.look(maps, layer=...)."
        )
    if not way:
        return layer
    found = [_led(layer, way, sample) for sample in range(layer.sample_count)]
    sample = torch.arange(len(found), device=layer.device) if len(found) > 1 else None
    return replace(
        layer,
        key=tuple(one.axis for one in found),
        kind="cross",
        heads=layer.storage_heads,
        storage=(Blocks(source=Dense(weights=torch.stack([one.weights for one in found])), sample=sample),),
        note=composed_note(layer, way),
    )


def composed_note(layer: AttentionLayer, way: Sequence[AttentionLayer]) -> str:
    """Return what a caption says of a layer that is led on: its note, but that its keys are no patches, and the way.

    Examples
    --------
    >>> from mmattn.schema.axes import Slots
    >>> slots, blocks = (Slots.count(2),), (Blocks(source=Dense(weights=torch.ones(1, 1, 2, 2))),)
    >>> note = "gate 0.5; slots, no patches"
    >>> layer = AttentionLayer(name="a", query=slots, key=slots, heads=1, storage=blocks, note=note)
    >>> composed_note(layer, [layer]), composed_note(layer, [])
    ('gate 0.5; composed with a', 'gate 0.5; slots, no patches')
    """
    if not way:
        return layer.note
    own = [phrase for phrase in layer.note.split("; ") if not phrase.endswith("no patches")]
    return "; ".join(filter(None, (*own, "composed with " + " and ".join(one.name for one in way))))


def _way(
    axis: Axis, layers: Sequence[AttentionLayer], passed: tuple[AttentionLayer, ...]
) -> tuple[AttentionLayer, ...] | None:
    parts = axis.parts if isinstance(axis, Joined) else (axis,)
    if any(isinstance(part, PatchGrid) for part in parts):
        return ()
    slots = [part for part in parts if isinstance(part, Slots)]  # words that asked patches are no way for other words
    for other in reversed(layers):
        if other.kind == "cross" and other.query[0] in slots and other not in passed:
            further = _way(other.key[0], layers, (*passed, other))
            if further is not None:
                return (other, *further)
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Led:
    """Weights over an axis."""

    weights: Float[Tensor, "head query key"]
    axis: Axis


def _led(layer: AttentionLayer, way: Sequence[AttentionLayer], sample: int) -> _Led:
    own = _of(layer, sample)
    found = _Led(weights=own.weights(), axis=own.key_axis)
    for other in way:
        found = _through(found, _of(other, sample))
    return found


def _of(layer: AttentionLayer, sample: int) -> AttentionLayer:
    return layer.sample(sample if layer.sample_count > 1 else 0)


def _through(found: _Led, other: AttentionLayer) -> _Led:
    """Return weights led on through a layer; of a sequence one part is, and the others stay."""
    onward = other.weights().mean(dim=0)
    axis = found.axis
    if not isinstance(axis, Joined):
        return _Led(weights=found.weights @ onward, axis=other.key_axis)
    at = axis.parts.index(other.query_axis)
    parts: dict[str, tuple[Part, Tensor]] = {}
    for number, (name, part, where) in enumerate(zip(axis.names, axis.parts, axis.tokens, strict=True)):
        own = found.weights[..., torch.as_tensor(where, device=found.weights.device)]
        parts |= _parts(name, other.key_axis, own @ onward) if number == at else {name: (part, own)}
    ends = list(itertools.accumulate((len(part) for part, _ in parts.values()), initial=0))
    return _Led(
        weights=torch.cat([weights for _, weights in parts.values()], dim=-1),
        axis=Joined.of(
            {name: part for name, (part, _) in parts.items()},
            tokens=[range(*pair) for pair in itertools.pairwise(ends)],
        ),
    )


def _parts(name: str, axis: Axis, weights: Float[Tensor, "head query key"]) -> dict[str, tuple[Part, Tensor]]:
    """Return what stands in the place of slots: patches, or each part of what they asked (patches and the slots)."""
    if not isinstance(axis, Joined):
        return {name: (axis, weights)}
    return {
        f"{name}, {own}": (part, weights[..., torch.as_tensor(where, device=weights.device)])
        for own, part, where in zip(axis.names, axis.parts, axis.tokens, strict=True)
    }

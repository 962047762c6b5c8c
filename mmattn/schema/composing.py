"""Attention led on: words that ask slots, which asked the picture's patches before.

A decoder that looks at learned queries (CoCa's pool, a Q-Former, perceiver latents) never looks at a patch. What
leads from its words to patches is a product of two maps:

    W[head, word, patch] = sum over slots of  A[head, word, slot]  mean over heads of P[slot, patch]

It says nothing of values, and nothing of how patches mixed before the slots asked them: a layer that was made so
carries that in its note, `composed`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.errors import ModelError
from mmattn.schema.axes import Axis, Joined, PatchGrid
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.weights import Blocks, Dense


def way_to_patches(layer: AttentionLayer, layers: Sequence[AttentionLayer]) -> tuple[AttentionLayer, ...] | None:
    """Return the cross-attention that leads from the keys of a layer to patches, nearest first.

    Empty where its keys are patches, None where they lead to none. Of several layers by which the same slots ask,
    the last counts.
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
    >>> from mmattn.schema.axes import Slots
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
        key=way[-1].key,
        heads=layer.storage_heads,
        storage=(Blocks(source=Dense(weights=torch.stack(found)), sample=sample),),
        note=", ".join(filter(None, ("composed with " + " and ".join(one.name for one in way), way[-1].note))),
    )


def _way(
    axis: Axis, layers: Sequence[AttentionLayer], passed: tuple[AttentionLayer, ...]
) -> tuple[AttentionLayer, ...] | None:
    if isinstance(axis, PatchGrid) or (isinstance(axis, Joined) and any(isinstance(p, PatchGrid) for p in axis.parts)):
        return ()
    for other in reversed(layers):
        if other.kind == "cross" and other.query[0] == axis and other not in passed:
            further = _way(other.key[0], layers, (*passed, other))
            if further is not None:
                return (other, *further)
    return None


def _led(layer: AttentionLayer, way: Sequence[AttentionLayer], sample: int) -> Float[Tensor, "head query patch"]:
    weights = layer.sample(sample if layer.sample_count > 1 else 0).weights()
    for other in way:
        weights = weights @ other.sample(sample if other.sample_count > 1 else 0).weights().mean(dim=0)
    return weights

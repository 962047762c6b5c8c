"""Rollout through all that stands between a word and the picture: its own text, cross-attention, the picture's tower.

From the last layer to the first, where a row x stands over all tokens of all sides:

    x over those who ask   <-   w x                   what their residual stream keeps
    x over those asked     <-   x + (1 - w) A^T x     what they are handed

so that a row keeps the sum of one: what is left on words at the end lies outside the picture, and is said. With a
single side this is the rollout of Abnar & Zuidema (2020), "Quantifying Attention Flow in Transformers", whose w is one
half; between sides it is ours, with the same w. A pool of learned queries has no residual stream (w = 0).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmattn.analysis.matching.woven import Thread, Woven
from mmattn.errors import ModelError
from mmattn.schema import stream as rows

_KEPT = 0.5


def cross_rollout(woven: Woven, *, asks: Int[Tensor, " row"], patches: Int[Tensor, " patch"]) -> Tensor:
    """Return how much of each patch reaches some tokens through all layers, `[row, patch]`.

    Parameters
    ----------
    asks
        The nodes that ask on top.
    patches
        The nodes of the picture.

    Raises
    ------
    ModelError
        A layer whose residual stream is learned, so that nobody knows how much it counts.
    """
    standing = torch.zeros(len(asks), woven.count)
    standing[torch.arange(len(asks)), asks] = 1.0
    for around in _from_the_top(woven.threads):
        held = torch.zeros_like(standing)
        for thread in around:
            standing = _through(thread, standing, held, held_back=thread.round is not None)
        standing = standing + held
    return standing[:, patches]


def _from_the_top(threads: Sequence[Thread]) -> list[list[Thread]]:
    """Return threads, highest first; those of a round of co-attention together."""
    found: list[list[Thread]] = []
    for thread in reversed(threads):
        if found and thread.round is not None and found[-1][-1].round == thread.round:
            found[-1].append(thread)
        else:
            found.append([thread])
    return found


def _through(
    thread: Thread, standing: Float[Tensor, "row node"], held: Float[Tensor, "row node"], *, held_back: bool
) -> Float[Tensor, "row node"]:
    layer = thread.layer
    if layer.residual == "learned":
        raise ModelError(
            f"Rollout cannot pass layer {layer.name}: its residual is learned, and nobody knows how much it counts. "
            'Use method="cross", which reads one layer, or "chefer".'
        )
    kept = 0.0 if layer.residual == "none" else _KEPT
    over = standing[:, thread.asks]
    passed = (1 - kept) * rows.apply_transposed(layer, over.T).T.to(over)
    standing = standing.clone()
    standing[:, thread.asks] = kept * over
    if held_back and thread.layer.kind == "cross":  # the other side is asked as it stood before the round
        held.index_add_(1, thread.asked, passed)
        return standing
    return standing.index_add(1, thread.asked, passed)

"""Localization heads: the few heads of a decoder whose attention to the picture lies in one place.

    1. sum      S[layer, head] = sum over patches of A[reader, patch]; heads above the elbow of the sorted S stay
    2. entropy  patches above the mean of their map, in components of 8 neighbors C1, C2, ...
                H = - sum of p log p,   p = |Ci| / sum of |Cj|; heads with the lowest H stay
    the map     the sum of three heads' rows

The elbow is the point of the sorted sums that is farthest from the line between its ends. A head whose map covers the
whole bottom row is left out: that is no place. Kang, Kim, Kim & Hwang (2025), "Your Large Vision-Language Model Only
Needs A Few Attention Heads For Visual Grounding", CVPR. The reader is the last token of the text, as there.

Where we depart: heads are chosen for the text at hand, not by how often they are among the best of a thousand
examples, and each word asks through the same heads. Their released code compares the *number* of a head with the
elbow, and weighs components by their attention; here it is the paper's: sums above the elbow, and sizes. They smooth
the map before they cut a mask out of it; here it stays as it is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmattn.analysis.matching.one_stream import Found, OneStream
from mmattn.errors import ModelError
from mmattn.schema import stream as rows
from mmattn.schema.axes import PatchGrid

_HEADS = 3


@dataclass(frozen=True, kw_only=True)
class Head:
    """One head, with what it is chosen by."""

    layer: int
    head: int
    total: float
    entropy: float


def heads(stream: OneStream) -> Found:
    """Return what each word gave to each patch in the three heads that look at one place.

    Raises
    ------
    ModelError
        No head does.
    """
    chosen = localizing(stream)
    if not chosen:
        raise ModelError(
            "No head of this model looks at one place of the picture for this text: of those above the elbow each map "
            'is flat or covers the bottom row. Localization heads are some that do. Use method="raw" or "chefer".'
        )
    found = [stream.asked(stream.layers[one.layer], head=one.head) for one in chosen]
    return Found(
        rows=torch.stack([words for words, _ in found]).sum(dim=0),
        whole=torch.stack([whole for _, whole in found]).sum(dim=0),
        said={"heads": "; ".join(f"layer {one.layer} head {one.head}" for one in chosen)},
        unit="relevance",
    )


def localizing(stream: OneStream, *, count: int = _HEADS) -> list[Head]:
    """Return the heads that look at one place for a text, the lowest entropy first."""
    grid = stream.picture
    at = torch.as_tensor(grid.content)
    each = [rows.rows_of(layer, [stream.reader], heads="each")[:, 0].float() for layer in stream.layers]
    maps = [stream.over_picture(one)[:, at].cpu() for one in each]
    sums = [row.sum(dim=1) for row in maps]
    least = elbow(torch.cat(sums))
    found = []
    for number, (own, total) in enumerate(zip(maps, sums, strict=True)):
        for head in torch.nonzero(total >= least).flatten().tolist():
            above = _above_mean(grid, own[head])
            if above.any() and not above[-1].all():
                entropy = spatial_entropy(above)
                found.append(Head(layer=number, head=head, total=float(total[head]), entropy=entropy))
    return sorted(found, key=lambda one: (one.entropy, -one.total))[:count]


def elbow(sums: Float[Tensor, " head"]) -> float:
    """Return the value at which sorted numbers bend: the one farthest from the line between the least and the most.

    Examples
    --------
    >>> round(elbow(torch.tensor([0.0, 0.9, 0.1, 0.02, 0.03, 0.8])), 3)
    0.1
    """
    ordered = sums.double().sort().values
    if len(ordered) < 3:
        return float(ordered[0])
    line = torch.linspace(0, 1, len(ordered), dtype=torch.float64) * (ordered[-1] - ordered[0]) + ordered[0]
    return float(ordered[int((ordered - line).abs().argmax())].to(sums.dtype))


def spatial_entropy(above: Bool[np.ndarray, "row col"]) -> float:
    """Return how many places a map is in: 0 for one, log n for n of the same size.

    Examples
    --------
    >>> spatial_entropy(np.array([[True, False, False], [False, True, False]]))
    0.0
    >>> round(spatial_entropy(np.array([[True, False, True]])), 4)
    0.6931
    """
    sizes = np.array(_sizes(above))
    shares = sizes / sizes.sum()
    return abs(float(-(shares * np.log(shares)).sum()))


def _sizes(above: Bool[np.ndarray, "row col"]) -> list[int]:
    """Return how many cells each component of neighbors has, corners among them."""
    high, wide = above.shape
    labels = np.where(above, np.arange(1, above.size + 1).reshape(above.shape), 0)
    while True:
        around = np.pad(labels, 1)
        shifted = [around[row : row + high, col : col + wide] for row in range(3) for col in range(3)]
        grown = np.where(above, np.maximum.reduce(shifted), 0)
        if np.array_equal(grown, labels):
            return [int(count) for count in np.unique(labels[above], return_counts=True)[1]]
        labels = grown


def _above_mean(grid: PatchGrid, values: Float[Tensor, " patch"]) -> Bool[np.ndarray, "row col"]:
    """Return which cells hold more than the mean of the patches."""
    above = np.zeros(grid.rows * grid.cols, dtype=bool)
    above[grid.cells[grid.content]] = (values > values.mean()).numpy()
    return above.reshape(grid.rows, grid.cols)

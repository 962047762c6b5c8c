"""Relative attention: what a word gives to each patch, over what a general question gives to it.

    relative[word, patch] = A[word, patch] / A'[reader, patch]

A is one layer's attention, mean over heads, of the text, and A' that of "Write a general description of the image.",
asked by the token that has read it. What every question looks at (sinks, edges) cancels. Zhang, Khayatkhoei, Chhikara
& Ilievski (2025), "MLLMs Know Where to Look: Training-free Perception of Small Visual Details with Multimodal LLMs",
ICLR: they ask with the last token of the question, as the row of the text as a whole does here, in layer 14 of 32 of
LLaVA-1.5; the default is the layer at that part of the depth.

Where we depart: each word asks as well, and the quotient is bounded, since a patch at which the general question did
not look would make anything infinitely relevant: A' counts as at least a thousandth of its mean.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.one_stream import Found, OneStream, phrase
from mmattn.errors import ModelError

GENERAL = "Write a general description of the image."
_DEPTH = 14 / 32
_LEAST = 1e-3


def relative(stream: OneStream, *, general: Callable[[], OneStream], layer: int | str | None = None) -> Found:
    """Return what each word gave to each patch, relative to a general question.

    Parameters
    ----------
    general
        Returns the picture with the general question.
    layer
        By default the one at 14/32 of the depth.

    Raises
    ------
    NotFoundError
        A layer that is not there.
    ModelError
        The picture has other tokens beside another text.
    """
    number, chosen = stream.numbered(
        min(round(_DEPTH * len(stream.layers)), len(stream.layers) - 1) if layer is None else layer
    )
    other = general()
    rows, whole = stream.asked(chosen)
    _, against = other.asked(other.numbered(number)[1])
    if len(against) != len(whole):
        raise ModelError(
            f"The picture has {len(whole)} tokens beside the text and {len(against)} beside a general question. They "
            'are divided patch by patch, so both must be as many. Use method="raw".'
        )
    return Found(
        rows=over(rows, against),
        whole=over(whole[None], against)[0],
        said={"layer": phrase(stream.layers, number), "over": f"‘{GENERAL}’"},
        unit="relevance",
    )


def over(rows: Float[Tensor, "word patch"], against: Float[Tensor, " patch"]) -> Float[Tensor, "word patch"]:
    """Return rows divided by a row that counts as at least a thousandth of its mean.

    Examples
    --------
    >>> import torch
    >>> over(torch.tensor([[4.0, 1.0, 1.0]]), torch.tensor([2.0, 2.0, 0.0])).round().tolist()
    [[2.0, 0.0, 750.0]]
    """
    least = _LEAST * against.mean()
    return rows / against.clamp(min=float(least) or 1.0)

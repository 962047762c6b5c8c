"""Raw attention in one sequence: what each word gave to each patch, and how much of that lies on sinks.

    raw[word, patch] = mean over layers and heads of A[word, patch];     one layer, one head where they are named

Decoders give much of their weight to the same few patches, mostly of background, whatever the word; taking them away
does not hurt (Kang, Kim, Kim & Hwang 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal
Models"). Their share is stated, not taken off. A **sink** here is a patch to which *every* word of the text gave more
than four times the mean of its patches; so one that all words mean (the only thing in the picture) counts as well, and
of a text of one word nothing can be said.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmattn.analysis.matching.one_stream import Found, OneStream, phrase
from mmattn.errors import NotFoundError

# How many times the mean of its patches a word gives to a sink.
_MUCH = 4.0


def raw(stream: OneStream, *, layer: int | str | None = None, head: int | None = None) -> Found:
    """Return what each word gave to each patch.

    Parameters
    ----------
    layer, head
        One of each; None: the mean over all.

    Raises
    ------
    NotFoundError
        A layer or head that is not there.
    """
    number, chosen = (None, None) if layer is None else stream.numbered(layer)
    layers = stream.layers if chosen is None else (chosen,)
    count = min(one.storage_heads for one in layers)
    if head is not None and not (type(head) is int and -count <= head < count):
        raise NotFoundError(
            f"There is no head {head!r}: there are {count}, 0 to {count - 1}. Pass one of those, or leave head= out "
            "for their mean."
        )
    rows, whole = (
        torch.stack(parts).mean(dim=0) for parts in zip(*(stream.asked(one, head=head) for one in layers), strict=True)
    )
    said: dict[str, object] = {
        "layer": f"mean of {len(layers)}" if number is None else phrase(stream.layers, number),
        "head": "mean" if head is None else head,
        "sinks": sinks_phrase(stream, rows),
    }
    return Found(
        rows=rows, whole=whole, said={name: value for name, value in said.items() if value != ""}, unit="share"
    )


def sinks_of(rows: Float[Tensor, "word patch"]) -> Bool[Tensor, " patch"]:
    """Return the patches to which every one of several words gave more than four times the mean of its patches.

    Examples
    --------
    >>> sinks_of(torch.tensor([[0.9] + [0.01] * 9, [0.8, 0.2] + [0.0] * 8])).nonzero().flatten().tolist()
    [0]
    """
    if len(rows) < 2:
        return torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
    return (rows > _MUCH * rows.mean(dim=1, keepdim=True)).all(dim=0)


def sinks_phrase(stream: OneStream, rows: Float[Tensor, "token patch"]) -> str:
    """Return how many patches are sinks, and the part of the words' weight on the picture that they have."""
    words, _ = stream.text
    grid = stream.picture
    own = [rows[list(word.tokens)].mean(dim=0) for word in words.words()]
    if len(own) < 2:
        return ""
    seen = torch.stack(own)[:, torch.as_tensor(grid.content)]
    found, total = sinks_of(seen), float(seen.sum())
    share = 100 * float(seen[:, found].sum()) / total if total else 0.0
    count = int(found.sum())
    return f"{count} patches hold {share:.2g} % of the words' weight on the picture" if count else "none"

"""What is drawn of a sequence that words and patches share: the patches of its picture, and the words of its text.

Where a sequence has one picture (or one text) that one is meant, and the caption says how much of the weight lies on
the other tokens. Where it has several (tiles, a question and its answer) one has to be named: `relevance.part`.
"""

from mmattn.schema.axes import Joined, PatchGrid, Tokens
from mmattn.schema.results import Relevance


def of_picture(relevance: Relevance) -> Relevance:
    """Return a relevance whose columns are the patches of the only picture in the sequence; others as they are.

    Raises
    ------
    NotFoundError
        The sequence has no picture, or several.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import Slots
    >>> image = PatchGrid.plain(rows=1, cols=1, patch_px=(16, 16), size_px=(16, 16))
    >>> text = Tokens.of("a", pieces=["a"], spans=[(0, 1)])
    >>> both = Joined.of({"text": text, "image": image}, tokens=[[0], [1]])
    >>> one = Relevance(values=torch.tensor([[0.25, 0.75]]), axis=both, query_axis=Slots.count(1), labels=("a",),
    ...                 method="look")
    >>> of_picture(one).values.tolist()
    [[0.75]]
    """
    axis = getattr(relevance, "axis", None)
    return relevance.part(axis.only(PatchGrid)) if isinstance(axis, Joined) else relevance


def of_words(relevance: Relevance) -> Relevance:
    """Return a relevance whose rows are the words of the only text in the sequence; others as they are.

    Raises
    ------
    NotFoundError
        The sequence has no text, or several.
    """
    axis = getattr(relevance, "query_axis", None)
    return relevance.part(rows=axis.only(Tokens)) if isinstance(axis, Joined) else relevance

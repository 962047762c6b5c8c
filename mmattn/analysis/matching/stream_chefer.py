"""Chefer's relevance in one sequence: attention times gradient, followed through all layers, toward what is said.

    R  <-  R + A R,      A = mean over heads of (A * dS/dA)^+,      R = I below the first layer

read in a word's row, at the patches. Chefer, Gur & Wolf (2021), "Generic Attention-model Explainability for
Interpreting Bi-Modal and Encoder-Decoder Transformers": the rule for a single stream.

A model that judges the text (ViLT) has one score S, the logit of a match: one backward pass, and a row for each word
as it was read. A decoder writes: S is the logit of a word's token, and its row is the one that the logit comes from,
that of the token before it; each token is one backward pass.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.matching.one_stream import Found, OneStream
from mmattn.analysis.matching.toward import Toward
from mmattn.schema import stream as rows
from mmattn.schema.layers import AttentionLayer


def chefer(stream: OneStream, run: Toward, *, text: int) -> Found:
    """Return how much each patch raised what the model says, through each word.

    Parameters
    ----------
    run
        All pairs, with their graph.
    text
        Which of them.

    Raises
    ------
    ModelError
        A model without gradients, or whose layers are put together of several softmaxes.
    """
    _, words = stream.text
    names = {layer.name for layer in stream.layers}

    def read(logit: Tensor, asking: Sequence[int]) -> Float[Tensor, "asked patch"]:
        maps = run.maps(text, logit, needed=names.__contains__)
        own = [layer for layer in maps.layers if layer.name in names]
        return stream.over_picture(through(own, asking).float())

    if run.scores.targets is not None:
        found = read(run.scores.targets[text], [*words.tolist(), stream.reader])
        return Found(
            rows=stream.by_word(found[:-1]),
            whole=found[-1],
            said={"toward": "the logit of a match"},
            unit="relevance",
        )
    assert run.scores.words is not None
    found = torch.zeros(len(words), len(stream.picture))
    for token in torch.nonzero(stream.spoken).flatten().tolist():
        where = int(words[token])
        if where:
            found[token] = read(run.scores.words[text, where], [where - 1])[0]
    return Found(rows=found, whole=found.sum(dim=0), said={"toward": "the logit of each word"}, unit="relevance")


def through(layers: Sequence[AttentionLayer], asking: Sequence[int]) -> Float[Tensor, "asked token"]:
    """Return rows of R - I of layers that follow each other, lowest first, without building R."""
    start = torch.zeros(len(layers[0].query_axis), len(asking), dtype=torch.float64)
    start[list(asking), range(len(asking))] = 1.0
    passed = start
    for layer in reversed(layers):
        passed = passed + rows.apply_transposed(layer, passed).to("cpu", torch.float64)
    return (passed - start).T

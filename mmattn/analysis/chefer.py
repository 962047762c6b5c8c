"""Chefer's relevance: attention times gradient, followed through all layers with the residual stream beside it.

    R  <-  R + mean over heads of (A * dS/dA)^+  R,        R = I below the first layer

Chefer, Gur & Wolf (2021), "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers". From the asking token down, one row passes each layer, so that no R of
tokens x tokens is built: row <- row + row (A * dS/dA)^+.

Where we depart: the identity that R begins with is taken off the result (R - I; they do so between
modalities). On an average of patches, which many models read their answer from, it is the same for each
patch and far larger than what was found; a class token's patches it does not touch. Between stages whose
grids differ rows move by the overlap of places (`mmattn.analysis.chain`). An attention pool has no residual
stream: its row is the product alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.attribution import Attribution, positive
from mmattn.analysis.chain import link
from mmattn.analysis.passing import Recipe, from_the_top
from mmattn.analysis.queries import Query, marked
from mmattn.analysis.rollout import asked_on_top, finest, joined, said_of, stacked
from mmattn.schema import stream as rows
from mmattn.schema.axes import Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.results import Relevance

# The residual stream counts as it is: nothing is a share here.
_RECIPE = Recipe(head_fusion="mean", discard_ratio=0.0, residual_weight=1.0)


def chefer(found: Attribution, *, stream: str | None = None, query: Query = None, start_layer: int = 0) -> Relevance:
    """Return how much of each input token reaches the asking token and raises the score, through all layers.

    Parameters
    ----------
    found
        One sample of `mmattn.analysis.attribution.attribute`.
    stream, query, start_layer
        As for `mmattn.analysis.rollout.rollout`.

    Raises
    ------
    ModelError
        Where two layers cannot be joined, as for rollout.
    """
    maps = positive(found.maps)
    layers, count = stacked(maps, stream, start_layer)
    first = start_layer % count
    chain = link(layers, start=first, most=count - 1, job="Chefer's relevance")
    asked, question, above = asked_on_top(chain, query, readout=maps.readout_in(stream))
    if chain.steps[0].layer.device.type != "mps":  # the identity, taken off at the end, is far larger than the rest
        asked = {name: row.double() for name, row in asked.items()}
    passed = from_the_top(chain, asked, _RECIPE, attention=_beside)
    unmoved = from_the_top(chain, asked, _RECIPE, attention=_alone)
    axis = finest(chain.bottoms.values())
    values = joined(passed.rows, chain.bottoms, axis) - joined(unmoved.rows, chain.bottoms, axis)
    tokens, places = marked(question, above, axis)
    said = said_of(maps, chain, {}, 0.0)
    return Relevance(
        values=values.float(),
        axis=axis,
        query_axis=Slots.count(1),
        labels=(question.label,),
        method="chefer",
        unit="relevance",
        parameters={
            "layers": f"{first} to {count - 1}" + (" and the pool" if len(layers) > count else ""),
            **{name: phrase for name, phrase in said.items() if name != "absolute weights"},
        },
        query_tokens=(tokens,),
        query_places=(places,),
        target=found.target,
        media=maps.media[0] if maps.media else None,
        query_media=maps.media[0] if maps.media else None,
        source=maps.source,
    )


def _beside(
    layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: Recipe, beside: float
) -> tuple[Float[Tensor, "key one"], Float[Tensor, "query one"]]:
    return rows.apply_transposed(layer, row).to(row.dtype), row


def _alone(
    layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: Recipe, beside: float
) -> tuple[Float[Tensor, "key one"], Float[Tensor, "query one"]]:
    """Pass nothing through attention: what is left is what the residual stream carries."""
    return torch.zeros(len(layer.key_axis), 1, dtype=row.dtype, device=row.device), row

"""Gradient rollout: rollout through attention times its gradient, instead of attention alone.

    r_L = who asks,   r_{l-1} = r_l (w I + (1 - w) D^-1 C),   C = mean over heads of (A * dS/dA)^+

Rollout of Abnar & Zuidema (2020), weighted by gradients as in Gildenblat's `vit-explain` (2020).

Where we depart: D brings each row of C to one, so that the residual stream and attention are weighed
against each other as in rollout, whatever the size of the gradient, which depends on nothing but the scale
of the logits. `vit-explain` adds I to C as it is and divides columns by row sums. A row in which nothing
raised the score passes nothing on through attention; that share is in `outside`. The result is therefore a
share, as rollout's is.
"""

from dataclasses import replace

from mmattn.analysis.attribution import Attribution, positive
from mmattn.analysis.queries import Query
from mmattn.analysis.rollout import rollout
from mmattn.schema.results import Relevance


def grad_rollout(
    found: Attribution, *, stream: str | None = None, query: Query = None, start_layer: int = 0
) -> Relevance:
    """Return the share of each input token in what reaches the asking token and raises the score.

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
    rolled = rollout(positive(found.maps), stream=stream, query=query, start_layer=start_layer)
    said = {name: value for name, value in rolled.parameters.items() if name not in _OF_ROLLOUT}
    return replace(rolled, method="grad_rollout", target=found.target, parameters=said)


# Options that gradient rollout has not, and what is true of all its layers.
_OF_ROLLOUT = ("head_fusion", "discard_ratio", "absolute weights")

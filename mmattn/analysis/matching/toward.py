"""Gradients of what a model says of a picture with a text: of a match, or of each word that it writes.

The model runs once with a graph, the picture's tower once for all texts; each text (or each word of it) is one
backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.attribution import positive, refuse_composed, with_gradients
from mmattn.analysis.matching.match import Pair
from mmattn.analysis.matching.meeting import Meeting, scores_of, tower_of
from mmattn.analysis.matching.once import Once, once
from mmattn.interception.gradients import Differentiation, differentiate
from mmattn.interception.protocol import PairScores
from mmattn.schema.maps import AttentionMaps


@dataclass(frozen=True, kw_only=True, eq=False)
class Toward:
    """A run of all pairs that gradients can be taken of, one after another.

    Parameters
    ----------
    scores
        Of all pairs, with their graph.
    """

    pair: Pair
    meeting: Meeting
    run: Differentiation
    once: Once
    scores: PairScores

    def maps(self, text: int, logit: Float[Tensor, ""], *, needed: Callable[[str], bool]) -> AttentionMaps:
        """Return the maps of one text with what raised a logit: the positive part of attention times gradient.

        Raises
        ------
        ModelError
            No gradient reaches a layer that is needed, or a layer is put together of several softmaxes.
        """
        with torch.inference_mode(False), torch.enable_grad():
            calls = self.run.gradients(logit, needed=needed, keep=True)
        refuse_composed(self.meeting.maps, [call for call in calls if needed(call.module)])
        prepared = self.meeting.maps.prepared
        placed = self.pair.adapter.layers(self.once.spread(calls), prepared)
        return positive(with_gradients(self.meeting.maps.samples[text], placed, text))


def toward(pair: Pair, meeting: Meeting) -> Toward:
    """Run all pairs again, with a graph.

    Raises
    ------
    ModelError
        A model without gradients, or one that gives no score.
    """
    adapter = pair.adapter
    assert meeting.maps.rerun is not None
    with (
        once(pair.model, tower_of(pair), count=len(pair.texts)) as looks,
        differentiate(pair.model, taps=(adapter.taps,)) as run,
    ):
        output = meeting.maps.rerun()
    again = replace(meeting, output=output)
    with torch.inference_mode(False), torch.enable_grad():
        return Toward(pair=pair, meeting=meeting, run=run, once=looks, scores=scores_of(pair, again))

"""A picture run with each text in one model in which the two meet, and how they meet.

    towers    two towers share no attention: only their two features meet at the end
    cross     words ask patches (or slots that asked patches before): attention of kind `cross`
    stream    words and patches stand in one sequence and ask all of it: attention over a `Joined` axis

Which of these a model is, is read off its layers' axes; nothing is known of any class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmattn.errors import ModelError
from mmattn.interception import capture
from mmattn.interception.protocol import PairScores, ScoresPairs, SharesPicture
from mmattn.schema.axes import Axis, Joined, Tokens
from mmattn.schema.composing import way_to_patches
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps

from .once import Once, once

if TYPE_CHECKING:
    from .match import Pair

Kind = Literal["towers", "cross", "stream"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Meeting:
    """A picture that ran with each of some texts.

    Parameters
    ----------
    maps
        One sample for each text.
    output
        What the model gave for all pairs.
    once
        Whether and how the picture's tower ran once for all.
    """

    maps: AttentionMaps
    output: Any
    once: Once


def meet(pair: "Pair") -> Meeting:
    """Run a picture with all texts in one pass, the picture's tower once where the model lets it."""
    prepared = pair.prepared(image=pair.photo, text=list(pair.texts))
    adapter, count = pair.adapter, len(pair.texts)
    with (
        torch.no_grad(),
        once(pair.model, tower_of(pair), count=count) as run,
        capture(pair.model, taps=(adapter.taps,)) as seen,
    ):
        output = prepared.run()
    maps = AttentionMaps(
        layers=tuple(adapter.layers(run.spread(seen.calls), prepared)),
        media=prepared.media,
        source=pair.source,
        default_stream=adapter.default_stream,
        readout=prepared.readout,
        rerun=prepared.run,
        adapter=adapter,
        prepared=prepared,
    )
    return Meeting(maps=maps, output=output, once=run)


def tower_of(pair: "Pair") -> str:
    """Return the path of the module that turns pictures into tokens; empty where the adapter does not say."""
    return pair.adapter.picture_tower(pair.model) if isinstance(pair.adapter, SharesPicture) else ""


def scores_of(pair: "Pair", meeting: Meeting) -> PairScores:
    """Return what the model gave for each pair.

    Raises
    ------
    ModelError
        It gives nothing, or its adapter knows no score.
    """
    if not isinstance(pair.adapter, ScoresPairs):
        raise ModelError(
            f"What {type(pair.model).__name__} gives for a picture with a text is not known to its adapter. "
            "mmattn.match needs a score. Read its attention with mmattn.attend and mmattn.look."
        )
    return pair.adapter.pair_scores(meeting.output, meeting.maps.prepared)


def kinds_of(layers: Sequence[AttentionLayer]) -> tuple[Kind, ...]:
    """Return how words and patches meet in the layers of a model, `cross` first.

    Examples
    --------
    >>> kinds_of([])
    ()
    """
    found: list[Kind] = []
    if any(crosses(layer, layers) for layer in layers):
        found.append("cross")
    if any(_in_one(layer.query[0]) and layer.kind == "self" for layer in layers):
        found.append("stream")
    return tuple(found)


def crosses(layer: AttentionLayer, layers: Sequence[AttentionLayer]) -> bool:
    """Whether words ask patches in a layer, or ask slots that have asked patches in another.

    Slots may stand before words in one sequence (BLIP-2); patches that do are another kind.
    """
    if not has_words(layer.query[0]):
        return False
    way = way_to_patches(layer, layers)
    return way is not None and (layer.kind == "cross" or bool(way))


def has_words(axis: Axis) -> bool:
    """Whether an axis is a text, or has one as a part."""
    return isinstance(axis, Tokens) or (isinstance(axis, Joined) and any(isinstance(one, Tokens) for one in axis.parts))


def _in_one(axis: Axis) -> bool:
    return isinstance(axis, Joined) and has_words(axis) and len(axis.parts) > 1

"""One tower of a two-tower model on its input: the features that it gives, and where its tokens stand.

The layers of a recording say which of the tower's sequences are patches of the picture or pieces of the
text; nothing is known of any library.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import ModelError, NoAttentionError, NotFoundError
from mmattn.interception import capture
from mmattn.interception.feature_maps import FeatureMap, MapsFeatures
from mmattn.interception.protocol import Adapter, Prepared, TwoTowers
from mmattn.schema.axes import Axis, PatchGrid, Tokens
from mmattn.schema.layers import AttentionLayer

Stream = Literal["vision", "text"]

Run = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """One tower that has run.

    Parameters
    ----------
    stream
        `vision` or `text`.
    prepared
        Its input, by the adapter.
    run
        Runs it again and returns its features, with gradients where they are on.
    features
        `[sample, feature]`, of length one.
    layers
        Its attention, lowest first.
    map
        Its last feature map, where the tokens are that map's places and not those of an attention.
    """

    stream: Stream
    prepared: Prepared
    run: Run
    features: Float[Tensor, "sample feature"]
    layers: tuple[AttentionLayer, ...]
    map: FeatureMap | None = None

    @property
    def last(self) -> AttentionLayer:
        """The last attention among the tokens themselves; what pools them comes behind it."""
        return [layer for layer in self.layers if layer.kind == "self"][-1]

    def around(self, block: int) -> AttentionLayer:
        """Return the self-attention of a block, by its number among those that have the last one's tokens.

        Raises
        ------
        NotFoundError
            There is no such block.
        """
        alike = self.alike
        if not -len(alike) <= block < len(alike):
            raise NotFoundError(
                f"The {self.stream} tower has {len(alike)} blocks on its last tokens, and {abs(block)} were asked for. "
                f"Pass blocks= from 1 to {len(alike)}."
            )
        return alike[block]

    @property
    def alike(self) -> tuple[AttentionLayer, ...]:
        """The self-attention on the tokens of the last one, lowest first."""
        count = len(self.last.query[0])
        return tuple(one for one in self.layers if one.kind == "self" and len(one.query[0]) == count)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What the tokens are, one axis a sample."""
        own: tuple[Axis, ...] = self.last.query if self.map is None else self.map.axes
        return own if len(own) > 1 else own * len(self.features)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens a block may be given: all, or those up to the last that is no padding."""
        used = (1 + int(np.flatnonzero([role != "pad" for role in axis.roles])[-1]) for axis in self.axes)
        return (len(self.axes[0]), max(used))

    def placed_on(self, found: FeatureMap) -> "Tower":
        """Return the tower with the places of its last feature map for tokens."""
        return replace(self, map=found)


def look(adapter: Adapter, model: nn.Module, prepared: Prepared, *, stream: Stream) -> Tower:
    """Run one tower and return it with its layers; one of convolutions alone with its last feature map.

    Raises
    ------
    NoAttentionError
        The tower has no attention, and no feature map whose places are known.
    ModelError
        Its tokens are no patches of the picture, or no pieces of the text.
    """
    assert isinstance(adapter, TwoTowers)
    towers: TwoTowers = adapter

    def run(brief: bool = True) -> Tensor:
        if stream == "vision":
            return towers.image_features(model, prepared)
        return towers.text_features(model, prepared, brief=brief)

    features: list[Tensor] = []
    try:
        with torch.no_grad(), capture(model, taps=(adapter.taps,)) as seen:
            features.append(run(brief=False).detach())
    except NoAttentionError as problem:
        found = map_of(adapter, model, prepared) if stream == "vision" else None
        if found is None:
            raise NoAttentionError(
                f"The {stream} tower of {type(model).__name__} made no attention that could be seen (a convolutional "
                "network has none), and its tokens are told by it. Both towers need tokens with a place. Use another "
                "model; the scores alone are the product of the two features."
            ) from problem
        return Tower(stream=stream, prepared=prepared, run=run, features=features[0], layers=(), map=found)
    layers = tuple(adapter.layers(seen.calls, prepared))
    own = tuple(layer for layer in layers if layer.stream == stream or layer.stream.startswith(f"{stream}."))
    wanted = PatchGrid if stream == "vision" else Tokens
    last = [layer for layer in own if layer.kind == "self"][-1:]
    if not last or not isinstance(last[0].key[0], wanted):
        named = f"{last[0].name} is over {last[0].key[0]!r}" if last else "no attention is among its tokens"
        raise ModelError(
            f"The {stream} tower of {type(model).__name__} has no {'patches' if stream == 'vision' else 'words'} to "
            f"link: {named}. Both sides need tokens with a place. See mmattn.attend(model, ...) for what there is."
        )
    return Tower(stream=stream, prepared=prepared, run=run, features=features[0], layers=own)


def map_of(adapter: Adapter, model: nn.Module, prepared: Prepared) -> FeatureMap | None:
    """Return the last feature map of the image tower, where the adapter knows of one."""
    return adapter.feature_map(model, prepared) if isinstance(adapter, MapsFeatures) else None

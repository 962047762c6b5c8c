"""One tower of a two-tower model on its input: the features that it gives, and where its tokens stand.

The layers of a recording say which of the tower's sequences are patches of the picture or pieces of the
text; nothing is known of any library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import ModelError, NoAttentionError, NotFoundError
from mmattn.interception import capture
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
    """

    stream: Stream
    prepared: Prepared
    run: Run
    features: Float[Tensor, "sample feature"]
    layers: tuple[AttentionLayer, ...]

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
        alike = [one for one in self.layers if one.kind == "self" and len(one.query[0]) == len(self.last.query[0])]
        if not -len(alike) <= block < len(alike):
            raise NotFoundError(
                f"The {self.stream} tower has {len(alike)} blocks on its last tokens, and {abs(block)} were asked for. "
                f"Pass blocks= from 1 to {len(alike)}."
            )
        return alike[block]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What the tokens of that attention are, one axis a sample."""
        return self.last.query if len(self.last.query) > 1 else self.last.query * len(self.features)


def look(adapter: Adapter, model: nn.Module, prepared: Prepared, *, stream: Stream) -> Tower:
    """Run one tower and return it with its layers.

    Raises
    ------
    NoAttentionError
        The tower has none (ConvNeXt).
    ModelError
        Its tokens are no patches of the picture, or no pieces of the text.
    """
    assert isinstance(adapter, TwoTowers)
    towers: TwoTowers = adapter

    def run() -> Tensor:
        if stream == "vision":
            return towers.image_features(model, prepared)
        return towers.text_features(model, prepared)

    try:
        with torch.no_grad(), capture(model, taps=(adapter.taps,)) as seen:
            features = run()
    except NoAttentionError as problem:
        raise NoAttentionError(
            f"The {stream} tower of {type(model).__name__} made no attention that could be seen (a convolutional "
            "network has none), and its tokens are told by it. Both towers need attention over tokens. Use another "
            "model; the scores alone are the product of the two features."
        ) from problem
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
    return Tower(stream=stream, prepared=prepared, run=run, features=features.detach(), layers=own)

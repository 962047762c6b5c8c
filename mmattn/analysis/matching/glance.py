"""One look at a picture for all prompts: its tower runs once, with the weights of its last attention in reach.

For each prompt the gradient of its score with respect to those weights is one short backward pass: from the
feature to the last attention, and no further.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.matching.towers import Tower
from mmattn.errors import ModelError
from mmattn.interception import Call, intervene
from mmattn.interception.gradients import refuse_without_gradients
from mmattn.interception.protocol import Adapter
from mmattn.schema.axes import Slots
from mmattn.schema.layers import AttentionLayer


@dataclass(frozen=True, kw_only=True, eq=False)
class Glance:
    """A run of the image tower that gradients can be taken of, one prompt after another.

    Parameters
    ----------
    features
        `[1, feature]`, with a graph.
    layers
        The last attention among the patches, and the pool behind it where there is one.
    calls, weights
        Of each of these layers, what it was called with and its weights in the graph.
    """

    features: Float[Tensor, "1 feature"]
    layers: tuple[AttentionLayer, ...]
    calls: tuple[Call, ...]
    weights: tuple[Tensor, ...]

    def gradients(self, score: Float[Tensor, ""]) -> tuple[Tensor, ...]:
        """Return the gradient of a score with respect to the weights of each layer."""
        return torch.autograd.grad(score, self.weights, retain_graph=True)


def glance(adapter: Adapter, model: nn.Module, image: Tower) -> Glance:
    """Run the image tower once more, with the weights of its last attention in the graph.

    Raises
    ------
    ModelError
        The model has no gradients, or its last attention runs several times or in parts.
    """
    refuse_without_gradients(model)
    layers = (image.last, *_pool(image))
    calls: dict[str, Call] = {}
    weights: dict[str, Tensor] = {}

    def reach(given: Tensor, call: Call) -> Tensor:
        if call.module in calls:
            raise ModelError(
                f"{call.module} attends several times in one pass. The last attention of a tower is one. "
                "Use another model, or mmattn.relevance(maps, ...), which reads all layers."
            )
        used = given if given.requires_grad else given.detach().requires_grad_()
        calls[call.module], weights[call.module] = call, used
        return used

    names = [layer.name for layer in layers]
    with torch.enable_grad(), intervene(model, reach, layers=lambda path: path in names, taps=(adapter.taps,)):
        features = image.run()
    return Glance(
        features=features,
        layers=layers,
        calls=tuple(calls[name] for name in names),
        weights=tuple(weights[name] for name in names),
    )


def _pool(image: Tower) -> tuple[AttentionLayer, ...]:
    """Return the attention pool that the features are read from, where there is one."""
    pools = [layer for layer in image.layers if layer.kind == "cross" and isinstance(layer.query_axis, Slots)]
    return tuple(pools[-1:]) if image.prepared.readout == "pool" else ()

"""One look at a picture for all prompts: its tower runs once, with the weights of its last attention in reach.

For each prompt the gradient of its score with respect to those weights is one short backward pass: from the
feature to the last attention, and no further.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

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

# Which argument of nn.MultiheadAttention asks for weights.
_ASKED = 4


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


@dataclass(kw_only=True, eq=False)
class Watched:
    """What an attention was called with, and its weights in the graph, run by run."""

    calls: list[Call] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    @property
    def call(self) -> Call:
        """The call of the first run."""
        return self.calls[0]


def glance(adapter: Adapter, model: nn.Module, image: Tower) -> Glance:
    """Run the image tower once more, with the weights of its last attention in the graph.

    Raises
    ------
    ModelError
        The model has no gradients, or its last attention runs several times or in parts.
    """
    refuse_without_gradients(model)
    layers = (image.last, *pool_of(image))
    names = [layer.name for layer in layers]
    with _unasked_for_weights(model, names), reached(adapter, model, names) as seen:
        features = image.run()
    for name in names:
        if len(seen[name].calls) > 1:
            raise ModelError(
                f"{name} attends several times in one pass. The last attention of a tower is one. "
                "Use another model, or mmattn.relevance(maps, ...), which reads all layers."
            )
    return Glance(
        features=features,
        layers=layers,
        calls=tuple(seen[name].call for name in names),
        weights=tuple(seen[name].weights[0] for name in names),
    )


@contextmanager
def reached(adapter: Adapter, model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Watched]]:
    """Run what is inside with a graph, in which the weights of these layers are; they are noted."""
    seen: dict[str, Watched] = {name: Watched() for name in names}

    def reach(given: Tensor, call: Call) -> Tensor:
        used = given if given.requires_grad else given.detach().requires_grad_()
        seen[call.module].calls.append(call)
        seen[call.module].weights.append(used)
        return used

    with torch.enable_grad(), intervene(model, reach, layers=lambda path: path in seen, taps=(adapter.taps,)):
        yield seen


def placed(
    adapter: Adapter, image: Tower, calls: Sequence[Call], values: Sequence[Tensor]
) -> tuple[AttentionLayer, ...]:
    """Return the layers of calls with these numbers for weights, placed as the adapter places weights."""
    made = [
        call.but(q=None, k=None, weights=value.detach(), mask=None, causal=False, softcap=None)
        for call, value in zip(calls, values, strict=True)
    ]
    return tuple(adapter.layers(made, image.prepared))


def pool_of(image: Tower) -> tuple[AttentionLayer, ...]:
    """Return the attention pool that the features are read from, where there is one."""
    pools = [layer for layer in image.layers if layer.kind == "cross" and isinstance(layer.query_axis, Slots)]
    return tuple(pools[-1:]) if image.prepared.readout == "pool" else ()


def refuse_pool_of_slots(image: Tower, pool: AttentionLayer, *, method: str) -> None:
    """Raise where a pool asks what another pool gave (a CoCa with two): its weights lie on no patches.

    Raises
    ------
    ModelError
        The pool's keys are not the tower's tokens.
    """
    if len(pool.key_axis) != len(image.axes[0]):
        raise ModelError(
            f"The feature is read from {pool.name}, which asks {pool.key_axis!r} and no patches: another pool gave "
            f'those. "{method}" reads a pool over patches. Use method="interaction" or "naclip".'
        )


@contextmanager
def _unasked_for_weights(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Keep torch's own attention from writing its softmax out, where its caller takes the output alone.

    `nn.MultiheadAttention` does so when it is asked for weights, as by default (SigLIP's pool in transformers); then
    neither queries nor keys are seen. Its output is the same.
    """

    def unasked(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > _ASKED:
            return (*args[:_ASKED], False, *args[_ASKED + 1 :]), kwargs
        return args, {**kwargs, "need_weights": False}

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            if isinstance(module, nn.MultiheadAttention):
                stack.callback(module.register_forward_pre_hook(unasked, with_kwargs=True).remove)
        yield

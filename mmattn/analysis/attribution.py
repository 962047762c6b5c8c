"""Maps whose weights are attention times its gradient: what every gradient reading starts from.

    A  ->  A * dS/dA,      S the score of a target

The input runs once more, forward and backward. Of a fused kernel A and its gradient are both kept as thin
factors (`mmattn.interception.gradients`), and their product is computed a few rows at a time, of one layer
at a time: memory is what torch keeps for the backward pass, linear in tokens, and never layers x tokens^2.
A layer that the model itself writes out densely (attention without a fused kernel) is dense in torch's own
graph, which no reading can avoid; of its gradient again only factors are kept.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mmattn.analysis.targets import Target, goal
from mmattn.errors import GoneError, ModelError
from mmattn.interception.calls import Call
from mmattn.interception.gradients import differentiate
from mmattn.interception.protocol import Adapter, Classifies, TwoTowers
from mmattn.schema.axes import Tokens
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Attributed, Blocks, Normalized


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Maps of one sample whose weights are A * dS/dA, signed, and the target that S is the score of."""

    maps: AttentionMaps
    target: str


def attribute(
    maps: AttentionMaps, *, target: Target = None, model: nn.Module | None = None, stream: str | None = None
) -> tuple[Attribution, ...]:
    """Run the input of some maps again and return them with weights times gradients, sample by sample.

    Parameters
    ----------
    maps
        As `mmattn.attend` gave them: all samples of a batch together.
    target
        A class by index or name; a list has one for each sample; None: each sample's top class.
    model
        The module that ran inside of any wrapper; by default `maps.model`.
    stream
        The layers that are to be read; of others the gradient is zero where the score does not depend on them.

    Raises
    ------
    GoneError
        The maps cannot run again: they come from a file, are one sample of a batch, or their model was deleted.
    ModelError
        No logits, no gradients, or attention that is put together of several softmaxes.
    NotFoundError
        The model has no such class.
    """
    model = _runnable(maps, model)
    adapter: Adapter = maps.adapter
    assert maps.rerun is not None
    with differentiate(model, taps=(adapter.taps,)) as run:
        output = maps.rerun()
    with torch.inference_mode(False), torch.enable_grad():
        aim = goal(adapter, output, target, labels=maps.labels, samples=maps.sample_count)
        named = target is not None or isinstance(adapter, Classifies)
        names = aim.names if named else _own_scores(maps, adapter, model)
        read = {layer.name for layer in maps.select(stream=stream)}
        calls = run.gradients(aim.score, needed=read.__contains__)
    refuse_composed(maps, [call for call in calls if call.module in read])
    placed = adapter.layers(calls, maps.prepared)
    return tuple(
        Attribution(maps=with_gradients(sample, placed, index), target=name)
        for index, (sample, name) in enumerate(zip(maps.samples, names, strict=True))
    )


def positive(maps: AttentionMaps) -> AttentionMaps:
    """Return maps with what raised the score alone: the positive part of each head's product."""
    return replace(maps, layers=tuple(_positive(layer) for layer in maps.layers))


def _own_scores(maps: AttentionMaps, adapter: Adapter, model: nn.Module) -> tuple[str, ...]:
    """Return what the score is called where no target was named: of two towers, the text that the picture met."""
    if not isinstance(adapter, TwoTowers) or not adapter.has_two_towers(model):
        return ("its own score",) * maps.sample_count
    axes = [[axis for layer in sample.layers for axis in layer.query] for sample in maps.samples]
    texts = [next((axis.text for axis in each if isinstance(axis, Tokens)), "") for each in axes]
    return tuple(f"‘{text if len(text) <= 40 else text[:37] + '...'}’" if text else "its own text" for text in texts)


def _runnable(maps: AttentionMaps, model: nn.Module | None) -> nn.Module:
    """Return the model, if it can run again."""
    if maps.rerun is None or maps.adapter is None or maps.prepared is None:
        if maps.model_ref is not None and maps.adapter is not None:
            raise GoneError(
                "These maps are one sample of a batch, which cannot run again alone. The whole batch can. "
                "Pass the maps of the batch: the result is a list, one for each sample."
            )
        raise GoneError(
            "These maps cannot run again: a loaded file, or a bare recording, holds no input. Gradients need the model "
            "and its input once more. Pass the maps that mmattn.attend(model, ...) gave in this process."
        )
    return maps.model if model is None else model


def refuse_composed(maps: AttentionMaps, calls: Sequence[Call]) -> None:
    """Raise for a layer that an adapter put together of several calls (differential attention)."""
    made, kept = Counter(call.module for call in calls), Counter(layer.name for layer in maps.layers)
    for name, count in kept.items():
        if made[name] > count:
            raise ModelError(
                f"Layer {name} is put together of {made[name]} softmaxes, each of which has a gradient of its own. "
                "Attention times gradient is of one. Use look or rollout for this model."
            )


def with_gradients(maps: AttentionMaps, placed: Sequence[AttentionLayer], sample: int) -> AttentionMaps:
    """Return the maps of one sample, weights times gradients: those of the same layers, placed for all samples."""
    if [layer.name for layer in placed] != [layer.name for layer in maps.layers]:
        raise ModelError(
            f"The model made {len(placed)} attention layers when it ran again and {len(maps.layers)} before. "
            "Both runs must be the same. Attend again, with the model in eval mode."
        )
    pairs = zip(maps.layers, placed, strict=True)
    return replace(maps, layers=tuple(_attributed(layer, slopes.sample(sample)) for layer, slopes in pairs))


def _attributed(layer: AttentionLayer, slopes: AttentionLayer) -> AttentionLayer:
    storages = []
    for own, other in zip(layer.storages, slopes.storages, strict=True):
        if isinstance(own, Blocks) and isinstance(other, Blocks):
            weights, gradient = own.source, other.source
            if not isinstance(weights, Attributed) and not isinstance(gradient, Attributed):
                storages.append(replace(own, source=Attributed(weights=weights, gradient=gradient)))
                continue
        raise ModelError(
            f"Layer {layer.name} is no attention of a running model ({type(own).__name__}). Gradients are of a model's "
            "own weights. Pass the maps that mmattn.attend(model, ...) gave."
        )
    return replace(layer, storage=tuple(storages), normalized="signed")


def _positive(layer: AttentionLayer) -> AttentionLayer:
    normalized: Normalized = "none"
    storages = tuple(
        replace(blocks, source=replace(blocks.source, positive=True))
        for blocks in layer.storages
        if isinstance(blocks, Blocks) and isinstance(blocks.source, Attributed)
    )
    return replace(layer, storage=storages, normalized=normalized)

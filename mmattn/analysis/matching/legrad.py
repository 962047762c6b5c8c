"""LeGrad: how the feature that each layer forms would grow with its attention, summed over layers.

    map[j] = sum over layers of  mean over heads and rows i of  ReLU( d s_l / d A_l[i, j] )

s_l is the logit of the prompt with the picture as the tower's last norm and projection would make it of the mean of the
tokens that leave layer l; A_l is that layer's attention alone, what lies below it counts as given. A tower with an
attention pool (SigLIP, CoCa) makes s_l by pooling the tokens that leave layer l, and A_l is the pool's map, in the row
that the feature is read from. Bousselham, Boggust, Chaybouti, Strobelt & Kuehne (2025), "LeGrad: An Explainability
Method for Vision Transformers via Feature Formation Sensitivity", ICCV. It gives one map for each prompt.

Where we depart: maps are not stretched to 0 to 1 each by itself, which makes a flat map look sharp, and where "a photo
of a" is strong nothing is blanked (their code does, for SigLIP). All layers on the last tokens are summed, as in the
paper; the released code takes the last two, which is `blocks=2` here.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.matching.cut import Cut, blocks_of, find_cut
from mmattn.analysis.matching.glance import placed, pool_of, reached, refuse_pool_of_slots
from mmattn.analysis.matching.spots import Spot, changed_at
from mmattn.analysis.matching.tail import everywhere, features_behind
from mmattn.analysis.matching.towers import Tower
from mmattn.analysis.queries import ask
from mmattn.interception.gradients import refuse_without_gradients
from mmattn.interception.protocol import Adapter, TwoTowers
from mmattn.schema import stream as rows
from mmattn.schema.layers import AttentionLayer


def legrad(
    adapter: Adapter,
    model: nn.Module,
    *,
    image: Tower,
    prompts: Float[Tensor, "prompt feature"],
    blocks: int | None = None,
) -> Float[Tensor, "prompt patch"]:
    """Return for each prompt how much each token of the picture would raise what the layers form.

    Parameters
    ----------
    blocks
        Layers, from the tower's end; all by default.

    Raises
    ------
    ModelError
        No gradients, blocks that cannot be told, or a pool over what another pool gave.
    NotFoundError
        The tower has not so many blocks.
    """
    refuse_without_gradients(model)
    spots = blocks_of(model, image, most=blocks)
    cut = find_cut(model, image)
    for pool in pool_of(image):
        refuse_pool_of_slots(image, pool, method="legrad")
    found = _through_pool if pool_of(image) else _through_blocks
    values = found(adapter, model, image, prompts, spots=spots, cut=cut)
    content = torch.zeros(values.shape[1], device=values.device)
    content[torch.as_tensor(image.axes[0].content, device=values.device)] = 1.0
    return values * content


def _through_blocks(
    adapter: Adapter,
    model: nn.Module,
    image: Tower,
    prompts: Float[Tensor, "prompt feature"],
    *,
    spots: dict[AttentionLayer, Spot],
    cut: Cut,
) -> Float[Tensor, "prompt patch"]:
    names = [layer.name for layer in spots]
    with reached(adapter, model, names) as seen:
        tokens = _left(image, list(spots.values()), apart=True)
    with torch.enable_grad():
        means = torch.stack([one.flatten(0, -2).mean(dim=0) for one in tokens])
        features = features_behind(cut, image.run, everywhere(means, like=cut.tokens))
        logits = _logits(adapter, model, features, prompts)
    calls = [seen[name].call for name in names]
    weights = [seen[name].weights[0] for name in names]
    found = []
    for score in logits.sum(dim=0):
        slopes = torch.autograd.grad(score, weights, retain_graph=True)
        layers = placed(adapter, image, calls, [one.clamp(min=0) for one in slopes])
        found.append(torch.stack([_mean_row(layer) for layer in layers]).sum(dim=0))
    return torch.stack(found)


def _mean_row(layer: AttentionLayer) -> Float[Tensor, " key"]:
    """Return what each key has, as a mean over heads and rows."""
    count = len(layer.query_axis)
    asked = torch.full((count, 1), 1.0 / count, device=layer.device)
    return rows.apply_transposed(replace(layer, normalized="none"), asked)[:, 0]


def _through_pool(
    adapter: Adapter,
    model: nn.Module,
    image: Tower,
    prompts: Float[Tensor, "prompt feature"],
    *,
    spots: dict[AttentionLayer, Spot],
    cut: Cut,
) -> Float[Tensor, "prompt patch"]:
    (pool,) = pool_of(image)
    with torch.no_grad():
        tokens = torch.cat(_left(image, list(spots.values()), apart=False))
    with reached(adapter, model, [pool.name]) as seen:
        features = features_behind(cut, image.run, tokens)
        logits = _logits(adapter, model, features, prompts)
    weights = seen[pool.name].weights[-1]
    asked = ask(pool.query_axis, None, readout=image.prepared.readout)
    found = []
    for score in logits.sum(dim=0):
        (slope,) = torch.autograd.grad(score, [weights], retain_graph=True)
        by_layer = slope.reshape(len(tokens), -1, *slope.shape[-2:])[:, :, list(asked.tokens)]
        found.append(by_layer.clamp(min=0).mean(dim=(1, 2)).sum(dim=0))
    return torch.stack(found).float()


def _left(image: Tower, spots: Sequence[Spot], *, apart: bool) -> list[Float[Tensor, "sample *token width"]]:
    """Return the tokens that leave each block, in one run; apart: with a graph that begins where each block does."""
    left: list[Tensor] = []
    with ExitStack() as stack:
        for spot in spots:
            if apart:
                stack.enter_context(changed_at(spot, Tensor.detach))
            stack.enter_context(changed_at(replace(spot, behind=True), left.append))
        image.run()
    return left


def _logits(
    adapter: Adapter, model: nn.Module, features: Float[Tensor, "layer feature"], prompts: Tensor
) -> Float[Tensor, "layer prompt"]:
    assert isinstance(adapter, TwoTowers)
    return adapter.compare(model, image=features, text=prompts.to(features))

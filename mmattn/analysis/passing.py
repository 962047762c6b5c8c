"""One row passed down a chain of layers: attention and the residual stream beside it, layer by layer.

The same steps are taken twice: with the model's weights, and with weights that look at everything
allowed alike, which is the baseline of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.analysis.chain import Chain, Step
from mmattn.analysis.discard import discard_threshold
from mmattn.analysis.look import check_finite
from mmattn.errors import ModelError
from mmattn.schema import stream as rows
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.transfer import Transfer

# A row for each branch, over the branch's carrier.
Standing: TypeAlias = dict[str, Float[Tensor, "_ 1"]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of rollout; see there."""

    head_fusion: str
    discard_ratio: float
    residual_weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """What arrives at the bottom of each branch, what would with uniform attention, and the mass lost on the way."""

    rows: Standing
    uniform: Standing | None
    lost: dict[str, float] = field(default_factory=dict)


# From a layer, a row over its queries, the recipe and what the residual counts: what the keys are given,
# and the row that the residual stream keeps.
Attention: TypeAlias = Callable[[AttentionLayer, Tensor, Recipe, float], tuple[Tensor, Tensor]]


def from_the_top(chain: Chain, asked: Standing, recipe: Recipe, *, attention: Attention | None = None) -> Passed:
    """Pass the asking rows of all branches down the chain.

    Parameters
    ----------
    attention
        How a row passes a layer; by default as shares of attention, and then uniform attention beside it.

    Raises
    ------
    InputError
        When a layer gives NaN or infinite values.
    """
    standing, plain = asked, asked
    lost: dict[str, float] = {}
    known, attention = attention is None, attention or _as_the_model
    for step in chain.steps:
        standing = _through(step, standing, recipe, attention, lost)
        check_finite(step.layer, standing[step.layer.stream])
        try:
            plain = _through(step, plain, recipe, _uniform, {}) if known else plain
        except ModelError:  # nobody said which keys were allowed
            known = False
    return Passed(rows=standing, uniform=plain if known else None, lost=lost)


def _through(
    step: Step,
    standing: Standing,
    recipe: Recipe,
    attention: Attention,
    lost: dict[str, float],
) -> Standing:
    """Return the rows of all branches under one layer; what is lost on the way is added to `lost`."""
    layer = step.layer
    over = standing[layer.stream]
    beside = 0.0 if layer.residual == "none" else recipe.residual_weight
    passed, kept = attention(layer, step.enter.move(over.T).T, recipe, beside)
    found = dict(standing)
    if step.from_other_keys is not None:
        theirs = torch.zeros_like(passed)
        theirs[layer.key_axis.content] = passed[layer.key_axis.content]
        passed = passed - theirs
        found[step.other] = found[step.other] + _moved(step.from_other_keys, theirs, layer, lost)
    below = _moved(step.from_keys, passed, layer, lost)
    if step.from_over is not None:
        own = beside * kept
        if step.passes_by:
            own = _back(step, own, len(over)) + over * step.enter.lost.to(over.device, over.dtype)[:, None]
        below = below + _moved(step.from_over, own, layer, lost)
    found[layer.stream] = below
    return found


def _back(step: Step, row: Float[Tensor, "query one"], length: int) -> Float[Tensor, "over one"]:
    """Return the special tokens that a class-attention layer writes, at their places among the patches."""
    device = row.device
    return row.new_zeros(length, 1).index_add(
        0, step.enter.from_tokens.to(device), row[step.enter.to_tokens.to(device)]
    )


def _moved(
    way: Transfer, row: Float[Tensor, "above 1"], layer: AttentionLayer, lost: dict[str, float]
) -> Float[Tensor, "below 1"]:
    if not way.is_identity:
        for role, mass in way.lost_by_role(row[:, 0]).items():
            name = f"{role} under {layer.name}"
            lost[name] = lost.get(name, 0.0) + mass
    return way.move(row.T).T


def _as_the_model(
    layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: Recipe, beside: float
) -> tuple[Float[Tensor, "key one"], Float[Tensor, "query one"]]:
    floor = discard_threshold(layer, heads=recipe.head_fusion, ratio=recipe.discard_ratio)
    if not layer.has_shares:
        sums = rows.absolute_sums(layer, heads=recipe.head_fusion, floor=floor)[:, None]
        asked = torch.where(sums > 0, row / sums.clamp(min=torch.finfo(sums.dtype).tiny), 0.0)
        passed = rows.apply_transposed(layer, asked, heads=recipe.head_fusion, floor=floor, absolute=True)
        return (1 - beside) * passed, row
    if recipe.head_fusion == "mean" and floor is None:
        return (1 - beside) * rows.apply_transposed(layer, row), row
    # Rows were changed: divide what comes down by their new sums first.
    kept = rows.apply(layer, torch.ones(len(layer.key_axis), 1), heads=recipe.head_fusion, floor=floor)
    sums = beside + (1 - beside) * kept
    row = torch.where(sums > 0, row / sums.clamp(min=torch.finfo(sums.dtype).tiny), 0.0)
    return (1 - beside) * rows.apply_transposed(layer, row, heads=recipe.head_fusion, floor=floor), row


def _uniform(
    layer: AttentionLayer, row: Float[Tensor, "query one"], recipe: Recipe, beside: float
) -> tuple[Float[Tensor, "key one"], Float[Tensor, "query one"]]:
    return (1 - beside) * rows.uniform_transposed(layer, row), row

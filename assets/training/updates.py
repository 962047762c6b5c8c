"""The weights that training moves, in float32, their running average, and what the optimizers keep of them.

By **Muon** (Jordan et al. 2024) the matrices of the blocks, by AdamW the rest. Matrices decay; biases, norms,
positions, the class token and single numbers do not.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from assets.training.model import Recipe

Model = TypeVar("Model", bound=nn.Module)

_STILL = ("pos_embed", "cls_token", "positional_embedding")


class Updates(Generic[Model]):
    """A model, its average, and `apply` for each step's gradients."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.average = deepcopy(model).eval().requires_grad_(False)
        self._optimizers = _optimizers(model, recipe)

    def weights(self) -> list[nn.Parameter]:
        """Return the weights, in the order of the model."""
        return list(self.model.parameters())

    def apply(self, number: int, grads: Sequence[Sequence[Tensor]], *, pool: Executor) -> None:
        """Move the weights by the mean of the shards' gradients, and the average after them."""
        masters = self.weights()
        for master, *parts in zip(masters, *grads, strict=True):
            master.grad = torch.stack(parts).mean(dim=0)
        nn.utils.clip_grad_norm_(masters, 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * self.recipe.rate(number)
        list(pool.map(lambda optimizer: optimizer.step(), self._optimizers))
        self._follow(number)

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds: weights, average, and the optimizers' moments."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, value in self.model.named_parameters():
            found |= {f"moments.{name}.{key}": kept for key, kept in self._moments(value).items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for prefix, model in (("model.", self.model), ("average.", self.average)):
            model.load_state_dict({name: state[prefix + name] for name in model.state_dict()})
        for name, value in self.model.named_parameters():
            prefix = f"moments.{name}."
            kept = {key.removeprefix(prefix): each.clone() for key, each in state.items() if key.startswith(prefix)}
            self._moments(value).update(kept)

    def _moments(self, value: nn.Parameter) -> dict[str, Tensor]:
        """Return what the optimizer of a weight keeps of it."""
        for optimizer in self._optimizers:
            if any(value is each for group in optimizer.param_groups for each in group["params"]):
                kept: dict[str, Tensor] = optimizer.state[value]
                return kept
        raise AssertionError("a weight that nothing updates")

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Move the average toward the weights; fast at first, when there is little to average."""
        stays = min(self.recipe.ema, (number + 1) / (number + 10))
        for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(weight, 1 - stays)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return one Muon a shard, so that they run at the same time, and AdamW for what is not a matrix of a block."""
    named = dict(model.named_parameters())
    blocks = [name for name, value in named.items() if value.ndim == 2 and "blocks." in name]
    rest = [name for name in named if name not in blocks]
    still = [name for name in rest if named[name].ndim < 2 or name.endswith(_STILL)]
    moved = [name for name in rest if name not in still]
    muon = recipe.muon_rate / recipe.learning_rate
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [
                {"params": [named[name] for name in names], "times": muon * times}
                for times, names in _by_times(blocks[first :: recipe.shards], recipe)
            ],
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        for first in range(recipe.shards)
    ]
    groups = [
        {"params": [named[name] for name in same], "weight_decay": decay, "times": times}
        for names, decay in ((moved, recipe.weight_decay), (still, 0.0))
        for times, same in _by_times(names, recipe)
    ]
    return [*found, torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)]


def _by_times(names: Sequence[str], recipe: Recipe) -> list[tuple[float, list[str]]]:
    """Return the names by how many times the learning rate each moves with."""
    found: dict[float, list[str]] = {}
    for name in names:
        found.setdefault(recipe.times(name), []).append(name)
    return list(found.items())

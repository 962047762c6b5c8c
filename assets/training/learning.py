"""One step of training, and what is kept between steps.

Weights are held in float32 and worked with in bfloat16, forward and backward: recent processors multiply bfloat16
several times as fast (AMX), and a layer norm or a softmax reads half as many bytes. AdamW updates the float32 ones.

**Patch dropout** (Liu et al. 2023, "PatchDropout"): in training a picture loses half of its patches, other ones each
time. **Token labels** (Jiang et al. 2021, "All Tokens Matter"): what is left is also asked which thing it shows, by
the same head as the class token; here a patch shows the thing in whose box's ellipse its middle lies, or nothing.

All that is random in a step follows from the seed and the step's number, so a run that was interrupted and resumed
ends with the same weights as one that was not (with as many threads, on the same kind of machine).
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.compose import Composer, Scene
from assets.training.evaluate import shown
from assets.training.model import Recipe, build, normalized
from assets.training.things import things


class KeptPatches(nn.Module):
    """Takes the place of timm's `patch_drop`: keeps the class token and the patches in `kept`, [sample, patch]."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens [sample, token, channel] that are kept."""
        if self.kept is None:
            return tokens
        chosen = self.kept[..., None].expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, chosen)], dim=1)


class Learner:
    """A model that is being trained by a recipe; `step(n)` for n = 0, 1, 2, ... in order."""

    def __init__(self, recipe: Recipe, composer: Composer) -> None:
        _keep_memory()
        self.recipe, self.composer = recipe, composer
        self.model = build(recipe)
        self.average = deepcopy(self.model).eval().requires_grad_(False)
        self._working = deepcopy(self.model).to(torch.bfloat16).train()
        self._kept = KeptPatches()
        self._working.add_module("patch_drop", self._kept)
        for module in self._working.modules():
            if hasattr(module, "fused_attn"):
                # on CPU the written-out backward is faster: 148 against 108 pictures/s
                setattr(module, "fused_attn", False)  # noqa: B010 (timm declares it final)
        self._optimizer = torch.optim.AdamW(_groups(self.model, recipe), betas=(0.9, 0.98), foreach=True)

    def batch(self, step: int) -> list[Scene]:
        """Return the scenes of a step."""
        first, recipe = step * self.recipe.batch, self.recipe
        most = 1 if step < recipe.steps * recipe.singles else 3
        return [self.composer.scene(first + i, seed=recipe.seed, most=most) for i in range(recipe.batch)]

    def step(self, number: int, scenes: Sequence[Scene]) -> float:
        """Learn from the scenes of a step; return the loss of its pictures."""
        masters, workers = list(self.model.parameters()), list(self._working.parameters())
        with torch.no_grad():
            for master, worker in zip(masters, workers, strict=True):
                worker.copy_(master)
        picture_loss, token_loss = self._losses(number, scenes)
        (picture_loss + self.recipe.token_labels * token_loss).backward()  # type: ignore[no-untyped-call]
        for master, worker in zip(masters, workers, strict=True):
            master.grad = None if worker.grad is None else worker.grad.float()
            worker.grad = None
        nn.utils.clip_grad_norm_(masters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate(number)
        self._optimizer.step()
        self._follow(number)
        return float(picture_loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds: weights, average, and AdamW's moments."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, value in self.model.named_parameters():
            found |= {f"adam.{name}.{key}": kept for key, kept in self._optimizer.state[value].items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for prefix, model in (("model.", self.model), ("average.", self.average)):
            model.load_state_dict({name: state[prefix + name] for name in model.state_dict()})
        for name, value in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self._optimizer.state[value] = {key: state[f"adam.{name}.{key}"].clone() for key in keys}

    def _losses(self, number: int, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        self._kept.kept = kept = self._choose(number) if number < recipe.steps * (1 - recipe.whole) else None
        pixels = normalized(np.stack([scene.pixels for scene in scenes])).to(torch.bfloat16)
        features = self._working.forward_features(pixels)
        if recipe.token_labels == 0:
            logits = self._working.get_classifier()(features[:, :1]).float()
            return _loss(logits[:, 0], torch.from_numpy(shown(scenes)).float()), logits.new_zeros(())
        logits = self._working.get_classifier()(features).float()
        labels = torch.from_numpy(patch_labels(scenes, rows=recipe.size_px // recipe.patch_px))
        labels = labels if kept is None else labels.gather(1, kept)
        truth = F.one_hot(labels + 1, len(things()) + 1)[..., 1:].float()
        return _loss(logits[:, 0], torch.from_numpy(shown(scenes)).float()), _loss(logits[:, 1:], truth)

    def _choose(self, number: int) -> Tensor | None:
        """Return the patches that each picture of a step keeps, in reading order."""
        patches = (self.recipe.size_px // self.recipe.patch_px) ** 2
        kept = max(1, round(patches * (1 - self.recipe.patch_dropout)))
        if kept == patches:
            return None
        generator = torch.Generator().manual_seed(1_000_003 * self.recipe.seed + number)
        order = torch.rand(self.recipe.batch, patches, generator=generator).argsort(dim=1)
        return order[:, :kept].sort(dim=1).values

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Move the average toward the weights; fast at first, when there is little to average."""
        stays = min(self.recipe.ema, (number + 1) / (number + 10))
        for average, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(weight, 1 - stays)


def patch_labels(scenes: Sequence[Scene], *, rows: int) -> NDArray[np.int64]:
    """Return the class of each patch, [scene, patch] in reading order; -1 where it shows no thing.

    Examples
    --------
    >>> from assets.training.compose import Placed
    >>> dog = Placed(thing=things()[0], box_px=(0, 0, 16, 8))
    >>> scene = Scene(pixels=np.zeros((16, 16, 3), np.uint8), objects=(dog,))
    >>> patch_labels([scene], rows=2).tolist()
    [[0, 0, -1, -1]]

    """
    number = {each: at for at, each in enumerate(things())}
    labels = np.full((len(scenes), rows, rows), -1, np.int64)
    for row, scene in zip(labels, scenes, strict=True):
        middles = (np.arange(rows) + 0.5) * len(scene.pixels) / rows
        for each in scene.objects:
            x0, y0, x1, y1 = each.box_px
            across = (middles - (x0 + x1) / 2) / ((x1 - x0) / 2)
            down = (middles - (y0 + y1) / 2) / ((y1 - y0) / 2)
            row[across[None, :] ** 2 + down[:, None] ** 2 <= 1] = number[each.thing]
    return labels.reshape(len(scenes), -1)


def _loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return binary cross-entropy, summed over classes and averaged over the rest."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / math.prod(logits.shape[:-1])


def _groups(model: VisionTransformer, recipe: Recipe) -> list[dict[str, object]]:
    """Return AdamW's groups: matrices decay; biases, norms, positions and the class token do not."""
    named = list(model.named_parameters())
    decays = [value for name, value in named if value.ndim > 1 and name not in ("pos_embed", "cls_token")]
    chosen = {id(value) for value in decays}
    rest = [value for _, value in named if id(value) not in chosen]
    return [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _keep_memory() -> None:
    """Tell glibc to keep large blocks: else each step's are given back and cleared again (a third of the time)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    for option, value in ((-1, 2**31 - 1), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, value)

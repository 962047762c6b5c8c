"""One step of training, and what is kept between steps.

Weights are held in float32 and worked with in bfloat16, forward and backward: recent processors multiply bfloat16
several times as fast (AMX), and a layer norm or a softmax reads half as many bytes. AdamW updates the float32 ones.

**Patch dropout** (Liu et al. 2023, "PatchDropout"): in training a picture loses half of its patches, other ones each
time. **Token labels** (Jiang et al. 2021, "All Tokens Matter"): what is left is also asked which thing it shows, by
the same head as the class token; here a patch shows the thing in whose box's ellipse its middle lies, or nothing.

Each **shard** of a step's scenes has a thread and a bfloat16 copy of its own, and every operation in it runs on that
one thread. Threads then wait for each other once a step and not once an operation: beside other jobs that is several
times as fast as two threads in each operation, and roundings do not depend on how many cores there are.

All that is random in a step follows from the seed and the step's number, so a run that was interrupted and resumed
ends with the same weights as one that was not (on the same kind of processor).
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        self._shards = [_Shard(self.model, recipe) for _ in range(recipe.shards)]
        self._pool = ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,))
        self._optimizer = torch.optim.AdamW(_groups(self.model, recipe), betas=(0.9, 0.98), foreach=True)

    def batch(self, step: int) -> list[Scene]:
        """Return the scenes of a step."""
        first, recipe = step * self.recipe.batch, self.recipe
        most = 1 if step < recipe.singles else 3
        return [self.composer.scene(first + i, seed=recipe.seed, most=most) for i in range(recipe.batch)]

    def step(self, number: int, scenes: Sequence[Scene]) -> float:
        """Learn from the scenes of a step; return the loss of its pictures."""
        masters = list(self.model.parameters())
        each = len(scenes) // len(self._shards)
        kept = self.kept(number)
        parts = [slice(first, first + each) for first in range(0, len(scenes), each)]
        losses = list(
            self._pool.map(
                lambda shard, part: shard.learn(masters, scenes[part], None if kept is None else kept[part]),
                self._shards,
                parts,
            )
        )
        for master, *grads in zip(masters, *(shard.gradients() for shard in self._shards), strict=True):
            master.grad = torch.stack(grads).mean(dim=0)
        nn.utils.clip_grad_norm_(masters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate(number)
        self._optimizer.step()
        self._follow(number)
        return float(np.mean(losses))

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

    def kept(self, number: int) -> Tensor | None:
        """Return the patches that each picture of a step keeps, in reading order; None for all of them."""
        patches = (self.recipe.size_px // self.recipe.patch_px) ** 2
        kept = max(1, round(patches * (1 - self.recipe.patch_dropout)))
        if kept == patches or number >= self.recipe.steps * (1 - self.recipe.whole):
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


class _Shard:
    """A thread's own copy of the model, in bfloat16."""

    def __init__(self, model: VisionTransformer, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = deepcopy(model).to(torch.bfloat16).train()
        self.patches = KeptPatches()
        self.model.add_module("patch_drop", self.patches)
        for module in self.model.modules():
            if hasattr(module, "fused_attn"):
                # on CPU the written-out backward is faster: 148 against 108 pictures/s
                setattr(module, "fused_attn", False)  # noqa: B010 (timm declares it final)

    def learn(self, masters: Sequence[Tensor], scenes: Sequence[Scene], kept: Tensor | None) -> float:
        """Leave the gradients at the masters' weights in this copy; return the loss of the pictures."""
        with torch.no_grad():
            for master, worker in zip(masters, self.model.parameters(), strict=True):
                worker.copy_(master)
                worker.grad = None
        picture_loss, token_loss = self.losses(scenes, kept)
        (picture_loss + self.recipe.token_labels * token_loss).backward()  # type: ignore[no-untyped-call]
        return float(picture_loss.detach())

    def gradients(self) -> list[Tensor]:
        """Return the gradients in float32, zero where there are none."""
        return [torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float() for p in self._weights()]

    def losses(self, scenes: Sequence[Scene], kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of the pictures, and that of their patches."""
        self.patches.kept = kept
        pixels = normalized(np.stack([scene.pixels for scene in scenes])).to(torch.bfloat16)
        features = self.model.forward_features(pixels)
        asked = features if self.recipe.token_labels else features[:, :1]
        logits = self.model.get_classifier()(asked).float()
        picture_loss = _loss(logits[:, 0], torch.from_numpy(shown(scenes)).float())
        if not self.recipe.token_labels:
            return picture_loss, logits.new_zeros(())
        labels = torch.from_numpy(patch_labels(scenes, rows=self.recipe.size_px // self.recipe.patch_px))
        labels = labels if kept is None else labels.gather(1, kept)
        truth = F.one_hot(labels + 1, len(things()) + 1)[..., 1:].float()
        return picture_loss, _loss(logits[:, 1:], truth)

    def _weights(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


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

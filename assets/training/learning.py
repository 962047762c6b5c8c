"""One step of training, and what is kept between steps.

Weights are held in float32 and worked with in bfloat16, forward and backward: recent processors multiply bfloat16
several times as fast (AMX), and a layer norm or a softmax reads half as many bytes. The float32 ones are updated
(`updates.py`): by Muon the matrices of the blocks, by AdamW the rest. After 18,000 scenes Muon had reached a mean
average precision of 0.32 and AdamW alone 0.16.

**Patch dropout** (Liu et al. 2023, "PatchDropout"): in training a picture loses half of its patches, other ones each
time. Refused, since it learned more slowly: asking each patch that is left which thing it shows (token labels; Jiang et
al. 2021).

Each **shard** of a step's scenes has a thread and a bfloat16 copy of its own, and every operation in it runs on that
one thread. Threads then wait for each other once a step and not once an operation: beside other jobs that is several
times as fast as two threads in each operation, and roundings do not depend on how many cores there are.

All that is random in a step follows from the seed and the step's number, so a run that was interrupted and resumed
ends with the same weights as one that was not (on the same kind of processor).
"""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.compose import Composer, Scene
from assets.training.evaluate import evaluate, shown
from assets.training.model import Recipe, build, normalized, save_weights
from assets.training.updates import Updates


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
        keep_memory()
        self.recipe, self.composer = recipe, composer
        self._updates = Updates(build(recipe), recipe)
        self.model, self.average = self._updates.model, self._updates.average
        self._shards = [_Shard(self.model, recipe) for _ in range(recipe.shards)]
        self._pool = ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,))

    def batch(self, step: int) -> list[Scene]:
        """Return the scenes of a step."""
        first, recipe = step * self.recipe.batch, self.recipe
        most = 1 if step < recipe.singles else 3
        return [self.composer.scene(first + i, seed=recipe.seed, most=most) for i in range(recipe.batch)]

    def step(self, number: int, scenes: Sequence[Scene]) -> float:
        """Learn from the scenes of a step; return its loss."""
        masters = self._updates.weights()
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
        self._updates.apply(number, [shard.gradients() for shard in self._shards], pool=self._pool)
        return float(np.mean(losses))

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds."""
        return self._updates.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._updates.load(state)

    def knows(self, *, seed: int, scenes: int) -> dict[str, object]:
        """Return what the averaged model knows of held-out scenes, in bfloat16."""
        composer = Composer("held-out", size_px=self.recipe.size_px)
        return asdict(evaluate(deepcopy(self.average).to(torch.bfloat16), composer, seed=seed, count=scenes))

    def save(self, folder: Path, *, step: int) -> Path:
        """Write the averaged model in half precision as `vit` into a run's folder."""
        save_weights(self.average.state_dict(), folder / "vit", recipe=self.recipe, step=step)
        return folder / "vit"

    def kept(self, number: int) -> Tensor | None:
        """Return the patches that each picture of a step keeps, in reading order; None for all of them."""
        return kept_patches(self.recipe, number)


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
        """Leave the gradients at the masters' weights in this copy; return the loss."""
        follow(self.model, masters)
        loss = self.loss(scenes, kept)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def gradients(self) -> list[Tensor]:
        """Return the gradients in float32, zero where there are none."""
        return gradients(self.model)

    def loss(self, scenes: Sequence[Scene], kept: Tensor | None) -> Tensor:
        """Return binary cross-entropy, summed over things and averaged over scenes."""
        self.patches.kept = kept
        pixels = normalized(np.stack([scene.pixels for scene in scenes])).to(torch.bfloat16)
        logits = self.model(pixels).float()
        truth = torch.from_numpy(shown(scenes)).float()
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(scenes)


@torch.no_grad()
def follow(worker: nn.Module, masters: Sequence[Tensor]) -> None:
    """Give a shard's copy the weights as they are now, and no gradients."""
    for master, mine in zip(masters, worker.parameters(), strict=True):
        mine.copy_(master)
        mine.grad = None


def gradients(worker: nn.Module) -> list[Tensor]:
    """Return the gradients of a shard's copy in float32, zero where there are none."""
    return [
        torch.zeros_like(each, dtype=torch.float32) if each.grad is None else each.grad.float()
        for each in worker.parameters()
    ]


def kept_patches(recipe: Recipe, number: int) -> Tensor | None:
    """Return the patches [sample, patch] that each picture of a step keeps, in reading order; None for all of them."""
    patches = (recipe.size_px // recipe.patch_px) ** 2
    kept = max(1, round(patches * (1 - recipe.patch_dropout)))
    if kept == patches or number >= recipe.steps * (1 - recipe.whole):
        return None
    generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + number)
    order = torch.rand(recipe.batch, patches, generator=generator).argsort(dim=1)
    return order[:, :kept].sort(dim=1).values


def keep_memory() -> None:
    """Tell glibc to keep large blocks: else each step's are given back and cleared again (a third of the time)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    for option, value in ((-1, 2**31 - 1), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, value)

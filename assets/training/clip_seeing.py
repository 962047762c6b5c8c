"""The first half of training our CLIP: its picture tower learns to say, in one vector, what is where.

No words yet, but a table in their place: four vectors a thing (is it there; are there several; its column; its row),
read by a dot product with the picture's feature, as a text's feature will be. Learning this from the scenes' truth
takes a fraction of what learning it through captions does, because each scene says all of it and no text has to be
understood first. Words are learned next, for a tower that stays as it is, and the table says what they mean
(`clip_learning.py`).

**Patch dropout** as for the ViT. In most steps the pooler is kept from the class token: patches must speak.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.captions import RELATIONS, holds
from assets.training.clip_model import ClipRecipe, build_clip
from assets.training.clip_places import with_places
from assets.training.compose import Composer, Scene
from assets.training.learning import KeptPatches, follow, gradients, keep_memory, kept_patches
from assets.training.model import load_weights, normalized
from assets.training.things import things
from assets.training.updates import Updates

WHATS = ("there", "several", "column", "row")

SCENES_SEED = 7
"""Added to a recipe's seed, so that no scene is one that the ViT has seen."""

_MEASURED = 16


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Pictures and what is where in them.

    Parameters
    ----------
    pixels
        [scene, row, col, rgb]
    counts
        [scene, thing]
    places
        [scene, axis, thing]: the mean middle of all of a thing, from -1 (left, top) to 1; 0 where there is none.

    """

    pixels: NDArray[np.uint8]
    counts: Tensor
    places: Tensor

    def part(self, of: slice) -> "Truth":
        """Return some of the scenes."""
        return Truth(pixels=self.pixels[of], counts=self.counts[of], places=self.places[of])


class Seeing(nn.Module):
    """A picture tower and the table that its feature is read by, [what, thing, feature]; what: `WHATS`."""

    def __init__(self, visual: VisionTransformer, width: int) -> None:
        super().__init__()
        self.visual = visual
        self.table = nn.Parameter(torch.randn(4, len(things()), width) * width**-0.5)
        self.scale = nn.Parameter(torch.tensor([20.0]))
        self.bias = nn.Parameter(torch.tensor([-4.0, -6.0, 0.0, 0.0]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [sample, what, thing]: logits of being there and of being several, column and row."""
        feature = F.normalize(self.visual(pixels).float(), dim=-1)
        read = torch.einsum("sd,wtd->swt", feature, self.table.float())
        return read * self.scale.float() + self.bias.float()[:, None]


class SeeingLearner:
    """A tower that is being trained by the recipe's first half; `step(n)` for n = 0, 1, 2, ... in order."""

    def __init__(self, recipe: ClipRecipe, composer: Composer, *, tower: Path | None) -> None:
        keep_memory()
        self.recipe, self.composer = recipe, composer
        self._updates = Updates(begun(recipe, tower=tower), recipe)
        self.model, self.average = self._updates.model, self._updates.average
        self._shards = [_Shard(self.model, recipe) for _ in range(recipe.shards)]
        self._pool = ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,))

    def batch(self, step: int) -> Truth:
        """Return the scenes of a step and their truth."""
        first, recipe = step * self.recipe.batch, self.recipe
        return truth(
            [
                self.composer.scene(index, seed=recipe.seed + SCENES_SEED, least=recipe.least(index))
                for index in range(first, first + recipe.batch)
            ]
        )

    def step(self, number: int, scenes: Truth) -> float:
        """Learn from the scenes of a step; return its loss."""
        masters, kept = self._updates.weights(), kept_patches(self.recipe, number)
        with_class = number % self.recipe.pooled_class == 0

        def learn(shard: _Shard, of: slice) -> float:
            follow(shard.model, masters)
            shard.see(None if kept is None else kept[of], with_class=with_class)
            return shard.learn(scenes.part(of))

        losses = list(self._pool.map(learn, self._shards, _parts(len(scenes.pixels), shards=len(self._shards))))
        self._updates.apply(number, [gradients(shard.model) for shard in self._shards], pool=self._pool)
        return float(np.mean(losses))

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds."""
        return self._updates.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._updates.load(state)

    def knows(self, *, seed: int, scenes: int) -> dict[str, object]:
        """Return what the averaged tower knows of held-out scenes."""
        composer = Composer("held-out", size_px=self.recipe.size_px)
        return dict(seen_by_table(self.average, composer, seed=seed, count=scenes))

    def save(self, folder: Path, *, step: int) -> Path:
        """Write nothing: the tower goes on in the second half, which reads the last checkpoint."""
        return folder


class _Shard:
    """A thread's own copy of the model, in bfloat16."""

    def __init__(self, model: Seeing, recipe: ClipRecipe) -> None:
        self.recipe, self.model = recipe, deepcopy(model).to(torch.bfloat16).train()
        self.patches, self.pooled = KeptPatches(), _WithoutClass()
        self.model.visual.patch_dropout = self.patches
        self.model.visual.attn_pool.ln_k.register_forward_pre_hook(self.pooled)
        write_out(self.model.visual)

    def see(self, kept: Tensor | None, *, with_class: bool) -> None:
        """Say which patches are kept, and whether the class token is pooled."""
        self.patches.kept, self.pooled.on = kept, not with_class

    def learn(self, scenes: Truth) -> float:
        """Leave the gradients in this copy; return the loss."""
        read = self.model(normalized(scenes.pixels).to(torch.bfloat16))
        found = loss(read, scenes, placed=self.recipe.placed)
        found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach())


class _WithoutClass:
    """A forward pre-hook that takes the class token, the first, away."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, 1:],) if self.on else args


def begun(recipe: ClipRecipe, *, tower: Path | None) -> Seeing:
    """Return the untrained model, its tower begun as a ViT's (None: at random) and with places."""
    clip = build_clip(recipe, None if tower is None else load_weights(tower))
    composer = Composer("held-out", size_px=recipe.size_px)
    measured = normalized(np.stack([composer.scene(i, seed=5).pixels for i in range(_MEASURED)]))
    with_places(clip.visual, measured, recipe)
    return Seeing(clip.visual, recipe.embed_dim)


def loss(read: Tensor, scenes: Truth, *, placed: float) -> Tensor:
    """Return what is missed in a scene: what is there, whether it is several, and, `placed` times, where it is."""
    there = (scenes.counts > 0).float()
    several = (scenes.counts > 1).float()
    named = F.binary_cross_entropy_with_logits(read[:, 0], there, reduction="sum")
    counted = (F.binary_cross_entropy_with_logits(read[:, 1], several, reduction="none") * there).sum()
    off = F.smooth_l1_loss(read[:, 2:], 2 * scenes.places, reduction="none", beta=0.5)
    return (named + counted + placed * (off * there[:, None]).sum()) / len(read)


def truth(scenes: Sequence[Scene]) -> Truth:
    """Return what is where in scenes."""
    number = {each.noun: at for at, each in enumerate(things())}
    counts, places = torch.zeros(len(scenes), len(number)), torch.zeros(len(scenes), 2, len(number))
    size_px = len(scenes[0].pixels)
    for scene, count, place in zip(scenes, counts, places, strict=True):
        for placed in scene.objects:
            at, (left, top, right, bottom) = number[placed.thing.noun], placed.box_px
            count[at] += 1
            place[:, at] += torch.tensor([(left + right) / size_px - 1, (top + bottom) / size_px - 1])
    pixels = np.stack([scene.pixels for scene in scenes])
    return Truth(pixels=pixels, counts=counts, places=places / counts.clamp(min=1)[:, None])


@torch.no_grad()
def seen_by_table(model: Seeing, composer: Composer, *, seed: int, count: int) -> dict[str, float]:
    """Return how much of what is there comes first, and how often two things lie as their places say."""
    number = {each.noun: at for at, each in enumerate(things())}
    found: list[float] = []
    right: dict[str, list[bool]] = {relation: [] for relation in RELATIONS}
    for first in range(0, count, 64):
        scenes = [composer.scene(at, seed=seed, least=1 + (at % 4 > 0)) for at in range(first, min(count, first + 64))]
        known = truth(scenes)
        for scene, counts, read in zip(scenes, known.counts, model(normalized(known.pixels)), strict=True):
            there = counts.nonzero()[:, 0]
            found.append(float(torch.isin(read[0].topk(len(there)).indices, there).float().mean()))
            alone = [(number[o.thing.noun], o.box_px) for o in scene.objects if counts[number[o.thing.noun]] == 1]
            for axis, relation in enumerate(RELATIONS):
                right[relation] += [
                    bool(read[2 + axis, one] < read[2 + axis, other])
                    for one, box in alone
                    for other, second in alone
                    if holds(relation, box, second, size_px=composer.size_px)
                ]
    means = {name: float(np.mean(each)) if each else float("nan") for name, each in right.items()}
    return {"there": float(np.mean(found)), "left_right": means["left of"], "above_below": means["above"]}


def write_out(tower: VisionTransformer | TextTransformer) -> None:
    """Let a tower's attention run as single operations: backward through the fused one takes three times as long."""
    for block in tower.transformer.resblocks:
        block.attn.forward = partial(_written_out, block.attn)


def _written_out(
    attention: nn.MultiheadAttention, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object
) -> tuple[Tensor, None]:
    """Return what self-attention returns, each operation by itself; the mask is added."""
    samples, tokens, width = x.shape
    each = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = each.reshape(samples, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = q * attention.head_dim**-0.5 @ k.mT
    weights = (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(samples, tokens, width)
    return attention.out_proj(mixed), None


def _parts(count: int, *, shards: int) -> list[slice]:
    """Return `shards` slices of `count` that differ by one at most."""
    edges = [round(count * at / shards) for at in range(shards + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]

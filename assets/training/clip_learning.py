"""One step of learning words: pictures against captions, and each caption against its twin.

The loss is CLIP's (Radford et al. 2021): each picture is told which of a step's captions is its own, and each caption
which picture. Two changes, both made possible by knowing what is in a scene:

- a caption that says how two things lie brings its **twin**, the two exchanged, as one more wrong answer (hard
  negatives; Yuksekgonul et al. 2023). Without it, telling left from right stays a coin toss: the nouns are enough;
- what is not plainly false of a picture is no wrong answer: "a dog" beside another scene's dog is left out.

As in `learning.py`, a step's scenes are shards with a thread each. Their features are brought together, the loss is
taken of all of them in float32, and each shard goes back from the gradients at its own features: the same as without
shards.

**Patch dropout** as for the ViT; in most steps the class token is kept from the pooler, too: patches must speak.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.captions import Caption, caption, verdict
from assets.training.clip_evaluate import read_by
from assets.training.clip_model import ClipRecipe, build_clip, save_clip
from assets.training.clip_words import encoded, worded
from assets.training.compose import Composer, Scene
from assets.training.draws import Draws
from assets.training.learning import KeptPatches, follow, gradients, keep_memory, kept_patches
from assets.training.model import load_weights, normalized
from assets.training.updates import Updates

_SHARPEST = float(np.log(100))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a step learns from: N scenes, N captions, and the twins of M of these.

    Parameters
    ----------
    pixels
        [scene, row, col, rgb]
    texts
        Numbers of the N captions, then of the M twins.
    wrong
        [scene, text]: which texts are plainly false of a scene.

    """

    pixels: NDArray[np.uint8]
    texts: Tensor
    wrong: Tensor


class ClipLearner:
    """A CLIP that is being trained by a recipe; `step(n)` for n = 0, 1, 2, ... in order."""

    def __init__(self, recipe: ClipRecipe, composer: Composer, *, tower: Path | None) -> None:
        keep_memory()
        self.recipe, self.composer = recipe, composer
        self._updates = Updates(build_clip(recipe, None if tower is None else load_weights(tower)), recipe)
        self.model, self.average = self._updates.model, self._updates.average
        self._shards = [_Shard(self.model) for _ in range(recipe.shards)]
        self._pool = ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,))

    def batch(self, step: int) -> Pairs:
        """Return what a step learns from."""
        first, recipe = step * self.recipe.batch, self.recipe
        scenes, said, twins, texts = [], [], [], []
        for index in range(first, first + recipe.batch):
            least = 1 if index % recipe.singles_in == 0 else 2
            scenes.append(self.composer.scene(index, seed=recipe.seed, least=least))
            draws = Draws("caption", self.composer.split, recipe.seed, index)
            said.append(caption(scenes[-1].objects, draws, size_px=recipe.size_px, rich=True))
            texts.append(worded([text for text in (said[-1].text, said[-1].exchanged) if text], draws))
            if recipe.exchanged and said[-1].exchanged:
                twins.append(len(said) - 1)
        written = [each[0] for each in texts] + [texts[at][1] for at in twins]
        return Pairs(
            pixels=np.stack([scene.pixels for scene in scenes]),
            texts=encoded(written),
            wrong=wrong(scenes, said, twins=twins),
        )

    def step(self, number: int, scenes: Pairs) -> float:
        """Learn from the pairs of a step; return their loss."""
        masters, shards, pairs = self._updates.weights(), self._shards, scenes
        pictures = _parts(len(pairs.pixels), shards=len(shards))
        texts = _parts(len(pairs.texts), shards=len(shards))
        kept = kept_patches(self.recipe, number)
        with_class = number % self.recipe.pooled_class == 0

        def forward(shard: _Shard, at: int) -> tuple[Tensor, Tensor]:
            follow(shard.model, masters)
            shard.see(None if kept is None else kept[pictures[at]], with_class=with_class)
            return shard.encode(pairs.pixels[pictures[at]], pairs.texts[texts[at]])

        features = list(self._pool.map(forward, shards, range(len(shards))))
        seen, read = (torch.cat(each).requires_grad_() for each in zip(*features, strict=True))
        loss = contrast(seen, read, pairs.wrong, sharpness=self.model.logit_scale)
        scale, *grads = torch.autograd.grad(loss, (self.model.logit_scale, seen, read))

        def backward(shard: _Shard, at: int) -> None:
            shard.learn(grads[0][pictures[at]], grads[1][texts[at]])

        list(self._pool.map(backward, shards, range(len(shards))))
        # a shard's gradients are parts of a sum, and `apply` takes a mean; the scale has its gradient here
        whole = [[each * len(shards) for each in gradients(shard.model)] for shard in shards]
        at = next(i for i, each in enumerate(masters) if each is self.model.logit_scale)
        for each in whole:
            each[at] = scale
        self._updates.apply(number, whole, pool=self._pool)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=_SHARPEST)
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds."""
        return self._updates.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._updates.load(state)

    def knows(self, *, seed: int, scenes: int) -> dict[str, object]:
        """Return what the averaged model knows of held-out scenes."""
        composer = Composer("held-out", size_px=self.recipe.size_px)
        return asdict(read_by(self.average, composer, seed=seed, count=scenes))

    def save(self, folder: Path, *, step: int) -> Path:
        """Write the averaged model in half precision as `clip` into a run's folder."""
        save_clip(self.average.state_dict(), folder / "clip", recipe=self.recipe, step=step)
        return folder / "clip"


class _Shard:
    """A thread's own copy of the model, in bfloat16."""

    def __init__(self, model: CustomTextCLIP) -> None:
        self.model = deepcopy(model).to(torch.bfloat16).train()
        self.patches, self.pooled = KeptPatches(), _WithoutClass()
        self.model.visual.patch_dropout = self.patches
        self.model.visual.attn_pool.ln_k.register_forward_pre_hook(self.pooled)
        for block in self.model.visual.transformer.resblocks:
            block.attn.forward = partial(_written_out, block.attn)  # the fused backward takes three times as long
        self._features: tuple[Tensor, Tensor] | None = None

    def see(self, kept: Tensor | None, *, with_class: bool) -> None:
        """Say which patches are kept, and whether the class token is pooled."""
        self.patches.kept, self.pooled.on = kept, not with_class

    def encode(self, pixels: NDArray[np.uint8], texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of pictures and texts in float32, and keep the way back."""
        seen = self.model.encode_image(normalized(pixels).to(torch.bfloat16))
        self._features = seen, self.model.encode_text(texts)
        return self._features[0].detach().float(), self._features[1].detach().float()

    def learn(self, *grads: Tensor) -> None:
        """Leave the gradients in this copy, given those at its features."""
        assert self._features is not None
        back = [grad.to(torch.bfloat16) for grad in grads]
        torch.autograd.backward(self._features, back)
        self._features = None


def _written_out(attention: nn.MultiheadAttention, x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
    """Return what self-attention without a mask returns, each operation by itself."""
    samples, tokens, width = x.shape
    each = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = each.reshape(samples, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q * attention.head_dim**-0.5 @ k.mT).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(samples, tokens, width)
    return attention.out_proj(mixed), None


class _WithoutClass:
    """A forward pre-hook that takes the class token, the first, away."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, 1:],) if self.on else args


def contrast(seen: Tensor, read: Tensor, wrong: Tensor, *, sharpness: Tensor) -> Tensor:
    """Return CLIP's loss of N pictures and N + M texts, where only `wrong` answers stand against the right one."""
    count = len(seen)
    logits = sharpness.exp() * F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T
    own = torch.eye(count, len(read), dtype=torch.bool)
    logits = logits.masked_fill(~(wrong | own), float("-inf"))
    right = torch.arange(count)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits[:, :count].T, right)) / 2


def wrong(scenes: Sequence[Scene], said: Sequence[Caption], *, twins: Sequence[int]) -> Tensor:
    """Return which captions, and then which captions' twins, are plainly false of each scene, [scene, text]."""
    size_px = len(scenes[0].pixels)
    asked = [(each, False) for each in said] + [(said[at], True) for at in twins]
    return torch.tensor(
        [
            [verdict(one, scene.objects, size_px=size_px, exchanged=twin) is False for one, twin in asked]
            for scene in scenes
        ]
    )


def _parts(count: int, *, shards: int) -> list[slice]:
    """Return `shards` slices of `count` that differ by one at most."""
    edges = [round(count * at / shards) for at in range(shards + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]

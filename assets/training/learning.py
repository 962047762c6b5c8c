"""One step of training, and what is kept between steps.

Weights are held in float32 and worked with in bfloat16, forward and backward: recent processors multiply bfloat16
several times as fast (AMX), and a layer norm or a softmax reads half as many bytes. The float32 ones are updated: by
**Muon** (Jordan et al. 2024) the matrices of the blocks, by AdamW the rest. After 18,000 scenes Muon had reached a mean
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

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.compose import Composer, Scene
from assets.training.evaluate import shown
from assets.training.model import Recipe, build, normalized


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
        self._optimizers = _optimizers(self.model, recipe)

    def batch(self, step: int) -> list[Scene]:
        """Return the scenes of a step."""
        first, recipe = step * self.recipe.batch, self.recipe
        most = 1 if step < recipe.singles else 3
        return [self.composer.scene(first + i, seed=recipe.seed, most=most) for i in range(recipe.batch)]

    def step(self, number: int, scenes: Sequence[Scene]) -> float:
        """Learn from the scenes of a step; return its loss."""
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
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * self.recipe.rate(number)
        list(self._pool.map(lambda optimizer: optimizer.step(), self._optimizers))
        self._follow(number)
        return float(np.mean(losses))

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
        """Leave the gradients at the masters' weights in this copy; return the loss."""
        with torch.no_grad():
            for master, worker in zip(masters, self.model.parameters(), strict=True):
                worker.copy_(master)
                worker.grad = None
        loss = self.loss(scenes, kept)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def gradients(self) -> list[Tensor]:
        """Return the gradients in float32, zero where there are none."""
        return [torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float() for p in self._weights()]

    def loss(self, scenes: Sequence[Scene], kept: Tensor | None) -> Tensor:
        """Return binary cross-entropy, summed over things and averaged over scenes."""
        self.patches.kept = kept
        pixels = normalized(np.stack([scene.pixels for scene in scenes])).to(torch.bfloat16)
        logits = self.model(pixels).float()
        truth = torch.from_numpy(shown(scenes)).float()
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(scenes)

    def _weights(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


def _optimizers(model: VisionTransformer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return one Muon a shard, so that they run at the same time, and AdamW for what is not a matrix of a block.

    Matrices decay; biases, norms, positions and the class token do not.
    """
    named = dict(model.named_parameters())
    blocks = [name for name, value in named.items() if value.ndim == 2 and name.startswith("blocks.")]
    rest = [name for name in named if name not in blocks]
    still = [name for name in rest if named[name].ndim == 1 or name in ("pos_embed", "cls_token")]
    moved = [name for name in rest if name not in still]
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [
                {
                    "params": [named[name] for name in blocks[first :: recipe.shards]],
                    "times": recipe.muon_rate / recipe.learning_rate,
                }
            ],
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        for first in range(recipe.shards)
    ]
    groups = [
        {"params": [named[name] for name in names], "weight_decay": decay, "times": 1.0}
        for names, decay in ((moved, recipe.weight_decay), (still, 0.0))
    ]
    return [*found, torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)]


def _keep_memory() -> None:
    """Tell glibc to keep large blocks: else each step's are given back and cleared again (a third of the time)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    for option, value in ((-1, 2**31 - 1), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, value)

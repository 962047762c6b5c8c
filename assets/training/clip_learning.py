"""The second half of training our CLIP: words, for a picture tower that stays as the first half left it.

The loss is CLIP's (Radford et al. 2021): each picture is told which of a step's captions is its own, and each caption
which picture. Two changes, both made possible by knowing what is in a scene:

- a caption that says how two things lie brings its **twin**, the two exchanged, as one more wrong answer (hard
  negatives; Yuksekgonul et al. 2023);
- what is not plainly false of a picture is no wrong answer: "a dog" beside another scene's dog is left out.

And a text is told what it asks for (`meaning`): the vectors of the first half's table, added up, which weighs far more
than the rest. By CLIP's loss alone, or beside it in equal parts, a text tower learns nouns in 200 steps and, in 700,
nothing of which of two nouns stands left of "left of".

The tower looks at each of `scenes` pictures once, before the first step; what is said of a picture is another caption
each time. Texts are cut behind the longest of a step: what stands behind the end is never asked.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from assets.training.captions import BESIDE, Caption, caption, verdict
from assets.training.clip_evaluate import read_by
from assets.training.clip_model import ClipRecipe, build_clip, save_clip
from assets.training.clip_seeing import SCENES_SEED, write_out
from assets.training.clip_words import END, encoded, worded, words
from assets.training.compose import Composer, Placed, Scene
from assets.training.draws import Draws
from assets.training.learning import follow, gradients, keep_memory
from assets.training.model import normalized
from assets.training.things import things
from assets.training.updates import Updates

_SHARPEST = float(np.log(100))
_AT_ONCE = 64
_VISUAL = "visual."
_APART = 3.0
"""How much of a text's meaning is how two things lie, beside what they are."""

_TOWARD = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Along which axis the other of two things is further, and whether in its direction or against it."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a step learns from: N scenes, N captions, and the twins of M of these.

    Parameters
    ----------
    seen
        The pictures' features [scene, feature], of length 1.
    texts
        Numbers of the N captions, then of the M twins, [text, token].
    wrong
        [scene, text]: which texts are plainly false of a scene.
    meanings
        What the table says for each text, [text, feature], of length 1.

    """

    seen: Tensor
    texts: Tensor
    wrong: Tensor
    meanings: Tensor


class Reading(nn.Module):
    """The half of a CLIP that reads, under its own names."""

    def __init__(self, clip: CustomTextCLIP) -> None:
        super().__init__()
        self.text, self.logit_scale = clip.text, clip.logit_scale


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What words are learned for: N scenes.

    Parameters
    ----------
    features
        [scene, feature], of length 1.
    objects
        What is in each, and where.

    """

    features: Tensor
    objects: tuple[tuple[Placed, ...], ...]


class ClipLearner:
    """A CLIP that is learning to read; `step(n)` for n = 0, 1, 2, ... in order."""

    def __init__(self, recipe: ClipRecipe, composer: Composer, *, first: Mapping[str, Tensor]) -> None:
        keep_memory()
        self.recipe, self.composer = recipe, composer
        clip = build_clip(recipe, None)
        clip.visual.load_state_dict(of_tower(first))
        self.table = first["table"]
        self.visual = clip.visual.eval().requires_grad_(False)
        self._updates = Updates(Reading(clip), recipe)
        self.model, self.average = self._updates.model, self._updates.average
        self._working = deepcopy(self.model).to(torch.bfloat16).train()
        self._mask = self._working.text.attn_mask
        write_out(self._working.text)
        self._pool = ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,))
        self.seen = look(self.visual, composer, recipe, pool=self._pool)

    def batch(self, step: int) -> Pairs:
        """Return what a step learns from: scenes in an order that is new in each round, and new captions."""
        recipe, size_px = self.recipe, self.recipe.size_px
        chosen = [_scene(step * recipe.batch + at, recipe) for at in range(recipe.batch)]
        objects = [self.seen.objects[at] for at in chosen]
        said, twins, texts = [], [], []
        for at, each in enumerate(objects):
            draws = Draws("caption", self.composer.split, recipe.seed, step * recipe.batch + at)
            said.append(caption(each, draws, size_px=size_px, rich=True))
            texts.append(worded([text for text in (said[-1].text, said[-1].exchanged) if text], draws))
            if recipe.exchanged and said[-1].exchanged:
                twins.append(at)
        written = encoded([each[0] for each in texts] + [texts[at][1] for at in twins])
        longest = int((written == words().index(END)).int().argmax(dim=1).max()) + 1
        return Pairs(
            seen=self.seen.features[chosen],
            texts=written[:, :longest],
            wrong=wrong(objects, said, twins=twins, size_px=size_px),
            meanings=torch.stack(
                [meaning(each, self.table) for each in said]
                + [meaning(said[at], self.table, exchanged=True) for at in twins]
            ),
        )

    def step(self, number: int, scenes: Pairs) -> float:
        """Learn from the pairs of a step; return their loss."""
        follow(self._working, self._updates.weights())
        longest = scenes.texts.shape[1]
        self._working.text.attn_mask = self._mask[:longest, :longest]  # open_clip does not cut it
        read = self._working.text(scenes.texts).float()
        found = contrast(scenes.seen, read, scenes.wrong, sharpness=self._working.logit_scale.float())
        found = found + self.recipe.taught * (1 - F.cosine_similarity(read, scenes.meanings)).mean()
        found.backward()  # type: ignore[no-untyped-call]
        self._updates.apply(number, [gradients(self._working)], pool=self._pool)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=_SHARPEST)
        return float(found.detach())

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds."""
        return self._updates.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._updates.load(state)

    def clip(self) -> CustomTextCLIP:
        """Return the whole model, with the average of what reads."""
        found = build_clip(self.recipe, None)
        found.load_state_dict(
            {f"{_VISUAL}{name}": value for name, value in self.visual.state_dict().items()} | self.average.state_dict()
        )
        return found.eval()

    def knows(self, *, seed: int, scenes: int) -> dict[str, object]:
        """Return what the averaged model knows of held-out scenes."""
        composer = Composer("held-out", size_px=self.recipe.size_px)
        return asdict(read_by(self.clip(), composer, seed=seed, count=scenes))

    def save(self, folder: Path, *, step: int) -> Path:
        """Write the averaged model in half precision as `clip` into a run's folder."""
        save_clip(self.clip().state_dict(), folder / "clip", recipe=self.recipe, step=step)
        return folder / "clip"


def look(visual: VisionTransformer, composer: Composer, recipe: ClipRecipe, *, pool: Executor) -> Seen:
    """Compose the scenes that words are learned for, and look at each, in bfloat16."""
    visual = deepcopy(visual).to(torch.bfloat16)
    write_out(visual)
    seed = recipe.seed + 2 * SCENES_SEED

    def part(first: int) -> tuple[Tensor, list[tuple[Placed, ...]]]:
        numbers = range(first, min(first + _AT_ONCE, recipe.scenes))
        scenes = [composer.scene(at, seed=seed, least=recipe.least(at)) for at in numbers]
        return looked(visual, scenes), [tuple(scene.objects) for scene in scenes]

    features, objects = zip(*pool.map(part, range(0, recipe.scenes, _AT_ONCE)), strict=True)
    return Seen(features=torch.cat(features), objects=tuple(each for part_of in objects for each in part_of))


@torch.no_grad()
def looked(visual: VisionTransformer, scenes: Sequence[Scene]) -> Tensor:
    """Return the features of scenes, [scene, feature], of length 1."""
    pixels = normalized(np.stack([scene.pixels for scene in scenes]))
    return F.normalize(visual(pixels.to(visual.proj.dtype)).float(), dim=-1)


def meaning(said: Caption, table: Tensor, *, exchanged: bool = False) -> Tensor:
    """Return what a caption, or its twin, asks of a picture's feature, by the table of the first half."""
    number = {each.noun: at for at, each in enumerate(things())}
    there, several, *places = table
    found = sum(
        (there[number[thing.noun]] + (1.0 if count > 1 else -0.5) * several[number[thing.noun]])
        for thing, count in said.counts
    )
    if said.relation is not None and said.relation[1] != BESIDE:
        one, relation, other = said.relation
        axis, sign = _TOWARD[relation]
        apart = places[axis][number[other.noun]] - places[axis][number[one.noun]]
        found = found + _APART * (-sign if exchanged else sign) * apart
    return F.normalize(torch.as_tensor(found), dim=-1)


def of_tower(first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tower's part of what the first half learned."""
    return {name.removeprefix(_VISUAL): value for name, value in first.items() if name.startswith(_VISUAL)}


def contrast(seen: Tensor, read: Tensor, wrong: Tensor, *, sharpness: Tensor) -> Tensor:
    """Return CLIP's loss of N pictures and N + M texts, where only `wrong` answers stand against the right one."""
    count = len(seen)
    logits = sharpness.exp() * F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T
    own = torch.eye(count, len(read), dtype=torch.bool)
    logits = logits.masked_fill(~(wrong | own), float("-inf"))
    right = torch.arange(count)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits[:, :count].T, right)) / 2


def wrong(scenes: Sequence[Sequence[Placed]], said: Sequence[Caption], *, twins: Sequence[int], size_px: int) -> Tensor:
    """Return which captions, and then which captions' twins, are plainly false of each scene, [scene, text].

    Most are, because they count other things; only where the counts agree each caption is held against the boxes.
    """
    asked = [(each, False) for each in said] + [(said[at], True) for at in twins]
    number = {each.noun: at for at, each in enumerate(things())}
    there, named = np.zeros((len(scenes), len(number))), np.zeros((len(asked), len(number)))
    for objects, counts in zip(scenes, there, strict=True):
        for placed in objects:
            counts[number[placed.thing.noun]] += 1
    for (one, _), counts in zip(asked, named, strict=True):
        for thing, count in one.counts:
            counts[number[thing.noun]] = count
    # counts agree where the difference is zero at every thing that a caption names
    differ = (there**2) @ (named > 0).T - 2 * there @ named.T + (named**2).sum(axis=1) > 0
    found = torch.from_numpy(differ)
    for row, text in np.argwhere(~differ).tolist():
        one, twin = asked[text]
        found[row, text] = verdict(one, scenes[row], size_px=size_px, exchanged=twin) is False
    return found


def _scene(number: int, recipe: ClipRecipe) -> int:
    """Return which scene is the so-manieth to be learned from; in each round all come, in another order."""
    return _order(number // recipe.scenes, recipe.scenes, recipe.seed)[number % recipe.scenes]


@lru_cache(maxsize=2)
def _order(around: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + around)
    return torch.randperm(count, generator=generator).tolist()

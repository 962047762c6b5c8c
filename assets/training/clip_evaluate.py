"""What a CLIP knows of held-out scenes: `python assets/training/clip_evaluate.py run/clip --seed 2`.

- **Retrieval** among 64 scenes and their 64 captions, both ways: how often the best answer is the right one. Any that
  is true counts: a caption may be true of several scenes. `own` counts only the one that it was written for.
- **Twins**: how often a caption that says how two things lie scores higher than the same words with the two exchanged,
  for `left of` and `right of`, and for `above` and `below`. Chance is a half.
- **Pointing**: "a dog" by itself, in scenes with one thing and with two; how often the patch that is most like it (or
  that Chefer et al. 2021 hold responsible for the score) lies in the thing's box. Chance is the box's share.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CustomTextCLIP
from torch import Tensor
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.captions import Caption, caption, phrase, verdict
from assets.training.clip_model import load_clip, patch_features
from assets.training.clip_relevance import chefer
from assets.training.clip_words import encoded
from assets.training.compose import Box, Composer, Scene
from assets.training.draws import Draws
from assets.training.evaluate import SCENES, reported
from assets.training.model import normalized

AMONG = 64
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a model knows; shares from 0 to 1.

    Parameters
    ----------
    caption_of_scene, scene_of_caption
        Recall at 1 among 64, where each answer that is true counts.
    own_caption, own_scene
        The same, where only the scene's own counts.
    left_right, above_below
        How often a caption scores higher than its twin.
    pointing
        By method (`chance`, `similarity`, `chefer`) and number of things.
    scenes
        How many scenes the retrieval is from.

    """

    caption_of_scene: float
    scene_of_caption: float
    own_caption: float
    own_scene: float
    left_right: float
    above_below: float
    pointing: dict[str, float]
    scenes: int


def read_by(model: CustomTextCLIP, composer: Composer, *, seed: int, count: int = SCENES) -> Reads:
    """Return what a model knows of `count` scenes of a seed."""
    scenes, said = told(composer, seed=seed, count=count, least=1)
    found = [retrieval(model, scenes[at : at + AMONG], said[at : at + AMONG]) for at in range(0, count, AMONG)]
    shares = np.mean(found, axis=0)
    sides, heights = twins(model, composer, seed=seed + 1, count=count)
    return Reads(
        caption_of_scene=float(shares[0]),
        scene_of_caption=float(shares[1]),
        own_caption=float(shares[2]),
        own_scene=float(shares[3]),
        left_right=sides,
        above_below=heights,
        pointing=pointing(model, composer, seed=seed + 2, count=max(1, count // 2)),
        scenes=count,
    )


def told(composer: Composer, *, seed: int, count: int, least: int) -> tuple[list[Scene], list[Caption]]:
    """Return scenes and what is said of them."""
    scenes = [composer.scene(index, seed=seed, least=least) for index in range(count)]
    draws = [Draws("caption", composer.split, seed, index) for index in range(count)]
    size_px = composer.size_px
    return scenes, [caption(s.objects, d, size_px=size_px, rich=True) for s, d in zip(scenes, draws, strict=True)]


def retrieval(
    model: CustomTextCLIP, scenes: Sequence[Scene], said: Sequence[Caption]
) -> tuple[float, float, float, float]:
    """Return recall at 1: caption of scene and scene of caption, each true one counted; then only the own ones."""
    scores = pictured(model, scenes) @ written(model, [each.text for each in said]).T
    size_px = len(scenes[0].pixels)
    true = np.array([[verdict(one, s.objects, size_px=size_px) is True for one in said] for s in scenes])
    every = np.arange(len(scenes))
    text_of, scene_of = scores.argmax(axis=1), scores.argmax(axis=0)
    return (
        float(true[every, text_of].mean()),
        float(true[scene_of, every].mean()),
        float((text_of == every).mean()),
        float((scene_of == every).mean()),
    )


def twins(model: CustomTextCLIP, composer: Composer, *, seed: int, count: int) -> tuple[float, float]:
    """Return how often a caption beats its twin, for left and right, and for above and below."""
    scenes, said = told(composer, seed=seed, count=count, least=2)
    asked = [(scene, one) for scene, one in zip(scenes, said, strict=True) if one.exchanged]
    seen = pictured(model, [scene for scene, _ in asked])
    true = written(model, [one.text for _, one in asked])
    false = written(model, [str(one.exchanged) for _, one in asked])
    right = (seen * (true - false)).sum(axis=1) > 0
    sideways = np.array([one.relation is not None and one.relation[1] in ("left of", "right of") for _, one in asked])
    return _share(right[sideways]), _share(right[~sideways])


def pointing(model: CustomTextCLIP, composer: Composer, *, seed: int, count: int) -> dict[str, float]:
    """Return how often each method's peak lies in the box of the thing that is asked for, and chance."""
    found: dict[str, float] = {}
    for things, name in ((1, "one"), (2, "two")):
        scenes = [composer.scene(index, seed=seed + things, least=things, most=things) for index in range(count)]
        asked = [(scene, scene.objects[0]) for scene in scenes if len({each.thing for each in scene.objects}) == things]
        boxes = [each.box_px for _, each in asked]
        found[f"chance_{name}"] = float(np.mean([_area(box) for box in boxes])) / composer.size_px**2
        for method, maps in _maps(model, [s for s, _ in asked], [phrase(o.thing, 1, color=False) for _, o in asked]):
            hits = [inside(each, box, size_px=composer.size_px) for each, box in zip(maps, boxes, strict=True)]
            found[f"{method}_{name}"] = float(np.mean(hits))
    return found


def inside(values: NDArray[np.floating], box: Box, *, size_px: int) -> bool:
    """Whether the middle of the highest patch of a map [patch] lies in a box.

    Examples
    --------
    >>> inside(np.array([0.0, 1.0, 0.0, 0.0]), (50, 0, 100, 50), size_px=100)
    True

    """
    side = round(len(values) ** 0.5)
    row, col = divmod(int(values.argmax()), side)
    x, y = (col + 0.5) * size_px / side, (row + 0.5) * size_px / side
    return bool(box[0] <= x < box[2] and box[1] <= y < box[3])


def _maps(
    model: CustomTextCLIP, scenes: Sequence[Scene], texts: Sequence[str]
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return each method's maps of texts on scenes, [pair, patch]."""
    read = torch.from_numpy(written(model, texts))
    similar, responsible = [], []
    for at in range(0, len(scenes), _AT_ONCE):
        pixels = normalized(np.stack([scene.pixels for scene in scenes[at : at + _AT_ONCE]]))
        words = read[at : at + _AT_ONCE]
        with torch.inference_mode():
            similar.append((patch_features(model, pixels) @ words[..., None])[..., 0])
        responsible.append(chefer(model, pixels, words))
    return [("similarity", torch.cat(similar).numpy()), ("chefer", torch.cat(responsible).numpy())]


@torch.inference_mode()
def pictured(model: CustomTextCLIP, scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """Return the features of scenes, of length 1."""
    found = []
    for at in range(0, len(scenes), _AT_ONCE):
        pixels = normalized(np.stack([scene.pixels for scene in scenes[at : at + _AT_ONCE]]))
        found.append(model.encode_image(_as(model, pixels), normalize=True).float())
    return np.asarray(torch.cat(found).numpy())


@torch.inference_mode()
def written(model: CustomTextCLIP, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the features of texts, of length 1."""
    found = [
        F.normalize(model.encode_text(encoded(texts[at : at + _AT_ONCE])).float(), dim=-1)
        for at in range(0, len(texts), _AT_ONCE)
    ]
    return np.asarray(torch.cat(found).numpy())


def _as(model: CustomTextCLIP, pixels: Tensor) -> Tensor:
    return pixels.to(next(model.parameters()).dtype)


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if right.size else float("nan")


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def main() -> int:
    """Evaluate a folder."""

    def measured(weights: Path, options: Namespace) -> object:
        model = load_clip(weights)
        composer = Composer("held-out", clutter=options.clutter, size_px=model.visual.image_size[0])
        return asdict(read_by(model, composer, seed=options.seed, count=options.count))

    return reported("Retrieval, relations and pointing of a CLIP on held-out scenes.", measured)


if __name__ == "__main__":
    sys.exit(main())

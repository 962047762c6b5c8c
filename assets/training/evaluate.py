"""How well a model knows what is in scenes: mean average precision on the held-out split.

`python assets/training/evaluate.py run/vit --seed 2`. Average precision of a class is the mean, over the scenes
that show it, of the precision among all scenes scored at least as high; the mean is over the classes that are shown.
Beside it the share of single-thing scenes whose highest class is the true one.
"""

import json
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.compose import Composer, Scene
from assets.training.model import load_weights, normalized
from assets.training.things import things
from mmattn.errors import MmattnError

SCENES = 1024
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Knows:
    """What a model knows, on scenes that it never saw.

    Parameters
    ----------
    mean_average_precision
        Over the classes shown, in scenes of one to three things.
    single_top1
        Share of single-thing scenes whose highest class is the true one.
    classes, scenes
        How many of each this is from.

    """

    mean_average_precision: float
    single_top1: float
    classes: int
    scenes: int


def evaluate(model: nn.Module, composer: Composer, *, seed: int, count: int = SCENES) -> Knows:
    """Return what a model knows of `count` scenes of a seed, and of half as many with one thing."""
    scenes = [composer.scene(index, seed=seed) for index in range(count)]
    scores, truth = scored(model, scenes), shown(scenes)
    singles = [composer.scene(count + index, seed=seed, most=1) for index in range(max(1, count // 2))]
    right = scored(model, singles).argmax(axis=1) == shown(singles).argmax(axis=1)
    precisions = [average_precision(scores[:, c], truth[:, c]) for c in np.flatnonzero(truth.any(axis=0))]
    return Knows(
        mean_average_precision=float(np.mean(precisions)),
        single_top1=float(right.mean()),
        classes=len(precisions),
        scenes=count,
    )


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the average precision of one class; scenes of equal score are taken together.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333

    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    last_of_equals = np.searchsorted(-ranked, -ranked, side="right") - 1
    precision = hits[last_of_equals] / (last_of_equals + 1)
    return float(precision[truth[order]].mean())


def shown(scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Return which classes each scene shows, [scene, class]."""
    number = {each: at for at, each in enumerate(things())}
    truth = np.zeros((len(scenes), len(number)), bool)
    for row, scene in zip(truth, scenes, strict=True):
        row[[number[each.thing] for each in scene.objects]] = True
    return truth


@torch.inference_mode()
def scored(model: nn.Module, scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """Return the logits of a model, [scene, class]."""
    found = []
    for start in range(0, len(scenes), _AT_ONCE):
        pixels = normalized(np.stack([scene.pixels for scene in scenes[start : start + _AT_ONCE]]))
        found.append(model(pixels.to(next(model.parameters()).dtype)).float().numpy())
    return np.concatenate(found)


def reported(description: str, measured: Callable[[Path, Namespace], object]) -> int:
    """Print what is measured of the weights that a command line names; a problem is one line and exit code 2."""
    parser = ArgumentParser(description=description)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seed", type=int, required=True, help="one that nothing was chosen on")
    parser.add_argument("--count", type=int, default=SCENES, help="how many scenes")
    parser.add_argument("--clutter", action=BooleanOptionalAction, default=True)
    options = parser.parse_args()
    try:
        print(json.dumps(measured(options.weights, options)))
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    """Evaluate a folder."""

    def measured(weights: Path, options: Namespace) -> object:
        model = load_weights(weights)
        composer = Composer("held-out", clutter=options.clutter, size_px=model.patch_embed.img_size[0])
        return asdict(evaluate(model, composer, seed=options.seed, count=options.count))

    return reported("Mean average precision of trained weights on held-out scenes.", measured)


if __name__ == "__main__":
    sys.exit(main())

"""The model that is trained: a timm VisionTransformer, as anyone would build it, and its weights as a file.

A recipe says all that the weights follow from: architecture, data, optimizer and seed. Weights are written as
safetensors in float16; their header holds the architecture (keyword arguments of timm's `VisionTransformer`), the
class names in order, and how pixels are normalized, so that a file needs no second description.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from assets.training.registries import Split
from assets.training.things import things
from mmattn.errors import FormatError, InputError

MEAN = STD = 0.5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that trained weights follow from.

    Parameters
    ----------
    seed, split, clutter
        Of the scenes; the weights begin from the seed, too.
    steps, batch
        Scene number `step * batch + i` is the i-th of a step: none is seen twice.
    size_px, patch_px, width, layers, heads
        The architecture.
    learning_rate, weight_decay, warmup_steps, decay
        AdamW; the rate is constant after the warm-up and falls to zero in the last share `decay` of the steps.
    patch_dropout, whole
        The share of patches that a picture loses in training, and the last share of the steps without that.
    singles
        How many steps, at first, with one thing in a scene.
    token_labels
        How much patches count that are asked what they show; 0 leaves it out.
    shards
        Parts of a step's scenes that are learned from at the same time, each by one thread.
    ema
        How much of the averaged weights stays at each step. The average is what is evaluated and written.

    """

    seed: int = 1
    split: Split = "train"
    clutter: bool = True
    steps: int = 4500
    batch: int = 64
    size_px: int = 112
    patch_px: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    decay: float = 0.35
    patch_dropout: float = 0.5
    whole: float = 0.1
    singles: int = 150
    token_labels: float = 0.5
    ema: float = 0.998
    shards: int = 2

    def __post_init__(self) -> None:
        rests = (self.size_px % self.patch_px, self.width % self.heads, self.batch % self.shards)
        if self.steps < 1 or self.batch < 1 or any(rests) or not 0 <= self.patch_dropout < 1:
            raise InputError(
                f"A recipe of {self.steps} steps with {self.batch} scenes in {self.shards} shards, {self.size_px} px "
                f"in patches of {self.patch_px} px ({self.patch_dropout} dropped) and width {self.width} in "
                f"{self.heads} heads cannot be trained. Steps and scenes are 1 or more, divisions leave no rest, and "
                "some patches stay. Change the recipe."
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step.

        Examples
        --------
        >>> recipe = Recipe(steps=1000, warmup_steps=100, decay=0.5)
        >>> [round(recipe.rate(step), 6) for step in (0, 99, 400, 750, 999)]
        [1e-05, 0.001, 0.001, 0.0005, 2e-06]

        """
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.steps - self.falls_from())
        return self.learning_rate * min(1.0, rising, falling)

    def falls_from(self) -> int:
        """Return the step from which the learning rate falls; up to it a longer or shorter run would be the same."""
        return round(self.steps * (1 - max(self.decay, self.whole)))

    def architecture(self) -> dict[str, Any]:
        """Return the keyword arguments of timm's VisionTransformer."""
        return {
            "img_size": self.size_px,
            "patch_size": self.patch_px,
            "embed_dim": self.width,
            "depth": self.layers,
            "num_heads": self.heads,
            "num_classes": len(things()),
        }


def build(recipe: Recipe) -> VisionTransformer:
    """Return the untrained model of a recipe. Its classes begin as rare as they are."""
    torch.manual_seed(recipe.seed)
    model = VisionTransformer(**recipe.architecture())
    rare = 2 / len(things())
    torch.nn.init.constant_(model.get_classifier().bias, float(np.log(rare / (1 - rare))))
    return model


def normalized(pixels: NDArray[np.uint8]) -> Tensor:
    """Return pictures [sample, row, col, rgb] as the model takes them.

    Examples
    --------
    >>> normalized(np.zeros((1, 2, 2, 3), np.uint8)).shape
    torch.Size([1, 3, 2, 2])

    """
    shown = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32)
    return (shown / 255 - MEAN) / STD


def save_weights(state: Mapping[str, Tensor], path: Path, *, recipe: Recipe, step: int) -> None:
    """Write weights in float16 with what is needed to use them; the file is there whole or not at all."""
    told = {
        "architecture": json.dumps(recipe.architecture()),
        "classes": json.dumps([each.noun for each in things()]),
        "mean_std": json.dumps([MEAN, STD]),
        "recipe": json.dumps(asdict(recipe)),
        "steps": str(step),
    }
    beside = path.with_name(f".{path.name}.part")
    save_file({name: value.to(torch.float16).contiguous() for name, value in state.items()}, beside, metadata=told)
    beside.chmod(0o644)  # safetensors makes a file that only its owner can read
    beside.replace(path)


def load_weights(path: Path) -> VisionTransformer:
    """Return the model of a file that `save_weights` wrote, in float32 and evaluation mode.

    Raises
    ------
    FormatError
        The file is not whole or not such a file.

    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
            model = VisionTransformer(**json.loads(told["architecture"]))
            model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except Exception as problem:  # safetensors raises its own, torch a RuntimeError
        raise FormatError(
            f"{path} does not hold weights: {type(problem).__name__}. It is a safetensors file that train.py wrote. "
            "Train again, or name another file."
        ) from problem
    return model.eval()

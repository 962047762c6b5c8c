"""The model that is trained: a timm VisionTransformer, as anyone would build it, and its weights as a folder.

A recipe says all that the weights follow from: architecture, data, optimizer and seed. Weights are written as timm's
own kind of folder, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` opens them without this project:
`model.safetensors` in float16, whose header holds the recipe, and `config.json` with the architecture, the class names
in order, and how pixels are normalized.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from assets.training.registries import Split
from assets.training.things import things
from mmattn.errors import FormatError, InputError

ARCHITECTURE = "vit_tiny_patch16_224"
"""timm's name that the model's own sizes are given to."""

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
    learning_rate, muon_rate, weight_decay, warmup_steps, decay
        AdamW's rate and Muon's. Both are constant after the warm-up and fall to zero in the last share `decay` of the
        steps.
    patch_dropout, whole
        The share of patches that a picture loses in training, and the last share of the steps without that.
    singles
        How many steps, at first, with one thing in a scene.
    shards
        Parts of a step's scenes that are learned from at the same time, each by one thread.
    ema
        How much of the averaged weights stays at each step. The average is what is evaluated and written.

    """

    seed: int = 1
    split: Split = "train"
    clutter: bool = True
    steps: int = 8000
    batch: int = 64
    size_px: int = 112
    patch_px: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 3
    learning_rate: float = 1e-3
    muon_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay: float = 0.35
    patch_dropout: float = 0.5
    whole: float = 0.1
    singles: int = 150
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

    def times(self, name: str) -> float:
        """Return how many times the learning rate a weight moves with."""
        return 1.0

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
    model = timm.create_model(ARCHITECTURE, **recipe.architecture())
    assert isinstance(model, VisionTransformer)
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


def save_weights(state: Mapping[str, Tensor], folder: Path, *, recipe: Recipe, step: int) -> None:
    """Write weights in float16 into a folder as timm reads it; the weights are there whole or not at all."""
    write_weights(state, folder, config=("config.json", _config(recipe)), recipe=recipe, step=step)


def write_weights(
    state: Mapping[str, Tensor], folder: Path, *, config: tuple[str, str], recipe: Recipe, step: int
) -> None:
    """Write weights in float16, their recipe in the header, and beside them a config (its name and its text)."""
    folder.mkdir(parents=True, exist_ok=True)
    name, text = config
    _write(folder / name, lambda beside: beside.write_text(text, encoding="utf-8"))
    told = {"format": "pt", "recipe": json.dumps(asdict(recipe)), "steps": str(step)}
    halves = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    _write(folder / "model.safetensors", lambda beside: save_file(halves, beside, metadata=told))


def load_weights(folder: Path) -> VisionTransformer:
    """Return the model that `save_weights` wrote, in float32 and evaluation mode.

    Raises
    ------
    FormatError
        The folder does not hold such a model, or not all of it.

    """
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert isinstance(model, VisionTransformer)
    except Exception as problem:  # safetensors raises its own, torch a RuntimeError, timm an assertion
        raise FormatError(
            f"{folder} does not hold a model: {type(problem).__name__}. It is a folder that train.py wrote, with "
            "config.json and model.safetensors. Train again, or name another folder."
        ) from problem
    return model.eval()


def _config(recipe: Recipe) -> str:
    """Return what timm's `local-dir:` reads beside the weights."""
    args = recipe.architecture()
    size = {"input_size": [3, recipe.size_px, recipe.size_px], "fixed_input_size": True, "crop_pct": 1.0}
    pixels = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic"}
    modules = {"num_classes": len(things()), "first_conv": "patch_embed.proj", "classifier": "head"}
    told = {
        "architecture": ARCHITECTURE,
        "model_args": args,
        "num_classes": len(things()),
        "num_features": recipe.width,
        "label_names": [each.noun for each in things()],
        "pretrained_cfg": size | pixels | modules | {"license": "apache-2.0"},
    }
    return json.dumps(told, indent=1) + "\n"


def _write(path: Path, put: Callable[[Path], object]) -> None:
    beside = path.with_name(f".{path.name}.part")
    put(beside)
    beside.chmod(0o644)  # safetensors makes a file that only its owner can read
    beside.replace(path)

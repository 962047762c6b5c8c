"""How each family lays a picture into its tower and its prompt: one function a family.

    llava     one view; a token a patch, row by row

Each takes the views' geometries, as they were measured, and the model, and returns a `Seen`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..pixels import Geometry
from .seen import Seen, View, whole

#: Says what became of one picture: from where its views' pixels lie, for a model.
Lay = Callable[[Sequence[Geometry], nn.Module], Seen]


def first_image(encoded: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the only view of a picture."""
    return [encoded["pixel_values"][0].float().numpy()]


def llava(geometries: Sequence[Geometry], model: nn.Module) -> Seen:
    """Llava: the tower's patches in their order, with its class token where features are taken in full."""
    return whole(_view(geometries[0], model=model), special=kept_special(model))


def kept_special(model: nn.Module) -> tuple[str, ...]:
    """Return the roles of the tower's own tokens that go on into the prompt."""
    config: Any = model.config
    full = getattr(config, "vision_feature_select_strategy", "default") == "full"
    return ("image_cls",) * (special_count(model) if full else 0)


def special_count(model: nn.Module) -> int:
    """Return how many tokens of its own the tower has: a class token or none."""
    names = (name.rsplit(".", 1)[-1] for name, _ in model.named_parameters())
    return int(any(name in ("class_embedding", "cls_token") for name in names))


def _view(geometry: Geometry, *, model: nn.Module, name: str = "image") -> View:
    config: Any = model.config
    patch = int(config.vision_config.patch_size)
    width, height = geometry.model_px
    return View(name=name, geometry=geometry, rows=height // patch, cols=width // patch, patch_px=patch)

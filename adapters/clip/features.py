"""What the two features of a model of two towers have in common, whichever library it is from.

Each tower runs by itself, so that one picture can be held against many texts and runs once. Nothing is
detached: where gradients are on, they lead from a logit to every attention of both towers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis

_WORDS = ("content", "continuation", "blank")


def logits_per_image(
    model: nn.Module, *, image: Float[Tensor, "picture dim"], text: Float[Tensor, "text dim"]
) -> Float[Tensor, "picture text"]:
    """Return the model's own logits of features: their cosine by its learned scale, and its bias where it has one."""
    tower: Any = model
    logits: Tensor = image @ text.T * tower.logit_scale.exp()
    bias: Tensor | None = getattr(model, "logit_bias", None)
    return logits if bias is None else logits + bias


def said(axes: Sequence[Axis], *, length: int) -> Bool[Tensor, "text token"]:
    """Return which of the first `length` tokens of each text are pieces of the user's words."""
    return torch.tensor([[role in _WORDS for role in axis.roles[:length]] for axis in axes])


def not_prepared(what: str, argument: str) -> InputError:
    """Return the error for features that were asked of what was not given."""
    return InputError(
        f"No {what} was prepared, so its tower has no features. Both are compared. Prepare it with {argument}=."
    )

"""The two features of an open_clip model, and the logit that compares them.

Each tower by itself, so that one picture can be held against many texts and runs once. Nothing is
detached: where gradients are on, they lead from a logit to every attention of both towers.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import Prepared

from .open_clip_layers import PairFacts
from .open_clip_words import text_tower

_WORDS = ("content", "continuation", "blank")


def image_features(model: nn.Module, prepared: Prepared) -> Float[Tensor, "picture dim"]:
    """Return the features of the pictures that `adapter.prepare` made ready, each of length one.

    Raises
    ------
    InputError
        No picture was prepared.
    """
    if prepared.facts.pixels is None:
        raise _nothing("picture", "image")
    tower: Any = model
    features: Tensor = tower.encode_image(prepared.facts.pixels, normalize=True)
    return features.flatten(1)  # those of a pool with one query stand in a dimension of its own


def text_features(model: nn.Module, prepared: Prepared, *, blank: bool = False) -> Float[Tensor, "text dim"]:
    """Return the features of the texts that `adapter.prepare` made ready, each of length one.

    Parameters
    ----------
    blank
        With padding in place of every piece of a word, between the tokens that the tokenizer adds.

    Raises
    ------
    InputError
        No text was prepared.
    """
    if prepared.facts.ids is None:
        raise _nothing("text", "text")
    tower: Any = model
    ids = _blanked(model, prepared.facts) if blank else prepared.facts.ids
    features: Tensor = tower.encode_text(ids, normalize=True)
    return features


def logits_per_image(
    model: nn.Module, *, image: Float[Tensor, "picture dim"], text: Float[Tensor, "text dim"]
) -> Float[Tensor, "picture text"]:
    """Return the model's own logits of features: their cosine by its learned scale, and its bias where it has one."""
    tower: Any = model
    logits: Tensor = image @ text.T * tower.logit_scale.exp()
    bias: Tensor | None = getattr(model, "logit_bias", None)
    return logits if bias is None else logits + bias


def _blanked(model: nn.Module, facts: PairFacts) -> Int[Tensor, "text token"]:
    """Return the rows of texts with the tower's own padding for words."""
    assert facts.ids is not None
    tower: Any = text_tower(model)
    pad = tower.config.pad_token_id if isinstance(tower, HFTextEncoder) else getattr(tower, "pad_id", 0)
    length = facts.ids.shape[1]  # a class token that the tower appends stands on the axis alone
    said = torch.tensor([[role in _WORDS for role in axis.roles[:length]] for axis in facts.texts])
    return facts.ids.masked_fill(said.to(facts.ids.device), int(pad or 0))


def _nothing(what: str, argument: str) -> InputError:
    return InputError(
        f"No {what} was prepared, so its tower has no features. Both are compared. Prepare it with {argument}=."
    )

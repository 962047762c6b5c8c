"""The two features of an open_clip model; see `features.py`."""

from typing import Any

from jaxtyping import Float, Int
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from mmattn.interception.protocol import Prepared

from .features import not_prepared, said
from .open_clip_layers import PairFacts
from .open_clip_words import text_tower


def image_features(model: nn.Module, prepared: Prepared) -> Float[Tensor, "picture dim"]:
    """Return the features of the pictures that `adapter.prepare` made ready, each of length one.

    Raises
    ------
    InputError
        No picture was prepared.
    """
    if prepared.facts.pixels is None:
        raise not_prepared("picture", "image")
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
        raise not_prepared("text", "text")
    tower: Any = model
    ids = _blanked(model, prepared.facts) if blank else prepared.facts.ids
    features: Tensor = tower.encode_text(ids, normalize=True)
    return features


def _blanked(model: nn.Module, facts: PairFacts) -> Int[Tensor, "text token"]:
    """Return the rows of texts with the tower's own padding for words."""
    assert facts.ids is not None
    tower: Any = text_tower(model)
    pad = tower.config.pad_token_id if isinstance(tower, HFTextEncoder) else getattr(tower, "pad_id", 0)
    words = said(facts.texts, length=facts.ids.shape[1])  # a class token that the tower appends has no id
    return facts.ids.masked_fill(words.to(facts.ids.device), int(pad or 0))

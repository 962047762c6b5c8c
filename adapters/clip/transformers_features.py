"""The two features of a two-tower model of transformers; see `features.py`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import ModelError
from mmattn.interception.protocol import Prepared

from .features import not_prepared, said
from .transformers_text import TextFacts


def image_features(model: nn.Module, prepared: Prepared) -> Float[Tensor, "picture dim"]:
    """Return the features of the pictures that `adapter.prepare` made ready, each of length one.

    Raises
    ------
    InputError
        No picture was prepared.
    ModelError
        A model without two towers.
    """
    _check_apart(model, prepared)
    if prepared.facts.picture is None:
        raise not_prepared("picture", "image")
    tower: Any = model
    return _unit(tower.get_image_features(**prepared.facts.pixels).pooler_output)


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
    ModelError
        A model without two towers.
    """
    _check_apart(model, prepared)
    if prepared.facts.text is None:
        raise not_prepared("text", "text")
    tower: Any = model
    inputs = _blanked(model, prepared.facts.text) if blank else prepared.facts.text.inputs
    return _unit(tower.get_text_features(**inputs).pooler_output)


def _blanked(model: nn.Module, text: TextFacts) -> dict[str, Tensor]:
    """Return the texts' inputs with padding for words; where the tokenizer has none, with its first piece."""
    config: Any = model.config
    pad = text.pad if text.pad is not None else getattr(config.text_config, "pad_token_id", None) or 0
    ids = text.inputs["input_ids"]
    words = said(text.axes, length=ids.shape[1])
    return {**text.inputs, "input_ids": ids.masked_fill(words.to(ids.device), pad)}


def _check_apart(model: nn.Module, prepared: Prepared) -> None:
    if not prepared.facts.form.apart:
        raise ModelError(
            f"The words of {type(model).__name__} attend to the picture, so neither has features of its own that are "
            'compared at the end. Two towers have. Read its cross-attention: maps.select(stream=..., kind="cross").'
        )


def _unit(features: Float[Tensor, "sample dim"]) -> Float[Tensor, "sample dim"]:
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / length

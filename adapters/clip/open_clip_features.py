"""The two features of an open_clip model; see `features.py`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from jaxtyping import Float, Int
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.nn import functional

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


def text_features(
    model: nn.Module, prepared: Prepared, *, blank: bool = False, brief: bool = False
) -> Float[Tensor, "text dim"]:
    """Return the features of the texts that `adapter.prepare` made ready, each of length one.

    Parameters
    ----------
    blank
        With padding in place of every piece of a word, between the tokens that the tokenizer adds.
    brief
        Without the positions behind the longest text's end, where every token looks back alone and the feature is
        read at the end: nobody reads those.

    Raises
    ------
    InputError
        No text was prepared.
    """
    if prepared.facts.ids is None:
        raise not_prepared("text", "text")
    tower: Any = model
    ids = _blanked(model, prepared.facts) if blank else prepared.facts.ids
    with _up_to(text_tower(model), _used(prepared.facts)) if brief else nullcontext():
        features: Tensor = tower.encode_text(ids, normalize=True)
    return features


def _used(facts: PairFacts) -> int:
    """Return how many tokens the longest text has, padding aside."""
    return max(1 + max(n for n, role in enumerate(axis.roles) if role != "pad") for axis in facts.texts)


@contextmanager
def _up_to(tower: Any, count: int) -> Iterator[None]:
    """Let the blocks of a text tower see the first tokens alone, where the others change nothing; zeros stand there."""
    pool = str(getattr(tower, "pool_type", getattr(tower, "text_pool_type", "")))
    whole = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    mask = getattr(tower, "attn_mask", None)
    if isinstance(tower, HFTextEncoder) or mask is None or whole or pool not in ("argmax", "eos"):
        yield
        return

    def shorter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (args[0][:, :count], *args[1:]), {**kwargs, "attn_mask": mask[:count, :count]}

    def longer(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return functional.pad(output, (0, 0, 0, len(mask) - count))

    handles = [
        tower.transformer.register_forward_pre_hook(shorter, with_kwargs=True),
        tower.transformer.register_forward_hook(longer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blanked(model: nn.Module, facts: PairFacts) -> Int[Tensor, "text token"]:
    """Return the rows of texts with the tower's own padding for words."""
    assert facts.ids is not None
    tower: Any = text_tower(model)
    pad = tower.config.pad_token_id if isinstance(tower, HFTextEncoder) else getattr(tower, "pad_id", 0)
    words = said(facts.texts, length=facts.ids.shape[1])  # a class token that the tower appends has no id
    return facts.ids.masked_fill(words.to(facts.ids.device), int(pad or 0))

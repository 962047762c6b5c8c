"""The words of a model of pictures and texts of transformers: tokens with the characters that they stand for.

What the tokenizer returns is what the model gets, padding and mask included: SigLIP's towers are
padded to their full length and look at the padding too, since their features are those of the last
token; CLIP's padding stands behind the end token, which never looks there.

A text that is longer than the context is cut, as the model's own processor cuts it, and a warning
says which words are not seen.
"""

import string
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.media import Words
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens, split_words

from ..spans import Fold, Span, from_offsets, from_pieces
from ..vit.transformers_open import takes
from .unknown import warn_of_unknown

# In this order: XLM-RoBERTa's <s> is both its first token and its class token.
_ROLES = {
    "pad_token_id": "pad",
    "cls_token_id": "cls",
    "sep_token_id": "sep",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
}

# Models, or text towers, whose positions count from behind the padding token's.
_OF_ROBERTA = ("altclip", "bridgetower", "camembert", "roberta", "xlm-roberta")


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFacts:
    """Texts as the model gets them.

    Parameters
    ----------
    inputs
        What the text tower is called with, by name.
    axes
        One a sample.
    real
        Which tokens are no padding.
    pad
        The tokenizer's padding; None where it is not known.
    """

    inputs: Mapping[str, Tensor]
    axes: tuple[Axis, ...]
    real: Bool[Tensor, "sample token"]
    pad: int | None = None


def texts_of(given: Any) -> tuple[Words, ...]:
    """Return the texts that the user passed: a string, Words, or several.

    Raises
    ------
    InputError
        Something else, or a text without a letter.
    """
    listed = [given] if isinstance(given, str | Words) or not isinstance(given, Sequence) else list(given)
    if not listed or not all(isinstance(one, str | Words) for one in listed):
        raise InputError(
            f"The text is {type(given).__name__} {str(given)[:40]!r}. It should be a string, or several. Pass text=..."
        )
    texts = tuple(one if isinstance(one, Words) else Words(text=one) for one in listed)
    for number, words in enumerate(texts):
        if not words.text.strip():
            which = f"Text {number}" if len(texts) > 1 else "The text"
            raise InputError(f"{which} is empty. It should hold at least one letter. Pass another text.")
        if any("\ud800" <= letter <= "\udfff" for letter in words.text):
            which = f"Text {number}" if len(texts) > 1 else "The text"
            raise InputError(
                f"{which} holds half a letter (a lone surrogate, from bytes that are no UTF-8): {words.text[:40]!a}. "
                "It should hold whole letters. Pass text that was read as UTF-8."
            )
    return texts


def encoded_texts(texts: Sequence[Words], *, tokenizer: Any, model: nn.Module, full_length: bool = False) -> TextFacts:
    """Return the texts as the tokenizer cuts them for the model, padded to the longest or to the whole context.

    Warns
    -----
    UserWarning
        A text is longer than the context, or has words that the tokenizer does not know: they are named.

    Raises
    ------
    InputError
        The tokenizer does not say which characters its pieces stand for.
    """
    fast = bool(getattr(tokenizer, "is_fast", False))
    if fast and len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers 5 makes one where none was saved
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} knows no word: no vocabulary was saved beside the model. "
            "A text needs the tokenizer that the model was trained with. Pass a processor that has it."
        )
    if not fast and not hasattr(tokenizer, "sp_model"):
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} does not say which characters its pieces stand for. "
            "A tokenizer of the tokenizers library does, and of a SentencePiece one they are found. "
            "Pass a processor with one of those."
        )
    limit = context_length(model, tokenizer)
    encoded = tokenizer(
        [words.text for words in texts],
        padding="max_length" if full_length else True,
        truncation=True,
        max_length=limit,
        return_tensors="pt",
        return_offsets_mapping=fast,
        return_special_tokens_mask=True,
        return_attention_mask=True,
        verbose=False,
    )
    axes = tuple(_axis(words.text, tokenizer, encoded, sample) for sample, words in enumerate(texts))
    for words, axis in zip(texts, axes, strict=True):
        _warn_of_cut(words.text, axis, tokenizer=tokenizer, limit=limit, named=type(model).__name__)
    warn_of_unknown(axes, encoded["input_ids"], tokenizer=tokenizer)
    names = [name for name in tokenizer.model_input_names if name in encoded and takes(model, name)]
    facts = _facts(model, {name: encoded[name] for name in names}, axes=axes)
    return replace(facts, pad=tokenizer.pad_token_id)


def given_texts(inputs: Mapping[str, Tensor], *, model: nn.Module) -> TextFacts:
    """Return the user's own tensors, of which no characters are known."""
    ids = inputs["input_ids"]
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    axes = tuple(Positions(roles=tuple("content" if seen else "pad" for seen in row)) for row in real.tolist())
    return _facts(model, inputs, axes=axes)


def context_length(model: nn.Module, tokenizer: Any) -> int:
    """Return how many tokens the text tower reads at most, those that the tokenizer adds among them."""
    config: Any = model.config
    settings = getattr(config, "text_config", config)
    limit = int(settings.max_position_embeddings)
    if config.model_type in ("altclip", "bridgetower") or settings.model_type in (
        "roberta",
        "xlm-roberta",
        "camembert",
    ):
        limit -= settings.pad_token_id + 1  # RoBERTa's positions count from behind the padding token's
    return min(limit, int(tokenizer.model_max_length))


def _facts(model: nn.Module, inputs: Mapping[str, Tensor], *, axes: tuple[Axis, ...]) -> TextFacts:
    device = next(model.parameters()).device
    return TextFacts(
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        axes=axes,
        real=torch.tensor([[role != "pad" for role in axis.roles] for axis in axes]),
    )


def _axis(text: str, tokenizer: Any, encoded: Any, sample: int) -> Tokens:
    ids = encoded["input_ids"][sample].tolist()
    special = encoded["special_tokens_mask"][sample].tolist()
    real = encoded["attention_mask"][sample].tolist()
    roles = [
        "pad" if not seen else role_of(token, tokenizer) if added else "content"
        for token, added, seen in zip(ids, special, real, strict=True)
    ]
    spans = _spans(text, tokenizer, encoded, sample, own=[role == "content" for role in roles])
    return Tokens.of(text, pieces=tokenizer.convert_ids_to_tokens(ids), spans=spans, roles=roles)


def _spans(text: str, tokenizer: Any, encoded: Any, sample: int, *, own: Sequence[bool]) -> list[Span | None]:
    """Return the characters of each token of the text's own, as the tokenizer says, or along what it prints."""
    if "offset_mapping" in encoded:
        found = from_offsets(text, [tuple(pair) for pair in encoded["offset_mapping"][sample].tolist()])
        return [span if owned else None for span, owned in zip(found, own, strict=True)]
    pieces = tokenizer.tokenize(text)[: sum(own)]  # printed as they stand in the text, also those without an id
    walked = iter(from_pieces(text, pieces, style="sentencepiece", fold=canonical(tokenizer)))
    return [next(walked) if owned else None for owned in own]


def canonical(tokenizer: Any) -> Fold:
    """Return what a tokenizer does to a character first: SigLIP's leaves punctuation out and writes small letters."""
    if not hasattr(tokenizer, "canonicalize_text"):
        return lambda character: unicodedata.normalize("NFKC", character)
    lower = bool(getattr(tokenizer, "do_lower_case", True))

    def fold(character: str) -> str:
        written = unicodedata.normalize("NFKC", "" if character in string.punctuation else character)
        return written.lower() if lower else written

    return fold


def role_of(token: int, tokenizer: Any) -> str:
    """Return the role of a token that the tokenizer added: `cls`, `eos`, ...; `special` for one without a name."""
    named = (role for attribute, role in _ROLES.items() if getattr(tokenizer, attribute, None) == token)
    return next((role for role in named if role != "pad"), "special")


def _warn_of_cut(text: str, axis: Tokens, *, tokenizer: Any, limit: int, named: str) -> None:
    count = len(tokenizer(text, verbose=False)["input_ids"])
    if count <= limit:
        return
    seen = int(axis.places()[:, 1].max()) if len(axis.content) else 0
    cut = [text[start:end] for start, end in split_words(text) if end > seen]
    more = f" and {len(cut) - 8} more" if len(cut) > 8 else ""
    warnings.warn(
        f"The text has {count} tokens and {named} reads {limit}: it does not see {', '.join(cut[:8])}{more}. A text "
        "that fits is read whole. Shorten it, or attend its parts one by one.",
        stacklevel=2,
    )

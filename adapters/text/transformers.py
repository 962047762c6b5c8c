"""Text encoders of transformers: BERT and its family, between the pieces of the user's text.

One self-attention a layer, all in stream `text`: every piece may look at every piece, padding
excepted. The tokenizer says which characters a piece stands for (`adapters/spans.py`), so a place
is always a span of the text as the user wrote it, whatever the model made of its case and accents.

The models run as they are loaded (fused attention); nothing asks for `output_attentions`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError
from mmattn.interception.blocks import head_count, to_blocks
from mmattn.interception.calls import Call, Emit
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.media import Words
from mmattn.schema.sets import Positions
from mmattn.schema.tokens import Tokens

from ..spans import from_offsets
from .transformers_open import FAMILIES, is_encoder, open_model, tokenizer_of

# In this order: RoBERTa's <s> is both its first token and its class token.
_ROLES = {
    "pad_token_id": "pad",
    "cls_token_id": "cls",
    "sep_token_id": "sep",
    "bos_token_id": "bos",
    "eos_token_id": "eos",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFacts:
    """What the axes of a text need: one axis a sample, and which keys are no padding."""

    axes: tuple[Axis, ...]
    real: Bool[Tensor, "sample token"]


class TransformersText:
    """Adapter for encoders of the BERT family, with or without a head."""

    name = "transformers.text"
    default_stream = "text"

    def claims(self, model: nn.Module) -> bool:
        """Whether this is an encoder of the family: no decoder, no cross-attention."""
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            return False
        config = model.config
        return config.model_type in FAMILIES and not getattr(config, "is_decoder", False)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names an encoder of the family."""
        return is_encoder(config)

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a folder with config, safetensors and tokenizer, or a name on the Hugging Face hub.

        Parameters
        ----------
        name
            A folder, or `OWNER/NAME`: taken from the hub's local cache where it is there.
        weights
            The folder that the catalog found; then `name` is for captions only.
        """
        return open_model(name, weights=weights)

    def models(self) -> Iterable[ModelFamily]:
        """The family, one line for the names that are opened through the catalog and one for the hub's."""
        return [
            ModelFamily(
                name="hf:OWNER/NAME",
                what="text encoders of the BERT family: " + ", ".join(FAMILIES),
                how_exact="exact: every layer, head and token",
                source="a folder, or the Hugging Face hub (safetensors only)",
            )
        ]

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Tokenize one text or several; a text that is too long is refused, never cut.

        Parameters
        ----------
        media
            `text`: a string, Words, or a sequence of them; or `inputs`: the user's own tensors, with
            `input_ids` and perhaps `attention_mask`, which say nothing about characters.
        processor
            The tokenizer; None takes the one that was saved with the model, if it is on this machine.
        """
        if options is not None:
            raise InputError(f"Options {options!r} were given. Text encoders have none. Leave options= out.")
        others = [kind for kind in ("image", "audio", "video", "graph", "generate") if getattr(media, kind) is not None]
        if others:
            raise InputError(
                f"{type(model).__name__} was given {', '.join(others)}. It reads text and writes none. "
                "Pass text=, or open a model that looks at pictures, such as mmattn:dinov2-small."
            )
        if media.inputs is not None:
            return _prepared_inputs(model, media.inputs)
        texts = _texts(media.text)
        tokenizer = processor if processor is not None else tokenizer_of(model)
        encoded = _encode(tokenizer, texts)
        _check_length(model, encoded["input_ids"].shape[1], texts)
        axes = tuple(_axis(words.text, tokenizer, encoded, sample) for sample, words in enumerate(texts))
        return _prepared(
            model,
            {name: encoded[name] for name in tokenizer.model_input_names if name in encoded},
            axes=axes,
            media=texts,
            how=f"cut into {encoded['input_ids'].shape[1]} tokens by {type(tokenizer).__name__}",
        )

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No point of interception beyond the usual ones."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Say that every call is self-attention between the tokens."""
        facts = prepared.facts
        return [_layer(call, facts) for call in calls if call.kind == "token"]

    def score(self, output: Any, target: Any) -> Tensor:
        """Return the logit of a class (an index), or of a vocabulary entry at a token: `(token, entry)`."""
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ModelError(
                f"The output {type(output).__name__} has no logits. A target needs a model with a head. "
                "Open one for classification or for masked words."
            )
        chosen = target if isinstance(target, tuple) else (target,)
        if len(chosen) != logits.dim() - 1 or any(
            not isinstance(i, int) or not -n <= i < n for i, n in zip(chosen, logits.shape[1:], strict=False)
        ):
            raise InputError(
                f"The target {target!r} names no logit: their shape is {tuple(logits.shape)}, samples first. "
                "A target is one index for each dimension after that. Pass a class, or (token, vocabulary entry)."
            )
        scores: Tensor = logits[(slice(None), *chosen)]
        return scores.sum()


adapter = TransformersText()


def _texts(given: Any) -> tuple[Words, ...]:
    listed = [given] if isinstance(given, str | Words) or not isinstance(given, Sequence) else list(given)
    if not listed or not all(isinstance(one, str | Words) for one in listed):
        raise InputError(
            f"The text is {type(given).__name__} {str(given)[:40]!r}. It should be a string, or several. Pass text=..."
        )
    texts = tuple(one if isinstance(one, Words) else Words(text=one) for one in listed)
    for words in texts:
        if not words.text.strip():
            raise InputError("The text is empty. It should hold at least one letter. Pass another text.")
    return texts


def _encode(tokenizer: Any, texts: Sequence[Words]) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} does not say which characters its pieces stand for. "
            "A fast tokenizer does. Pass processor=AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    several = len(texts) > 1
    return tokenizer(
        [words.text for words in texts],
        padding=several,
        return_tensors="pt",
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=True,
        verbose=False,
    )


def _check_length(model: nn.Module, length: int, texts: Sequence[Words]) -> None:
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        limit -= (config.pad_token_id or 0) + 1  # their positions count from behind the padding token's
    if limit is not None and length > limit:
        longest = max(len(words.text) for words in texts)
        raise InputError(
            f"The text of {longest} characters has {length} tokens. This model takes {limit}. Pass a shorter text, or "
            "its parts one by one."
        )


def _axis(text: str, tokenizer: Any, encoded: Any, sample: int) -> Tokens:
    ids = encoded["input_ids"][sample].tolist()
    special = encoded["special_tokens_mask"][sample].tolist()
    spans = from_offsets(text, [tuple(pair) for pair in encoded["offset_mapping"][sample].tolist()])
    real = encoded["attention_mask"][sample].tolist()
    roles = [
        "pad" if not seen else _role(token, tokenizer) if added else "content"
        for token, added, seen in zip(ids, special, real, strict=True)
    ]
    return Tokens.of(
        text,
        pieces=tokenizer.convert_ids_to_tokens(ids),
        spans=[None if role != "content" else span for role, span in zip(roles, spans, strict=True)],
        roles=roles,
    )


def _role(token: int, tokenizer: Any) -> str:
    named = (role for attribute, role in _ROLES.items() if getattr(tokenizer, attribute, None) == token)
    return next(named, "special")


def _prepared_inputs(model: nn.Module, inputs: Any) -> Prepared:
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise InputError(
            f"The prepared inputs are {type(inputs).__name__}. They should be what a tokenizer returns with "
            'return_tensors="pt": a mapping with "input_ids". Pass that, or text=...'
        )
    ids: Tensor = inputs["input_ids"]
    real: Tensor = inputs.get("attention_mask", torch.ones_like(ids))
    axes: tuple[Axis, ...] = tuple(
        Positions(roles=tuple("content" if seen else "pad" for seen in row)) for row in real.bool().tolist()
    )
    return _prepared(model, dict(inputs), axes=axes, media=(), how=f"{ids.shape[1]} tokens, prepared by the user")


def _prepared(
    model: nn.Module, tensors: Mapping[str, Tensor], *, axes: tuple[Axis, ...], media: tuple[Words, ...], how: str
) -> Prepared:
    device = next(model.parameters()).device
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    real = torch.tensor([[role != "pad" for role in axis.roles] for axis in axes])
    return Prepared(
        run=lambda: model(**moved),
        inputs=tuple(moved.values()),
        media=media,
        facts=TextFacts(axes=axes, real=real),
        preprocessing=how,
        readout="cls" if type(model).__name__.endswith("ForSequenceClassification") else "",
    )


def _layer(call: Call, facts: TextFacts) -> AttentionLayer:
    storage = to_blocks(call, mask=facts.real[:, None, None, :].to(_device(call)))
    blocks, _, queries, keys = storage.source.shape
    samples, tokens = facts.real.shape
    if (blocks, queries, keys) != (samples, tokens, tokens):
        raise ModelError(
            f"The attention {call.module} joins {blocks} x {queries} queries and {keys} keys, but the text has "
            f"{samples} x {tokens} tokens. Encoders of this family join all tokens with all. Attend to the "
            "text encoder alone, or use mmattn.capture, which knows positions only."
        )
    return AttentionLayer(
        name=call.module,
        query=facts.axes,
        key=facts.axes,
        heads=head_count(call),
        storage=(storage,),
        stream="text",
        error=call.error,
    )


def _device(call: Call) -> torch.device:
    tensor = call.q if call.q is not None else call.weights
    return torch.device("cpu") if tensor is None else tensor.device

"""What a decoder of one stream writes behind its prompt, and the sequence of both: its parts and `answer`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn

from mmattn.interception.protocol import Prepared

from ..clip.transformers_row import words_alone
from ..clip.transformers_text import TextFacts
from ..vit.pictures import runner
from ..writing import continued_inputs, followed, written_by

if TYPE_CHECKING:
    from .transformers import SequenceFacts

# What a written token is, where a class tells the prompt's kinds of tokens apart and written ones are not 0.
_KINDS: Mapping[str, Mapping[str, int]] = {"paligemma": {"token_type_ids": 1}}


def write(model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
    """Let the model write up to `count` tokens behind its prompt, greedily."""
    facts: SequenceFacts = prepared.facts
    return written_by(model, facts.inputs, count=count)


def continued(model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
    """Return the prompt with what was written behind it."""
    facts: SequenceFacts = prepared.facts
    config: Any = model.config
    inputs = continued_inputs(facts.inputs, written, kinds=_KINDS.get(config.model_type))
    axes = followed(facts.rows, written, tokenizer=facts.tokenizer)
    text = TextFacts(inputs={"input_ids": inputs["input_ids"]}, axes=axes, real=words_alone(axes))

    def call(alive: nn.Module, _: Tensor) -> Any:
        return alive(**inputs)

    return replace(
        prepared,
        run=runner(model, inputs["pixel_values"], call=call),
        inputs=tuple(value for value in inputs.values() if isinstance(value, Tensor)),
        facts=replace(facts, inputs=inputs, text=text),
        preprocessing=f"{prepared.preprocessing}; {written.shape[1]} written",
    )

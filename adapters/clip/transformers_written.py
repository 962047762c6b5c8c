"""What a model with sides of its own writes (GIT, BLIP-2, Idefics, Idefics2, Mllama, Florence-2), and its axes.

A decoder goes on behind the prompt, or, beside an encoder that reads it, behind its own first token. The prompt's axes
stay as they are; the decoder's goes on with the written tokens, as the part `answer`. The whole sequence is then run
in one pass: some of these classes drive their decoder beside their own `forward`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mmattn.interception.protocol import Prepared
from mmattn.schema.axes import Axis

from ..vit.pictures import runner
from ..writing import continued_inputs, followed, written_by
from .transformers_sides import SidedFacts, SidedForm
from .transformers_text import TextFacts

_DECODER = "decoder"
_BEGUN = "decoder_input_ids"  # what a decoder beside an encoder has written so far

# Of each token of a prompt: which pictures it may look at. A written one looks at those of the last.
_PER_TOKEN = ("image_attention_mask", "cross_attention_mask")


def writes(model: nn.Module, form: Any) -> bool:
    """Whether a model writes behind its prompt, from left to right, in the decoder that its form names."""
    if not isinstance(form, SidedForm) or not any(joins.query == joins.key == _DECODER for joins in form.joins):
        return False
    can: Any = getattr(model, "can_generate", None)
    return can is not None and bool(can()) and hasattr(model, "generate")


def write(model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
    """Let the model write up to `count` tokens behind its prompt, greedily."""
    facts: SidedFacts = prepared.facts
    begun = facts.call.get(_BEGUN)
    given = {name: value for name, value in facts.call.items() if name != _BEGUN}
    return written_by(model, given, count=count, begun=begun)


def continued(model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
    """Return the prompt with what was written behind it."""
    facts: SidedFacts = prepared.facts
    if _BEGUN in facts.call:
        call = {**facts.call, _BEGUN: torch.cat([facts.call[_BEGUN], written], dim=1)}
    else:
        call = _longer(continued_inputs(facts.call, written), by=written.shape[1])

    def on(sides: Mapping[str, tuple[Axis, ...]]) -> dict[str, tuple[Axis, ...]]:
        if _DECODER not in sides:
            return dict(sides)
        axes = sides[_DECODER] * (len(written) if len(sides[_DECODER]) == 1 else 1)
        return {**sides, _DECODER: followed(axes, written, tokenizer=facts.tokenizer)}

    derived = facts.derived
    text = facts.text
    if text is not None:
        ids = torch.cat([text.inputs["input_ids"], written.to(text.inputs["input_ids"])], dim=1)
        text = TextFacts(inputs={"input_ids": ids}, axes=(), real=_behind(text.real, written))

    def run(alive: nn.Module, _: Tensor) -> Any:
        return alive(**call)

    return replace(
        prepared,
        run=runner(model, call["pixel_values"], call=run),
        inputs=tuple(value for value in call.values() if isinstance(value, Tensor)),
        facts=replace(
            facts,
            call=call,
            sides=on(facts.sides),
            derived=None if derived is None else lambda patches: on(derived(patches)),
            text=text,
            blind=None if facts.blind is None else _behind(facts.blind, written),
        ),
        preprocessing=f"{prepared.preprocessing}; {written.shape[1]} written",
    )


def _behind(said: Bool[Tensor, "sample token"], written: Int[Tensor, "sample more"]) -> Bool[Tensor, "sample both"]:
    """Return what is said of each token, with nothing of it said of those behind."""
    return torch.cat([said, torch.zeros_like(written, dtype=torch.bool, device=said.device)], dim=1)


def _longer(call: Mapping[str, Any], *, by: int) -> dict[str, Any]:
    """Return a call whose masks of pictures go on as for the last token."""
    more = {name: torch.cat([call[name], *[call[name][:, -1:]] * by], dim=1) for name in _PER_TOKEN if name in call}
    return {**call, **more}

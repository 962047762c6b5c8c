"""BLIP-2 and InstructBLIP: learned slots ask patches, and words ask slots.

    vision      patches ask patches
    qformer     slots ask slots (InstructBLIP and matching: slots and words together); every second layer,
                slots ask patches
    decoder     slots and words in one sequence, slots first; a word asks what stands before it
    text        where the language model has an encoder (T5): slots and words ask each other

No word attends to a patch: the slots have no place in the picture. A word's map over patches is its
row over the slots times the slots' rows over patches, and is said to be composed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined
from mmattn.schema.sets import Positions, Slots

from .transformers_forms import Joins
from .transformers_row import joined_row, row_axis, words_alone
from .transformers_sides import Built, SidedForm, Written

_SLOTS = "its tokens of the picture are slots, no patches"


def _matching(written: Written) -> Built:
    """Return the sides of image-text matching: the Q-Former takes slots and words together, slots first."""
    slots = _slots(written)
    real = written.real
    ids = written.ids
    if written.config.image_token_index is not None:
        skipped = written.config.num_query_tokens
        ids, real = ids[:, skipped:], real[:, skipped:]
    found = []
    for sample in range(written.samples):
        words = row_axis(written.text_of(sample), ids[sample], real=real[sample], tokenizer=written.tokenizer)
        found.append(_behind(slots, words))
    return Built(
        call={**written.inputs, "use_image_text_matching_head": True},
        sides={"slots": (slots,), "qformer": tuple(found)},
        pixels=written.inputs["pixel_values"],
    )


def _generating(written: Written) -> Built:
    """Return the sides of a model that writes: slots among the words of its language model."""
    slots = _slots(written)
    queries: tuple[Axis, ...] = (slots,)
    if "qformer_input_ids" in written.inputs:
        tokenizer = getattr(written.processor, "qformer_tokenizer", None)
        ids = written.inputs["qformer_input_ids"]
        real = written.inputs.get("qformer_attention_mask", torch.ones_like(ids)).bool()
        queries = tuple(
            _behind(slots, row_axis(written.text_of(n), ids[n], real=real[n], tokenizer=tokenizer))
            for n in range(written.samples)
        )
    call: dict[str, Any] = dict(written.inputs)
    sides: dict[str, tuple[Axis, ...]] = {"slots": (slots,), "qformer": queries, "decoder": _rows(written, slots)}
    scored: torch.Tensor | None = words_alone(sides["decoder"])
    if not written.config.use_decoder_only_language_model:
        call.setdefault("decoder_input_ids", first_of(written))
        sides |= {"text": sides["decoder"], "decoder": (written_so_far(call["decoder_input_ids"]),)}
        scored = None
    pixels = written.inputs["pixel_values"]
    return Built(call=call, sides=sides, pixels=pixels, notes=_notes(written), scored=scored)


def first_of(written: Written) -> torch.Tensor:
    """Return the token by which a decoder begins to write, for each sample."""
    config: Any = written.config
    settings = getattr(config, "text_config", config)
    start = settings.decoder_start_token_id
    start = settings.bos_token_id if start is None else start
    return torch.full((written.samples, 1), int(start), device=written.ids.device)


def written_so_far(ids: torch.Tensor) -> Positions:
    """Return the axis of what a decoder has written: its beginning, then positions."""
    return Positions(roles=("bos",) + ("content",) * (ids.shape[1] - 1))


def _slots(written: Written) -> Slots:
    return Slots.count(int(written.config.num_query_tokens))


def _behind(slots: Slots, words: Any) -> Joined:
    """Return slots and behind them words, in one sequence."""
    first = len(slots)
    where = [np.arange(first, first + len(words)), np.arange(first)]
    return Joined.of({"text": words, "image": slots}, tokens=where)


def _rows(written: Written, slots: Slots) -> tuple[Axis, ...]:
    places = (written.ids == written.config.image_token_id).cpu()
    return tuple(
        joined_row(
            written.text_of(n),
            written.ids[n],
            real=written.real[n],
            tokenizer=written.tokenizer,
            image=slots,
            at=np.flatnonzero(places[n].numpy()),
        )
        for n in range(written.samples)
    )


def _notes(written: Written) -> dict[str, str]:
    """Return what a caption says of the language model's attention, layer by layer."""
    prefix = "language_model."
    return {path: _SLOTS for path, _ in written.model.named_modules() if path.startswith(prefix)}


_QFORMER = (
    Joins(path=r"qformer\..*\.crossattention\.", stream="qformer", query="slots", key="vision", causal=False),
    Joins(path=r"qformer\.", stream="qformer", query="qformer", key="qformer", causal=False),
)
_WRITES = (
    *_QFORMER,
    Joins(path=r"language_model\.encoder\.", stream="text", query="text", key="text", causal=False),
    Joins(
        path=r"language_model\.decoder\..*(EncDecAttention|encoder_attn)",
        stream="decoder",
        query="decoder",
        key="text",
        causal=False,
    ),
    Joins(path=r"language_model\.", stream="decoder", query="decoder", key="decoder", causal=True),
)

QFORMERS: Mapping[str, SidedForm] = {
    "Blip2ForConditionalGeneration": SidedForm(joins=_WRITES, build=_generating),
    "Blip2ForImageTextRetrieval": SidedForm(joins=_QFORMER, build=_matching),
    "Blip2Model": SidedForm(joins=_WRITES, build=_generating),
    "InstructBlipForConditionalGeneration": SidedForm(joins=_WRITES, build=_generating),
    "InstructBlipModel": SidedForm(joins=_WRITES, build=_generating),
}

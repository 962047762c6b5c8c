"""Florence-2: the picture's features among the words of an encoder, and a decoder that asks both.

    vision      DaViT: patches ask those of their window, stage by stage (its attention between channels has no
                place in the picture and is left out by name)
    text        the encoder: a mean of the picture, its cells row by row, then words; all ask all
    decoder     what is written asks what was written before it, and the whole encoder

A task such as `<OD>` is written out by the processor ("Locate the objects ..."): the words are those.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmattn.errors import ModelError
from mmattn.schema.axes import Axis, PatchGrid

from .transformers_forms import Joins
from .transformers_qformer import first_of, written_so_far
from .transformers_row import joined_row
from .transformers_sides import Built, SidedForm, Written


def _florence(written: Written) -> Built:
    call: dict[str, Any] = dict(written.inputs)
    call.setdefault("decoder_input_ids", first_of(written))

    def derived(cells: tuple[Axis, ...]) -> dict[str, tuple[Axis, ...]]:
        grids = cells * (written.samples if len(cells) == 1 else 1)
        return {"text": tuple(_row(written, n, _behind_mean(grids[n])) for n in range(written.samples))}

    return Built(
        call=call,
        sides={"decoder": (written_so_far(call["decoder_input_ids"]),)},
        pixels=written.inputs["pixel_values"],
        derived=derived,
    )


def _row(written: Written, sample: int, grid: PatchGrid) -> Axis:
    text, processor = written.text_of(sample), written.processor
    if text is not None and hasattr(processor, "_construct_prompts"):  # a task's name becomes a sentence
        text = processor._construct_prompts(text)[0]
    places = (written.ids[sample] == written.config.image_token_id).cpu().numpy()
    return joined_row(
        text,
        written.ids[sample],
        real=written.real[sample],
        tokenizer=written.tokenizer,
        image=grid,
        at=np.flatnonzero(places),
    )


def _behind_mean(axis: Axis) -> PatchGrid:
    """Return the last stage's cells with the mean of all before them, as the projector orders them."""
    if not isinstance(axis, PatchGrid) or not np.array_equal(axis.cells, np.arange(axis.rows * axis.cols)):
        raise ModelError(
            f"The vision tower ends in {axis!r}. Florence-2's ends in cells row by row. Use mmattn.capture, which "
            "knows positions only."
        )
    return replace(axis, roles=("mean", *axis.roles), cells=np.concatenate([[-1], axis.cells]))


def _form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    decoder = rf"{own}language_model\.decoder\."
    return SidedForm(
        vision=f"{prefix}vision_tower",
        joins=(
            Joins(path=rf"{own}language_model\.encoder\.", query="text", key="text", causal=False),
            Joins(path=rf"{decoder}.*\.encoder_attn", stream="decoder", query="decoder", key="text", causal=False),
            Joins(path=decoder, stream="decoder", query="decoder", key="decoder", causal=True),
        ),
        build=_florence,
    )


FLORENCES: Mapping[str, SidedForm] = {"Florence2ForConditionalGeneration": _form("model."), "Florence2Model": _form("")}

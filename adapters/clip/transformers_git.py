"""GIT: a picture's tokens first, then words, in one decoder.

    vision      patches ask patches
    decoder     a class token, patches, then words: the picture's tokens ask each other, a word asks
                the picture and the words before it

No token of the text marks the picture: the model puts its features in front.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined

from .transformers_forms import Joins
from .transformers_row import row_axis
from .transformers_sides import Built, SidedForm, Written


def _in_front(written: Written) -> Built:
    pixels = written.inputs["pixel_values"]
    if pixels.ndim != 4:
        raise InputError(
            f"pixel_values has shape {list(pixels.shape)}: several pictures for a text, as GIT takes the frames of a "
            "film. Maps of one picture with one text are drawn. Pass one picture for each text."
        )
    words = [
        row_axis(written.text_of(n), written.ids[n], real=written.real[n], tokenizer=written.tokenizer)
        for n in range(written.samples)
    ]
    patch = int(written.config.vision_config.patch_size)
    front = 1 + (int(pixels.shape[2]) // patch) * (int(pixels.shape[3]) // patch)

    def derived(patches: tuple[Axis, ...]) -> dict[str, tuple[Axis, ...]]:
        grids: Any = patches * (len(words) if len(patches) == 1 else 1)
        return {"decoder": tuple(_joined(grid, said) for grid, said in zip(grids, words, strict=True))}

    said = torch.tensor([[role in ("content", "continuation", "blank") for role in axis.roles] for axis in words])
    before = torch.zeros(len(words), front, dtype=torch.bool)
    return Built(
        call=written.inputs,
        sides={},
        pixels=pixels,
        scored=torch.cat([before, said], dim=1),
        scored_ids=torch.cat([written.ids.new_zeros(len(words), front), written.ids], dim=1),
        derived=derived,
    )


def _joined(grid: Any, words: Any) -> Joined:
    front = len(grid)
    where = [np.arange(front, front + len(words)), np.arange(front)]
    return Joined.of({"text": words, "image": grid}, tokens=where)


def _form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    decoder = Joins(
        path=rf"{own}encoder\.", stream="decoder", query="decoder", key="decoder", causal=True, together="image"
    )
    return SidedForm(vision=f"{prefix}image_encoder", joins=(decoder,), build=_in_front)


GITS: Mapping[str, SidedForm] = {"GitForCausalLM": _form("git."), "GitModel": _form("")}

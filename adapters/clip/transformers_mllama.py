"""Mllama (Llama 3.2 Vision): words ask all patches of all tiles, through a gate.

    vision      patches of all tiles ask each other; each tile is a class token, its patches, and
                padding up to a multiple of 8. The last encoder's layers are gated
    decoder     words ask those before them; in some layers instead, through a gate, a class token
                and the patches of every tile: x + tanh(gate) * attention

A picture is resized, padded at its right and bottom to whole tiles, and cut: the patches of all
tiles are one grid, in the order of the tiles. Tiles that are not used are padding. Words before the
picture's mark are told to look at nothing, and the mask that the model makes of this lets them look
at everything, padding tiles too: their rows are left empty.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis, PatchGrid

from ..pixels import Geometry
from .transformers_forms import Joins
from .transformers_perceiver import gate_note
from .transformers_row import row_axis, words_alone
from .transformers_sides import Built, SidedForm, Written

_BLIND = "rows of words before the picture are left empty, the model lets them look everywhere"


def _tiled(written: Written) -> Built:
    pixels = written.inputs["pixel_values"]
    if pixels.shape[1] != 1:
        raise InputError(
            f"{type(written.model).__name__} was given {pixels.shape[1]} pictures for a text. Maps of one picture with "
            "one text are drawn. Pass one picture for each text."
        )
    words = tuple(
        row_axis(written.text_of(n), written.ids[n], real=written.real[n], tokenizer=written.tokenizer)
        for n in range(written.samples)
    )
    patch = int(written.config.vision_config.patch_size)
    side, count = int(pixels.shape[-1]), int(pixels.shape[2])
    padded = -(1 + (side // patch) ** 2) % 8
    tiles = [_canvas_of(written, sample) for sample in range(written.samples)]
    sides: dict[str, tuple[Axis, ...]] = {
        "decoder": words,
        "vision": tuple(_grid(one, patch=patch, side=side, count=count, padded=padded) for one in tiles),
        "seen": tuple(_grid(one, patch=patch, side=side, count=count, padded=0) for one in tiles),
    }
    return Built(
        call=written.inputs,
        sides=sides,
        pixels=pixels[:, 0, 0],
        notes=_gates(written),
        scored=words_alone(words),
        blind=~written.inputs["cross_attention_mask"].bool().flatten(2).any(dim=-1),
    )


def _gates(written: Written) -> dict[str, str]:
    notes = {}
    for path, module in written.model.named_modules():
        if isinstance(gate := getattr(module, "cross_attn_attn_gate", None), Tensor):
            notes[f"{path}.cross_attn"] = f"{gate_note(gate)}; {_BLIND}"
        if isinstance(gate := getattr(module, "gate_attn", None), Tensor):
            notes[f"{path}.self_attn"] = gate_note(gate)
    return notes


def _canvas_of(written: Written, sample: int) -> tuple[int, int, Geometry]:
    """Return how many tiles down and across a picture has, and how it came to all of them."""
    side = int(written.inputs["pixel_values"].shape[-1])
    ratios = written.config.vision_config.supported_aspect_ratios
    down, across = ratios[int(written.inputs["aspect_ratio_ids"][sample, 0]) - 1]
    whole = written.geometries[sample] if written.photos else Geometry(size_px=(across * side, down * side))
    return down, across, whole


def _grid(tiles: tuple[int, int, Geometry], *, patch: int, side: int, count: int, padded: int) -> PatchGrid:
    """Return the patches of all tiles on one grid: tiles are cut from one canvas, row by row, and do not overlap."""
    down, across, whole = tiles
    rows = side // patch
    within = np.arange(rows * rows).reshape(rows, rows)
    row, col = np.divmod(within, rows)
    cells, roles = [], []
    for tile in range(count):
        top, left = (part * rows for part in divmod(tile, across))
        there = tile < down * across
        own = (row + top) * across * rows + col + left if there else np.full_like(within, -1)
        cells += [-1, *own.flatten().tolist(), *[-1] * padded]
        roles += ["cls" if there else "pad", *["content" if there else "pad"] * rows * rows, *["pad"] * padded]
    return PatchGrid(
        rows=down * rows,
        cols=across * rows,
        patch_px=(patch, patch),
        size_px=whole.size_px,
        to_input=whole.to_input,
        cells=np.array(cells),
        roles=tuple(roles),
    )


def _write(processor: Any, images: list[Any], texts: list[str]) -> Mapping[str, Any]:
    mark = str(processor.image_token)
    marked = [text if mark in text else f"{mark}{text}" for text in texts]
    encoded: Mapping[str, Any] = processor(
        images=[[image] for image in images], text=marked, padding=True, return_tensors="pt"
    )
    return encoded


def _canvas(images: Any, picture: Image.Image, settings: Mapping[str, Any]) -> Tensor:
    """Return the picture that is cut into tiles, put together again."""
    from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios

    encoded = images(picture, return_tensors="pt", **settings)
    tiles = encoded["pixel_values"][0, 0]
    ratios = get_all_supported_aspect_ratios(images.max_image_tiles)
    down, across = ratios[int(encoded["aspect_ratio_ids"][0, 0]) - 1]
    rows = [torch.cat(list(tiles[row * across : (row + 1) * across]), dim=2) for row in range(down)]
    return torch.cat(rows, dim=1)


def _form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    return SidedForm(
        vision="",
        joins=(
            Joins(path=rf"{own}vision_model\.", stream="vision", query="vision", key="vision"),
            Joins(path=rf"{own}language_model\..*\.cross_attn", stream="decoder", query="decoder", key="seen"),
            Joins(path=rf"{own}language_model\.", stream="decoder", query="decoder", key="decoder", causal=True),
        ),
        build=_tiled,
        write=_write,
        image_step=_canvas,
    )


MLLAMAS: Mapping[str, SidedForm] = {"MllamaForConditionalGeneration": _form("model."), "MllamaModel": _form("")}

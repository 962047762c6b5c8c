"""Flamingo's architecture (Idefics) and its successor (Idefics2): latents ask patches, words ask latents.

    vision      patches ask patches
    latents     a perceiver's latents ask patches and each other; their keys are patches, then latents
    decoder     Idefics: words ask words, and, before every few layers, latents through a gate:
                x + tanh(alpha) * attention. Idefics2: latents stand among the words, in one sequence

A gate that is nearly shut lets nothing through, whatever the weights say: a layer's note tells it.
Words before the picture's mark look at no picture: their rows are empty.

Where Idefics2's processor cuts a picture into four and adds the whole, the parts are called `tile 1`
to `tile 4` and `image`, each with its own places.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.axes import Axis, PatchGrid
from mmattn.schema.joined import Joined, Part
from mmattn.schema.media import Photo
from mmattn.schema.sets import Slots

from ..pixels import Crop, Geometry
from .transformers_forms import Joins
from .transformers_row import joined_parts, row_axis, words_alone
from .transformers_sides import Built, SidedForm, Written
from .transformers_steps import stepped_geometry

_LATENTS = "its tokens of the picture are latents, no patches"


def gate_note(parameter: Tensor) -> str:
    """Return what a gate lets through, for a caption: the hyperbolic tangent of its parameter.

    Examples
    --------
    >>> gate_note(torch.tensor([0.5])), gate_note(torch.zeros(1, 1, 8))
    ('gate 0.462', 'gate 0.000 on average, 0.000 to 0.000 over 8 channels')
    """
    opened = parameter.detach().float().tanh().flatten()
    if opened.numel() == 1:
        return f"gate {float(opened):.3f}"
    low, high = float(opened.min()), float(opened.max())
    return f"gate {float(opened.abs().mean()):.3f} on average, {low:.3f} to {high:.3f} over {opened.numel()} channels"


def _flamingo(written: Written) -> Built:
    """Return the sides of Idefics."""
    pixels = written.inputs["pixel_values"]
    if pixels.ndim != 5 or pixels.shape[1] != 1:
        raise _several(written, pixels.shape[1] if pixels.ndim == 5 else 0)
    words = tuple(
        row_axis(written.text_of(n), written.ids[n], real=written.real[n], tokenizer=written.tokenizer)
        for n in range(written.samples)
    )
    config, sides = written.config, {"decoder": words}
    latents = Slots.count(config.perceiver_config.resampler_n_latents)
    layers = [(path, module) for path, module in written.model.named_modules() if hasattr(module, "alpha_cross_attn")]
    blind = ~written.inputs["image_attention_mask"].bool().any(dim=-1)
    note = f"; {_LATENTS}" if config.use_resampler else ""
    gates = {f"{path}.cross_attn": f"{gate_note(layer.alpha_cross_attn)}{note}" for path, layer in layers}

    def derived(patches: tuple[Axis, ...]) -> dict[str, tuple[Axis, ...]]:
        if not config.use_resampler:
            return {"seen": patches}
        asked = tuple(_with_latents({"image": patch}, [latents]) for patch in patches)  # type: ignore[dict-item]
        return {"seen": (latents,), "latents": (latents,), "asked": asked}

    return Built(
        call=written.inputs,
        sides=sides,
        pixels=pixels[:, 0],
        notes=gates,
        scored=words_alone(words),
        derived=derived,
        blind=blind,
    )


def _with_latents(patches: Mapping[str, Part], latents: Sequence[Slots]) -> Joined:
    """Return what latents ask: the patches of each tile, each followed by the latents that ask them."""
    parts: dict[str, Part] = {}
    where, start = [], 0
    for (name, grid), slots in zip(patches.items(), latents, strict=True):
        for own, part in ((name, grid), ("latents" if name == "image" else f"latents of {name}", slots)):
            parts[own] = part
            where.append(np.arange(start, start + len(part)))
            start += len(part)
    return Joined.of(parts, tokens=where)


def _several(written: Written, count: int) -> InputError:
    return InputError(
        f"{type(written.model).__name__} was given {count} pictures for a text. Maps of one picture with one text are "
        "drawn. Pass one picture for each text."
    )


def _idefics_write(processor: Any, images: list[Any], texts: list[str]) -> Mapping[str, Any]:
    encoded: Mapping[str, Any] = processor(images=images, text=texts, return_tensors="pt")
    return encoded


def _idefics_image(images: Any, picture: Image.Image, settings: Mapping[str, Any]) -> Tensor:
    values: Tensor = images(picture, return_tensors="pt", **settings)
    return values[0]


def _idefics2(written: Written) -> Built:
    """Return the sides of Idefics2: grids with padding, latents of each tile, one sequence."""
    pixels = written.inputs["pixel_values"]
    count = int(pixels.shape[1])
    if count not in (1, 5):
        raise _several(written, count)
    names = ["image"] if count == 1 else [*(f"tile {n}" for n in range(1, 5)), "image"]
    settings = written.config.perceiver_config
    latents = [Slots.count(settings.resampler_n_latents) for _ in names]
    grids = [_grids(written, sample) for sample in range(written.samples)]
    if count == 1:
        vision: tuple[Axis, ...] = tuple(one[0] for one in grids)
        slots: tuple[Axis, ...] = (latents[0],)
    else:
        vision = tuple(_in_a_row(dict(zip(names, one, strict=True))) for one in grids)
        slots = (_in_a_row(dict(zip(names, latents, strict=True))),)
    asked = tuple(_with_latents(dict(zip(names, one, strict=True)), latents) for one in grids)
    words = tuple(
        joined_parts(
            written.text_of(n),
            written.ids[n],
            real=written.real[n],
            tokenizer=written.tokenizer,
            images=dict(zip(names, latents, strict=True)),
            at=np.flatnonzero((written.ids[n] == written.config.image_token_id).cpu().numpy()),
        )
        for n in range(written.samples)
    )
    text = {path: _LATENTS for path, _ in written.model.named_modules() if "text_model." in path}
    return Built(
        call=written.inputs,
        sides={"vision": vision, "latents": slots, "asked": asked, "decoder": words},
        pixels=pixels[:, 0],
        notes=text,
        scored=words_alone(words),
    )


def _in_a_row(parts: Mapping[str, Part]) -> Joined:
    ends = np.cumsum([len(part) for part in parts.values()])
    where = [np.arange(end - len(part), end) for end, part in zip(ends, parts.values(), strict=True)]
    return Joined.of(dict(parts), tokens=where)


def _grids(written: Written, sample: int) -> list[PatchGrid]:
    """Return the patches of each tile of a picture; those that reach into padding have no place."""
    pixels = written.inputs["pixel_values"][sample]
    seen = written.inputs.get("pixel_attention_mask")
    masks = torch.ones(pixels.shape[0], *pixels.shape[2:]) if seen is None else seen[sample]
    patch = int(written.config.vision_config.patch_size)
    geometries = _tiles(written, sample) if written.photos else [Geometry(size_px=_filled(one)) for one in masks]
    return [_grid(mask.bool().cpu(), patch, geometry) for mask, geometry in zip(masks, geometries, strict=True)]


def _filled(mask: Tensor) -> tuple[int, int]:
    return int(mask.any(dim=0).sum()), int(mask.any(dim=1).sum())


def _grid(mask: Bool[Tensor, "row col"], patch: int, geometry: Geometry) -> PatchGrid:
    rows, cols = (side // patch for side in mask.shape)
    whole = mask[: rows * patch, : cols * patch].reshape(rows, patch, cols, patch).all(dim=3).all(dim=1).numpy()
    high, wide = int(whole.any(axis=1).sum()), int(whole.any(axis=0).sum())
    cells = np.full((rows, cols), -1)
    cells[:high, :wide] = np.arange(high * wide).reshape(high, wide)
    return PatchGrid(
        rows=high,
        cols=wide,
        patch_px=(patch, patch),
        size_px=geometry.size_px,
        to_input=geometry.to_input,
        cells=cells.flatten(),
        roles=tuple("content" if cell >= 0 else "pad" for cell in cells.flatten().tolist()),
    )


def _tiles(written: Written, sample: int) -> list[Geometry]:
    """Return how each tile of a picture came to the model, and the whole picture, last."""
    images, photo = written.processor.image_processor, written.photos[sample]
    whole = stepped_geometry(images, photo.size_px, step=_idefics2_image)
    if written.inputs["pixel_values"].shape[1] == 1:
        return [whole]
    return [*(_tile(images, photo, box) for box in _quarters(photo.size_px)), whole]


def _quarters(size_px: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return left, top, width and height of the four tiles that Idefics2 cuts, row by row."""
    (width, height), (x, y) = size_px, (size_px[0] // 2, size_px[1] // 2)
    sides_x, sides_y = ((0, x), (x, width - x)), ((0, y), (y, height - y))
    return [(left, top, wide, high) for top, high in sides_y for left, wide in sides_x]


def _tile(images: Any, photo: Photo, box: tuple[int, int, int, int]) -> Geometry:
    left, top, wide, high = box
    geometry = Geometry(size_px=photo.size_px).then(Crop(left=left, top=top, size_px=(wide, high)))
    for step in stepped_geometry(images, (wide, high), step=_idefics2_image).steps:
        geometry = geometry.then(step)
    return geometry


def _idefics2_write(processor: Any, images: list[Any], texts: list[str]) -> Mapping[str, Any]:
    mark = str(processor.image_token)
    marked = [text if mark in text else f"{mark}{text}" for text in texts]
    encoded: Mapping[str, Any] = processor(
        images=[[image] for image in images], text=marked, padding=True, return_tensors="pt"
    )
    return encoded


def _idefics2_image(images: Any, picture: Image.Image, settings: Mapping[str, Any]) -> Tensor:
    values: Tensor = images(picture, return_tensors="pt", do_image_splitting=False, **settings)["pixel_values"]
    return values[0, 0]


def _idefics_form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    return SidedForm(
        vision=f"{prefix}vision_model",
        joins=(
            Joins(path=rf"{own}perceiver_resampler\.", stream="latents", query="latents", key="asked", causal=False),
            Joins(path=rf"{own}gated_cross_attn_layers\.", stream="decoder", query="decoder", key="seen"),
            Joins(path=rf"{own}layers\.", stream="decoder", query="decoder", key="decoder", causal=True),
        ),
        build=_flamingo,
        write=_idefics_write,
        image_step=_idefics_image,
    )


def _idefics2_form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    resampler = rf"{own}connector\.perceiver_resampler\."
    return SidedForm(
        vision="",
        joins=(
            Joins(path=rf"{own}vision_model\.", stream="vision", query="vision", key="vision"),
            Joins(path=resampler, stream="latents", query="latents", key="asked"),
            Joins(path=rf"{own}text_model\.", stream="decoder", query="decoder", key="decoder", causal=True),
        ),
        build=_idefics2,
        write=_idefics2_write,
        image_step=_idefics2_image,
    )


PERCEIVERS: Mapping[str, SidedForm] = {
    "Idefics2ForConditionalGeneration": _idefics2_form("model."),
    "Idefics2Model": _idefics2_form(""),
    "IdeficsForVisionText2Text": _idefics_form("model."),
    "IdeficsModel": _idefics_form(""),
}

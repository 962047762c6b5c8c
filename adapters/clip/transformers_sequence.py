"""Words and patches in one sequence from the first layer on: ViLT.

    tokens   [CLS] a cat [SEP] ...   then the picture's class token, then patches row by row

ViLT shuffles its patches at random in every forward pass (and draws those that it keeps where there
are more than its limit). Attention does not mind the order, so the patches are embedded by the
model's own function, put back row by row, and given to the model as `image_embeds`: each then has
a place that is known.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis, PatchGrid, Tokens
from mmattn.schema.joined import Joined
from mmattn.schema.sets import Positions

from ..pixels import Geometry
from ..tracing.axes import Spec
from .transformers_text import TextFacts


def sequence_axes(
    model: nn.Module,
    values: Float[Tensor, "sample channel row col"],
    geometries: tuple[Geometry, ...],
    text: TextFacts,
) -> tuple[Axis, ...]:
    """Return the axis of each pair: the parts `text` and `image`.

    Raises
    ------
    InputError
        Pixels that are no whole patches, or more patches than the model keeps.
    """
    rows, cols, patch_px = _grid(model, values)
    count = rows * cols
    spec = Spec(
        rows=rows,
        cols=cols,
        patch_px=(patch_px, patch_px),
        cells=(-1, *range(count)),
        roles=("image_cls", *["content"] * count),  # the answer is read from the text's own
    )
    pictures = [spec.axis(geometry) for geometry in geometries] * (len(values) if len(geometries) == 1 else 1)
    words = text.real.shape[1]
    where = [range(words), range(words, words + 1 + count)]
    found: list[Axis] = []
    for said, seen in zip(text.axes, pictures, strict=True):
        assert isinstance(said, Tokens | Positions)
        assert isinstance(seen, PatchGrid)
        found.append(Joined.of({"text": said, "image": seen}, tokens=where))
    return tuple(found)


def embedded(model: nn.Module, values: Float[Tensor, "sample channel row col"]) -> dict[str, Tensor]:
    """Return the picture's class token and patches, row by row, as the model takes them."""
    rows, cols, _ = _grid(model, values)
    inner: Any = getattr(model, "vilt", model)
    seen = torch.ones(len(values), *values.shape[2:], device=values.device)
    with torch.random.fork_rng(
        devices=[]
    ):  # the order that is drawn is put back, and the user's own numbers go on as they were
        embeds, _, (index, _) = inner.embeddings.visual_embed(values, seen, max_image_length=rows * cols)
    order = (index[..., 0] * cols + index[..., 1]).argsort(dim=1)
    patches = embeds[:, 1:].gather(1, order[..., None].expand(-1, -1, embeds.shape[-1]))
    ordered = torch.cat([embeds[:, :1], patches], dim=1)
    return {"image_embeds": ordered, "pixel_mask": torch.ones(ordered.shape[:2], device=values.device)}


def _grid(model: nn.Module, values: Float[Tensor, "sample channel row col"]) -> tuple[int, int, float]:
    config: Any = model.config
    patch, (high, wide) = int(config.patch_size), values.shape[2:]
    if high % patch or wide % patch:
        raise InputError(
            f"The pixels are {wide} x {high}, no multiple of the {patch} px of a patch. The last ones would not be "
            "seen. Pass the model's own processor, which makes multiples."
        )
    rows, cols, most = high // patch, wide // patch, config.max_image_length
    if isinstance(most, int) and 0 < most < rows * cols:
        raise InputError(
            f"The picture has {rows} x {cols} patches and the model keeps {most} of them, drawn at random. "
            "Places need all. Pass a smaller picture (size_px), or set config.max_image_length = -1."
        )
    return rows, cols, float(patch)

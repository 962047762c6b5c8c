"""LXMERT: words and the regions that a detector found in a picture, which ask each other both ways.

    text           words ask words
    vision         regions ask regions
    cross.text     words ask regions, then each other
    cross.vision   regions ask words, then each other

The model sees no pixels: each region comes as a feature of the user's own detector and a box, in shares
of the picture's sides. transformers has no processor for either, so they are passed as tensors:

    mmattn.attend(model, image=photo, text="a cat", processor=tokenizer,
                  inputs={"visual_feats": ..., "visual_pos": ...})

One module asks in both directions, words first: two layers have its name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.axes import Axis, Regions
from mmattn.schema.media import Photo

from ..pixels import Geometry
from ..text.transformers_open import tokenizer_of
from ..vit.pictures import photos_of
from .transformers_forms import Joins
from .transformers_sides import Built, SidedForm, Written, moved
from .transformers_text import TextFacts, encoded_texts, given_texts, texts_of

_NEEDED = ("visual_feats", "visual_pos")


def _read(model: nn.Module, form: SidedForm, *, media: MediaGiven, processor: Any) -> Written:
    """Return words as the tokenizer cuts them, beside the user's own regions."""
    given = media.inputs if isinstance(media.inputs, Mapping) else {}
    if not all(isinstance(given.get(name), Tensor) for name in _NEEDED):
        raise InputError(
            f"{type(model).__name__} was given {', '.join(map(str, given)) or 'no tensors'}. It sees the regions of a "
            "detector, which transformers does not have. Pass inputs={'visual_feats': [sample, region, feature], "
            "'visual_pos': [sample, region, 4]}: features, and boxes x0, y0, x1, y1 in shares of the picture's sides."
        )
    seen = {str(name): value for name, value in given.items() if str(name).startswith("visual_")}
    photos, texts = photos_of(media.image), () if media.text is None else texts_of(media.text)
    if texts:
        tokenizer = processor or tokenizer_of(model)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        words = encoded_texts(texts, tokenizer=tokenizer, model=model)
    elif isinstance(given.get("input_ids"), Tensor):
        words = given_texts({str(n): v for n, v in given.items() if str(n) not in seen}, model=model)
    else:
        raise InputError(f"{type(model).__name__} was given no text. Words and regions ask each other. Pass text=.")
    samples = len(words.inputs["input_ids"])
    seen = {name: _repeated(moved(value, model), samples, name) for name, value in seen.items()}
    _check_boxes(seen["visual_pos"])
    if photos and len(photos) not in (1, samples):
        raise InputError(
            f"There are {len(photos)} pictures and {samples} texts. Each text has its picture, or all have one. "
            "Pass as many of both, or one picture."
        )
    photos = photos * (samples if len(photos) == 1 else 1)
    return Written(
        model=model,
        processor=processor,
        inputs={**words.inputs, **seen},
        photos=photos,
        texts=texts,
        geometries=tuple(Geometry(size_px=photo.size_px) for photo in photos) or (Geometry(size_px=(1, 1)),),
        words=words,
    )


def _repeated(value: Tensor, samples: int, name: str) -> Tensor:
    if len(value) not in (1, samples):
        raise InputError(
            f"{name} holds {len(value)} samples and there are {samples} texts. Each text has its regions, or all have "
            "one picture's. Pass as many of both, or one sample."
        )
    return value.expand(samples, *value.shape[1:])


def _check_boxes(boxes: Tensor) -> None:
    shape = list(boxes.shape)
    if len(shape) != 3 or shape[2] != 4 or float(boxes.min()) < 0 or float(boxes.max()) > 1:
        raise InputError(
            f"visual_pos has shape {shape} and values from {float(boxes.min()):.3g} to {float(boxes.max()):.3g}. It is "
            "[sample, region, 4]: x0, y0, x1, y1 in shares of the picture's sides, 0 to 1. Divide pixels by the sides."
        )


def _regions(written: Written) -> Built:
    assert written.words is not None
    words: TextFacts = written.words
    mask = written.inputs.get("visual_attention_mask")
    regions = tuple(_axis(written, n, mask) for n in range(written.samples))
    sides: dict[str, tuple[Axis, ...]] = {"text": words.axes, "vision": regions}
    return Built(call=written.inputs, sides=sides, pixels=torch.zeros(written.samples, 3, 1, 1))


def _axis(written: Written, sample: int, mask: Tensor | None) -> Regions:
    photo: Photo | None = written.photos[sample] if written.photos else None
    size = photo.size_px if photo is not None else (1, 1)
    boxes = written.inputs["visual_pos"][sample].detach().double().cpu().numpy() * np.array([*size, *size])
    real = np.ones(len(boxes), dtype=bool) if mask is None else mask[sample].bool().cpu().numpy()
    boxes = np.where(real[:, None], boxes, np.nan)
    return Regions(roles=tuple("content" if one else "pad" for one in real), boxes=boxes, size_px=size)


def _form(prefix: str) -> SidedForm:
    own = prefix.replace(".", r"\.")
    across = rf"{own}encoder\.x_layers\.\d+\."
    return SidedForm(
        vision="",
        joins=(
            Joins(path=rf"{own}encoder\.layer\.", causal=False),
            Joins(path=rf"{own}encoder\.r_layers\.", stream="vision", query="vision", key="vision", causal=False),
            Joins(path=across + r"visual_attention\.", stream="cross.text", key="vision", causal=False, turn=0),
            Joins(path=across + r"visual_attention\.", stream="cross.vision", query="vision", causal=False, turn=1),
            Joins(path=across + r"lang_self_att\.", stream="cross.text", causal=False),
            Joins(path=across + r"visn_self_att\.", stream="cross.vision", query="vision", key="vision", causal=False),
        ),
        read=_read,
        build=_regions,
    )


LXMERTS: Mapping[str, SidedForm] = {
    "LxmertForPreTraining": _form("lxmert."),
    "LxmertForQuestionAnswering": _form("lxmert."),
    "LxmertModel": _form(""),
}

"""Each prompt's axis: what its pictures are, and where their tokens stand among the words."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from mmattn.errors import InputError
from mmattn.schema.axes import Axis
from mmattn.schema.joined import Joined, Part
from mmattn.schema.media import Photo

from ..pixels import Geometry
from .given import Given
from .known import OneStream
from .layouts import vision_settings
from .prompts import words_axis
from .seen import Seen
from .views import Looking


def seen_of(given: Given, *, model: nn.Module, how: OneStream) -> tuple[tuple[Seen, ...], ...]:
    """Return what became of each picture of each prompt.

    Raises
    ------
    InputError
        The processor cannot be inverted, or tensors came alone and their pictures were cut into tiles.
    """
    if given.photos:
        looking = {
            count: Looking.of(
                given.processor, mark=given.mark, count=count, cut=how.cut, settings=vision_settings(model)
            )
            for count in {_together(group, how) for group in given.photos}
        }
        return tuple(
            tuple(how.lay(looking[_together(group, how)].geometries(photo), model) for photo in group)
            for group in given.photos
        )
    pixels = given.inputs["pixel_values"]
    if not how.alone or pixels.ndim != 4 or len(pixels) != len(given.ids):
        raise InputError(
            f"inputs= holds pixel_values {list(pixels.shape)} for {len(given.ids)} prompts, without the pictures. "
            "What was cut into tiles or patches has its places in a picture. Pass image= and text= as well."
        )
    size = (int(pixels.shape[3]), int(pixels.shape[2]))
    return tuple((how.lay((Geometry(size_px=size),), model),) for _ in pixels)


def _together(group: Sequence[Photo], how: OneStream) -> int:
    return len(group) if how.together else 1


def row_axes(given: Given, pictures: Sequence[Sequence[Seen]], *, model: nn.Module, how: OneStream) -> tuple[Axis, ...]:
    """Return the axis of each prompt: the part `text`, and the parts of its pictures.

    Raises
    ------
    InputError
        The prompt has other placeholders than its pictures make tokens.
    """
    return tuple(
        _row(given, sample, own, marks=how.placeholders(model, given.processor)) for sample, own in enumerate(pictures)
    )


def _row(given: Given, sample: int, own: Sequence[Seen], *, marks: frozenset[int]) -> Joined:
    ids, real = given.ids[sample].cpu(), given.real[sample].cpu()
    at = np.flatnonzero(np.isin(ids.numpy(), list(marks)))
    slots = [
        (_numbered(slot[0], which, len(own)), slot[1]) if isinstance(slot, tuple) else slot
        for which, seen in enumerate(own)
        for slot in seen.slots
    ]
    if len(at) != len(slots):
        raise InputError(
            f"The prompt has {len(at)} tokens for {len(own)} picture(s), and the model makes {len(slots)} of them. The "
            "processor writes as many as the model makes. Pass the processor that was saved with the model."
        )
    parts: dict[str, Part] = {
        _numbered(name, which, len(own)): part for which, seen in enumerate(own) for name, part in seen.parts.items()
    }
    where = {name: np.zeros(len(part), dtype=np.int64) for name, part in parts.items()}
    rest: dict[int, str] = {}
    for token, slot in zip(at.tolist(), slots, strict=True):
        if isinstance(slot, tuple):
            where[slot[0]][slot[1]] = token
        else:
            rest[token] = slot
    others = np.setdiff1d(np.arange(len(ids)), at).tolist()
    words = words_axis(
        given.prompts[sample] if given.prompts else None,
        ids,
        real=real,
        others=others,
        written=given.written[sample] if given.written else "",
        tokenizer=getattr(given.processor, "tokenizer", None),
    )
    return Joined.of(
        {"text": words, **parts}, tokens=[others, *where.values()], length=len(ids), rest=rest or "special"
    )


def _numbered(name: str, which: int, count: int) -> str:
    return name if count == 1 else f"{name} {which + 1}"

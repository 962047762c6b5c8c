"""What the user passed, by tower: pictures as pixels, texts as tokens, one of each for every pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.media import Photo, Words

from ..pixels import Geometry
from ..text.transformers_open import tokenizer_of
from ..vit.pictures import Brought, bring, photos_of
from ..vit.transformers_input import TransformersOptions, photo_tensor, vision_setting
from ..vit.transformers_open import takes
from ..vit.transformers_patches import images_of, is_cut
from .transformers_text import TextFacts, encoded_texts, given_texts, texts_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """Pairs as the model gets them.

    Parameters
    ----------
    pictures, text
        As many of both; None where that tower does not run.
    words
        The texts, one a sample; empty where only tensors were given.
    """

    pictures: Brought | None
    text: TextFacts | None
    words: tuple[Words, ...]


def read(
    media: MediaGiven, *, model: nn.Module, processor: Any, options: TransformersOptions, full_length: bool
) -> Read:
    """Return what was given, brought to the model by its processor, or the user's own tensors.

    Raises
    ------
    InputError
        Pictures and texts that make no pairs, an empty text, tensors that do not fit.
    """
    given = _given(media, model=model)
    texts = () if media.text is None else texts_of(media.text)
    brought = _brought(given, model=model, processor=processor, options=options)
    samples = _samples(brought, texts, given)
    brought = None if brought is None else _repeated(brought, samples)
    words = texts * samples if len(texts) == 1 else texts
    text = None
    if given.words:
        text = given_texts(given.words, model=model)
    elif words:
        tokenizer = getattr(processor, "tokenizer", processor if hasattr(processor, "convert_ids_to_tokens") else None)
        text = encoded_texts(words, tokenizer=tokenizer or tokenizer_of(model), model=model, full_length=full_length)
    return Read(pictures=brought, text=text, words=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """What the user passed, with prepared tensors taken apart by tower."""

    media: MediaGiven
    pixels: Any
    words: Mapping[str, Tensor]


def _given(media: MediaGiven, *, model: nn.Module) -> _Given:
    """Return the user's tensors by tower; pixel values alone may be passed as a tensor."""
    inputs = media.inputs
    if not isinstance(inputs, Mapping):
        return _Given(media=media, pixels=inputs, words={})
    there = {str(name): value for name, value in inputs.items() if value is not None}
    cut = is_cut(there) and "pixel_values" in there
    pixels = images_of(there) if cut else there.get("pixel_values")
    words = {
        name: value
        for name, value in there.items()
        if name in ("input_ids", "attention_mask", "token_type_ids", "position_ids") and isinstance(value, Tensor)
    }
    known = {*words, "pixel_values", *(("pixel_attention_mask", "spatial_shapes") if cut else ())}
    if isinstance(there.get("pixel_mask"), Tensor) and bool(there["pixel_mask"].bool().all()):
        known.add("pixel_mask")  # nothing is masked
    more = [name for name in there if name not in known and takes(model, name)]
    if more or (pixels is None and "input_ids" not in words) or (words and "input_ids" not in words):
        raise InputError(
            f"inputs= holds {', '.join(there) or 'nothing'}. This adapter runs the towers on pixel_values, input_ids "
            "and their masks. Pass those, or record your own call with mmattn.capture."
        )
    if words and media.text is not None:
        raise InputError(
            "inputs= holds input_ids and text= was given too. The words of a text come from one of them. "
            "Leave input_ids out of inputs=, or leave text= out."
        )
    return _Given(media=media, pixels=pixels, words=words)


def _brought(given: _Given, *, model: nn.Module, processor: Any, options: TransformersOptions) -> Brought | None:
    """Return the pictures as the vision tower gets them; None where there are none."""
    if given.media.image is None and given.pixels is None:
        return None
    photos_of(given.media.image)
    named = None if hasattr(processor, "convert_ids_to_tokens") else processor  # a tokenizer makes no pixels

    def make(photo: Photo) -> tuple[Tensor, Geometry]:
        return photo_tensor(photo, model=model, processor=named, options=options)

    channels = vision_setting(model, "num_channels")
    return bring(
        replace(given.media, inputs=given.pixels),
        model=model,
        make=make,
        channels=channels if isinstance(channels, int) else None,
        maker="processor",
    )


def _samples(brought: Brought | None, texts: Sequence[Words], given: _Given) -> int:
    """Return the number of pairs."""
    pictures = None if brought is None else len(brought.inputs)
    words = len(given.words["input_ids"]) if given.words else len(texts) or None
    if pictures is None or words is None:
        return pictures or words or 0
    if pictures != words and 1 not in (pictures, 1 if given.words else words):
        raise InputError(
            f"There are {pictures} pictures and {words} texts. Each picture has its text, or there is one of either. "
            "Pass as many of both, or one picture or one text."
        )
    return max(pictures, words)


def _repeated(brought: Brought, samples: int) -> Brought:
    """Return one picture as often as there are texts."""
    if len(brought.inputs) == samples:
        return brought
    return Brought(
        inputs=brought.inputs.expand(samples, -1, -1, -1),
        photos=brought.photos * samples,
        geometries=brought.geometries[:1] * samples,
    )

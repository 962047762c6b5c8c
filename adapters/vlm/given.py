"""What the user gave a decoder of one stream: which pictures stand in which prompt, and what the processor wrote."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor, nn

from mmattn.errors import InputError, MmattnError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.media import Photo, Words

from ..clip.transformers_sides import saved_processor
from ..clip.transformers_text import texts_of
from ..hub import said
from ..vit.pictures import photos_of, to_model
from .known import OneStream
from .prompts import Hearing, Prompt, prompt_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Prompts with their pictures, as the model gets them.

    Parameters
    ----------
    inputs
        Everything that the model is called with, on its device.
    prompts
        One a sample; empty where tensors came alone.
    photos
        The pictures of each prompt; empty where tensors came alone.
    processor
        That wrote them; None where tensors came alone.
    mark
        What stands for a picture in its texts.
    written
        What the processor gave to its tokenizer, for each prompt.
    """

    inputs: Mapping[str, Tensor]
    prompts: tuple[Prompt, ...]
    photos: tuple[tuple[Photo, ...], ...]
    processor: Any
    mark: str = ""
    written: tuple[str, ...] = ()

    @property
    def ids(self) -> Int[Tensor, "sample token"]:
        """The row of tokens of each prompt."""
        return self.inputs["input_ids"]

    @property
    def real(self) -> Bool[Tensor, "sample token"]:
        """Which of them are no padding."""
        return self.inputs.get("attention_mask", torch.ones_like(self.ids)).bool()


def read(media: MediaGiven, *, model: nn.Module, how: OneStream, processor: Any) -> Given:
    """Bring pictures and texts to the model by its processor, or take the user's own tensors.

    Raises
    ------
    InputError
        A picture or a text is missing, marks and pictures do not agree, no processor is known, tensors do not fit.
    """
    named = type(model).__name__
    texts = () if media.text is None else texts_of(media.text)
    own, has_image = media.inputs, media.image is not None
    if own is None and not (has_image and texts):
        there, lacks, argument = ("picture", "text", "text") if has_image else ("text", "picture", "image")
        raise InputError(
            f"{named} was given a {there} alone. Its words and patches stand in one sequence, so it needs a {lacks}. "
            f"Pass {argument}= as well."
        )
    if own is not None and has_image != bool(texts):
        raise InputError(
            f"{named} was given inputs= with {'image' if has_image else 'text'}= alone. Prepared tensors hold both, "
            "and are compared with what the processor makes of both. Pass both, or inputs= alone."
        )
    processor = saved_processor(model) if processor is None and texts else processor
    if processor is not None:
        _check_processor(processor, named)
    mark = str(getattr(processor, "image_token", ""))
    groups = _groups(media.image, texts, mark=mark, named=named) if texts else ()
    prompts: tuple[Prompt, ...] = ()
    made: Mapping[str, Any] | None = None
    written: tuple[str, ...] = ()
    if groups:
        texts = texts * (len(groups) if len(texts) == 1 else 1)
        prompts = tuple(
            prompt_of(words, pictures=len(group), mark=mark, picture=how.picture.format(mark), processor=processor)
            for words, group in zip(texts, groups, strict=True)
        )
        made, written = _written(processor, prompts, groups)
    inputs = made if own is None else _given(own, made, named=named)
    assert inputs is not None
    return Given(
        inputs={
            str(name): _moved(value, model)
            for name, value in inputs.items()
            if isinstance(value, Tensor) and name != "labels"  # PaliGemma's processor makes some, all of them ignored
        },
        prompts=prompts,
        photos=groups,
        processor=processor,
        mark=mark,
        written=written,
    )


def _groups(image: Any, texts: Sequence[Words], *, mark: str, named: str) -> tuple[tuple[Photo, ...], ...]:
    """Return the pictures of each prompt: several where its text has as many marks, or where they come in lists."""
    if isinstance(image, list | tuple) and any(isinstance(one, list | tuple) for one in image):
        groups = tuple(photos_of(one) for one in image)
        if len(texts) not in (1, len(groups)):
            raise InputError(
                f"{named} was given {len(groups)} lists of pictures and {len(texts)} texts. Each text has its list. "
                "Pass as many of both, or one text."
            )
        return groups
    photos = photos_of(image)
    marks = [words.text.count(mark) for words in texts]
    if len(photos) > 1 and sum(marks) == len(photos) and all(marks):
        ends = [sum(marks[: n + 1]) for n in range(len(marks))]
        return tuple(photos[end - count : end] for end, count in zip(ends, marks, strict=True))
    if photos and texts and len(photos) != len(texts) and 1 not in (len(photos), len(texts)):
        raise InputError(
            f"There are {len(photos)} pictures and {len(texts)} texts. Each picture has its text, or there is one of "
            f"either. Pass as many of both, or texts with a mark {mark} for each of their pictures."
        )
    count = max(len(photos), len(texts)) if photos else 0
    return tuple((photo,) for photo in photos * (count if len(photos) == 1 else 1))


def _written(
    processor: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Photo]]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return what the processor makes of prompts and pictures, and the texts that it gave to its tokenizer."""
    twin, hearing = copy.copy(processor), Hearing(processor.tokenizer)
    twin.tokenizer = hearing
    pictures = [[Image.fromarray(photo.pixels) for photo in group] for group in groups]
    try:
        encoded: Mapping[str, Any] = twin(
            images=pictures, text=[prompt.written for prompt in prompts], padding=True, return_tensors="pt"
        )
    except MmattnError:
        raise
    except Exception as problem:  # whatever another library raises over a size or a text
        raise InputError(
            f"{type(processor).__name__} cannot take this picture and text: {said(problem)}. It takes what the model "
            "was trained with. Check the text's marks for pictures, and the processor."
        ) from problem
    return encoded, tuple(hearing.heard)


def _given(own: Any, made: Mapping[str, Any] | None, *, named: str) -> Mapping[str, Any]:
    """Return the user's tensors, held against what the processor made where that is known."""
    if not isinstance(own, Mapping) or not {"input_ids", "pixel_values"} <= set(own):
        held = ", ".join(map(str, own)) if isinstance(own, Mapping) else type(own).__name__
        raise InputError(
            f"inputs= holds {held or 'nothing'}. {named} needs what its processor returns, input_ids and pixel_values "
            "among it. Pass that."
        )
    for name in ("input_ids", "pixel_values") if made is not None else ():
        assert made is not None
        mine, theirs = made[name], own[name]
        alike = isinstance(theirs, Tensor) and theirs.shape == mine.shape
        if not alike or float((mine.float() - theirs.float().cpu()).abs().max()) > 1e-3 * max(1.0, float(mine.max())):
            raise InputError(
                f"{name} of inputs= is not what the processor makes of this picture and text, so their places are not "
                "known. Pass processor= with the one that made it, or inputs= alone."
            )
    return own


def _moved(value: Tensor, model: nn.Module) -> Tensor:
    """Return a tensor on the model's device, and in its dtype if it is one of pixels."""
    return to_model(value, model) if value.is_floating_point() else value.to(next(model.parameters()).device)


def _check_processor(processor: Any, named: str) -> None:
    if not callable(processor) or getattr(processor, "image_processor", None) is None:
        raise InputError(
            f"processor= is a {type(processor).__name__}. {named} needs one of pictures and texts, which writes the "
            "picture's tokens into the text. Pass the processor that was saved with the model."
        )

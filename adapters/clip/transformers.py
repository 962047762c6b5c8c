"""Two-tower models of transformers: CLIP, SigLIP, SigLIP 2, AIMv2, AltCLIP, ChineseCLIP, MetaCLIP 2, OWL-ViT, ...

Two towers run side by side and only their two features meet:

    stream `vision`   patches of the picture (and a class token, or a pool that asks them all)
    stream `text`     pieces of the prompt

There is no attention between a word and a patch; what links the two is made from these towers by a
method of its own. A picture alone runs the vision tower alone, a text alone the text tower. Where
patches stand is found by the engine of `..vit.layouts`, from a run of the vision tower on indices.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError
from mmattn.interception.calls import Call, Emit
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, Prepared
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.media import Photo, Words

from ..hub import said
from ..pixels import Geometry, Size
from ..text.transformers_open import tokenizer_of
from ..vit.layouts import PictureFacts, left_out, picture_layers
from ..vit.pictures import Brought, bring, photos_of, phrase, runner
from ..vit.transformers import readout_of
from ..vit.transformers_input import TransformersOptions, native_size, photo_tensor, vision_setting
from ..vit.transformers_open import takes
from ..vit.transformers_patches import images_of, is_cut, patches_of
from .transformers_open import families, is_two_towers, open_model, opens_config
from .transformers_text import TextFacts, encoded_texts, given_texts, text_layer, texts_of

__all__ = ["PairFacts", "TransformersClip", "TransformersOptions", "adapter"]

_TEXT_TOWER = "text_model"


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFacts:
    """What the layers of both towers need.

    Parameters
    ----------
    picture, text
        Of each tower; None where it does not run.
    pixels
        What the vision tower is called with, by name.
    """

    picture: PictureFacts | None
    text: TextFacts | None
    pixels: Mapping[str, Any]


class TransformersClip:
    """The adapter `transformers.clip`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "transformers.clip"
    default_stream = "vision"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model has two towers of transformers that this adapter knows by class."""
        return is_two_towers(model)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names such a class."""
        return opens_config(config)

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a folder or a name on the Hugging Face hub, with its processor."""
        return open_model(name, weights=weights)

    def models(self) -> Iterable[ModelFamily]:
        """What can be opened, by how the towers are built."""
        return families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures and texts to the towers by the model's processor, or take the user's own tensors.

        Parameters
        ----------
        media
            `image`: a Photo or several; `text`: a string or several; both: pairs, where one picture or
            one text alone is paired with each of the other. `inputs`: what the processor returns.
        processor
            A processor of pictures and texts; an image processor (or a transform) or a tokenizer where
            one of the two is asked for. None: what was saved with the model.
        options
            TransformersOptions, for the picture.

        Raises
        ------
        InputError
            Nothing to look at, another modality, an empty text, pictures and texts that make no pairs,
            a processor that cannot be inverted, tensors that do not fit.
        """
        options = _checked(media, options)
        given = _given(media, model=model)
        texts = () if media.text is None else texts_of(media.text)
        brought = _brought(given, model=model, processor=processor, options=options)
        samples = _samples(brought, texts, given)
        brought = None if brought is None else _repeated(brought, samples)
        texts = texts * samples if len(texts) == 1 else texts
        text = _texts(texts, given, model=model, processor=processor)
        return _prepared(model, brought=brought, text=text, texts=texts, options=options)

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Place the calls of each tower on its own axes, in the order in which they ran."""
        facts: PairFacts = prepared.facts
        found: list[AttentionLayer] = []
        if facts.picture is not None:
            found += picture_layers([call for call in calls if not _of_text(call)], facts.picture)
        if facts.text is not None:
            found += [text_layer(call, facts.text) for call in calls if _of_text(call) and call.kind == "token"]
        order = {call.module: number for number, call in reversed(list(enumerate(calls)))}
        return sorted(found, key=lambda layer: order[layer.name])

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        facts: PairFacts = prepared.facts
        if facts.picture is None:
            return ()
        return left_out([call for call in calls if not _of_text(call)], facts.picture)

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TransformersOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TransformersOptions(size_px=size_px, keep_aspect=keep_aspect)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a picture with a text: None, each pair's own, summed; `(picture, text)`, that one's.

        Raises
        ------
        ModelError
            Only one tower ran, so that nothing was compared.
        InputError
            The target names no picture and text.
        """
        logits = getattr(output, "logits_per_image", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                "Only one tower ran, and the score of a two-tower model compares a picture with a text. Both are "
                "needed. Pass image= and text=, or use a method without a target (look, rollout)."
            )
        if target is None:
            return logits.diagonal().sum()
        pictures, texts = logits.shape
        numbers = target if isinstance(target, tuple) and all(type(one) is int for one in target) else ()
        if len(numbers) != 2 or not (-pictures <= numbers[0] < pictures and -texts <= numbers[1] < texts):
            raise InputError(
                f"The target {target!r} names no pair of {pictures} picture(s) and {texts} text(s). It is "
                "(picture, text), two numbers from 0. Pass that, or None for the pairs as they were given."
            )
        return logits[numbers]


adapter = TransformersClip()


def _of_text(call: Call) -> bool:
    return call.module.startswith(f"{_TEXT_TOWER}.")


def _checked(media: MediaGiven, options: Any) -> TransformersOptions:
    others = [name for name in ("audio", "video", "graph", "generate") if getattr(media, name) is not None]
    if others or (media.image is None and media.text is None and media.inputs is None):
        raise InputError(
            f"A model of pictures and texts got {', '.join(others) or 'neither'}. It compares the two and writes "
            "nothing. Pass image=, text=, both, or inputs= for prepared tensors."
        )
    if options is not None and not isinstance(options, TransformersOptions):
        raise InputError(
            f"options= is a {type(options).__name__}. This adapter takes TransformersOptions(size_px=, keep_aspect=, "
            f"crop=) from {TransformersOptions.__module__}. Pass one of those."
        )
    return options or TransformersOptions()


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


def _texts(texts: Sequence[Words], given: _Given, *, model: nn.Module, processor: Any) -> TextFacts | None:
    if given.words:
        return given_texts(given.words, model=model)
    if not texts:
        return None
    tokenizer = getattr(processor, "tokenizer", processor if hasattr(processor, "convert_ids_to_tokens") else None)
    return encoded_texts(texts, tokenizer=tokenizer or tokenizer_of(model), model=model)


def _prepared(
    model: nn.Module,
    *,
    brought: Brought | None,
    text: TextFacts | None,
    texts: tuple[Words, ...],
    options: TransformersOptions,
) -> Prepared:
    words = {} if text is None else dict(text.inputs)
    values = torch.zeros(0) if brought is None else brought.inputs
    pixels = {} if brought is None else _pixels(model, values, options=options)
    settings = {name: value for name, value in pixels.items() if name == "interpolate_pos_encoding"}

    def look(alive: nn.Module, pixel_values: Tensor) -> Any:
        return alive.get_image_features(**_named(alive, pixel_values), **settings)  # type: ignore[operator]

    def both(alive: nn.Module, _: Tensor) -> Any:
        if not pixels:
            return alive.get_text_features(**words)  # type: ignore[operator]
        return alive(**words, **pixels) if words else alive.get_image_features(**pixels)  # type: ignore[operator]

    picture = None
    if brought is not None:
        picture = PictureFacts(
            model=weakref.ref(model), geometries=brought.geometries, shape=tuple(values.shape), call=look
        )
    tensors = [value for value in (*words.values(), *pixels.values()) if isinstance(value, Tensor)]
    said_of = [] if brought is None else [phrase(brought.geometries)]
    said_of += [] if text is None else [f"text cut into {text.real.shape[1]} tokens"]
    return Prepared(
        run=runner(model, values, call=both, explain=_explained(values, options=options)),
        inputs=tuple(tensors),
        media=texts if brought is None else brought.photos,
        facts=PairFacts(picture=picture, text=text, pixels=pixels),
        preprocessing="; ".join(said_of),
        readout="" if brought is None else readout_of(model.vision_model),  # type: ignore[arg-type]
    )


def _named(model: nn.Module, values: Float[Tensor, "sample channel row col"]) -> dict[str, Tensor]:
    """Return pixels as the model's own arguments: images, or patches that are cut already."""
    if takes(model, "spatial_shapes"):
        return patches_of(values, patch_px=vision_setting(model, "patch_size"))
    return {"pixel_values": values}


def _pixels(model: nn.Module, values: Float[Tensor, "..."], *, options: TransformersOptions) -> dict[str, Any]:
    """Return what the vision tower is called with; positions are interpolated only if another size was asked for."""
    size: Size = (int(values.shape[3]), int(values.shape[2]))
    asked = options.size_px is not None or options.keep_aspect
    interpolates = asked and size != native_size(model) and takes(model, "interpolate_pos_encoding")
    return {**_named(model, values), **({"interpolate_pos_encoding": True} if interpolates else {})}


def _explained(
    values: Float[Tensor, "..."], *, options: TransformersOptions
) -> Callable[[nn.Module, Exception], InputError | None]:
    """Return what says which size there is, where a forward fails on another one than the model's own."""

    def explain(model: nn.Module, problem: Exception) -> InputError | None:
        native = native_size(model)
        if values.ndim != 4 or native is None or tuple(values.shape[:1:-1]) == native:
            return None
        more = "" if options.asked_px else "; positions are interpolated for another size where it is asked for"
        return InputError(
            f"{type(model).__name__} cannot take pictures of {values.shape[3]} x {values.shape[2]} px: "
            f"{said(problem)}. It was made for {native[0]} x {native[1]} px{more}. "
            "Pass the processor of this model, or options=TransformersOptions(size_px=...)."
        )

    return explain

"""Models of transformers with more sides than two towers: slots, latents and words that ask each other in turns.

    vision      patches ask patches
    qformer     BLIP-2's learned slots ask each other, and patches
    latents     a perceiver's learned latents ask patches and each other (Flamingo, Idefics)
    decoder     words ask those before them, and what the picture became

The processor that was saved with the model writes its whole input, as its library would. What each
token of it stands for is told by the class's `Built`, one file a family; which attention joins which
side by the paths of `Form`.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from mmattn.errors import InputError, MmattnError
from mmattn.interception.protocol import MediaGiven, Prepared
from mmattn.schema.axes import Axis
from mmattn.schema.media import Photo, Words

from ..hub import said
from ..pixels import Geometry
from ..vit.layouts import PictureFacts
from ..vit.pictures import photos_of, phrase, runner, to_model
from ..vit.transformers_input import TransformersOptions, photo_tensor
from .transformers_forms import Form
from .transformers_steps import ImageStep, stepped_geometry
from .transformers_text import TextFacts, texts_of

Derived = Callable[[tuple[Axis, ...]], Mapping[str, tuple[Axis, ...]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """One batch of pairs as a processor wrote it, or as the user passed it.

    Parameters
    ----------
    model, processor
        Of the call; the processor is None where tensors came alone.
    inputs
        Everything that the model is called with, on its device.
    photos, texts
        One a sample; empty where tensors came alone.
    geometries
        One a sample, or one for all.
    words
        The texts by themselves, where a tokenizer alone cut them.
    """

    model: nn.Module
    processor: Any
    inputs: Mapping[str, Tensor]
    photos: tuple[Photo, ...]
    texts: tuple[Words, ...]
    geometries: tuple[Geometry, ...]
    words: TextFacts | None = None

    @property
    def config(self) -> Any:
        """The model's settings."""
        return self.model.config

    @property
    def tokenizer(self) -> Any:
        """The processor's; None without one."""
        return getattr(self.processor, "tokenizer", None)

    @property
    def samples(self) -> int:
        """Number of pairs."""
        return len(self.ids)

    @property
    def ids(self) -> Int[Tensor, "sample token"]:
        """The row of tokens of each pair."""
        return self.inputs["input_ids"]

    @property
    def real(self) -> Bool[Tensor, "sample token"]:
        """Which of them are no padding."""
        return self.inputs.get("attention_mask", torch.ones_like(self.ids)).bool()

    def text_of(self, sample: int) -> str | None:
        """Return what the user wrote; None where it is not known."""
        return self.texts[sample].text if self.texts else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """What a class makes of its input, beside what its form says.

    Parameters
    ----------
    call
        What the model is called with.
    sides
        The axes of each side but those that the vision tower's run on indices gives.
    look
        Runs the vision tower on `pixels`; None: the tower is called with them alone.
    pixels
        What the vision tower gets, `[sample, channel, row, col]`.
    notes
        What a caption says of a layer, by its module's path.
    scored
        Which tokens of the row are words that the model gives logits for; None where its rows are others.
    scored_ids
        The row, where it is not the one that was written.
    derived
        Makes further sides of the patches' axes.
    blind
        Which words of the side `decoder` look at no picture, whatever the weights say.
    """

    call: Mapping[str, Any]
    sides: Mapping[str, tuple[Axis, ...]]
    pixels: Float[Tensor, "sample channel row col"]
    look: Callable[[nn.Module, Tensor], Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    scored: Bool[Tensor, "sample token"] | None = None
    scored_ids: Int[Tensor, "sample token"] | None = None
    derived: Derived | None = None
    blind: Bool[Tensor, "sample token"] | None = None


@dataclass(frozen=True, kw_only=True)
class SidedForm(Form):
    """How such a class is built: a form, and what makes its sides.

    Parameters
    ----------
    build
        Says what each token of a written batch stands for.
    read
        Puts the input together; None: the processor writes all of it.
    write
        Runs the processor on pictures and texts; None: called with both, as most are.
    image_step
        Runs the processor of pictures on one, with settings, and returns `[3, row, col]`; None: as most do.
    """

    build: Callable[[Written], Built]
    read: "Read | None" = None
    write: Callable[[Any, list[Any], list[str]], Mapping[str, Any]] | None = None
    image_step: ImageStep | None = None


@runtime_checkable
class Read(Protocol):
    """Puts together what a model gets of what the user gave."""

    def __call__(self, model: nn.Module, form: SidedForm, *, media: MediaGiven, processor: Any) -> Written:
        """Return the batch, each tensor on the model's device."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SidedFacts:
    """What the layers of all streams need; see `Built`.

    Parameters
    ----------
    text
        The rows of tokens with logits of their own; None where the model gives none for them.
    call
        What the model is called with.
    tokenizer
        That reads what the model writes; None where tensors came alone.
    """

    form: SidedForm
    samples: int
    picture: PictureFacts | None
    sides: Mapping[str, tuple[Axis, ...]]
    notes: Mapping[str, str]
    text: TextFacts | None = None
    derived: Derived | None = None
    blind: Bool[Tensor, "sample token"] | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None


def prepare_sided(
    model: nn.Module, form: SidedForm, *, media: MediaGiven, processor: Any, options: TransformersOptions
) -> Prepared:
    """Let the model's processor write its input, and say what each of its tokens stands for.

    Raises
    ------
    InputError
        A picture or a text is missing, they make no pairs, no processor is known, it cannot be inverted.
    """
    if options != TransformersOptions():
        raise InputError(
            f"{type(model).__name__} was given {options}. What its processor makes of a picture goes with the tokens "
            "that it writes for it. Pass a processor that makes the size, and no options."
        )
    written = (form.read or _written)(model, form, media=media, processor=processor)
    built = form.build(written)
    reference = weakref.ref(model)
    picture = None
    if form.vision:
        picture = PictureFacts(
            model=reference,
            geometries=written.geometries,
            shape=tuple(built.pixels.shape),
            call=built.look or (lambda alive, pixels: alive.get_submodule(form.vision)(pixels)),
        )

    def call(alive: nn.Module, _: Tensor) -> Any:
        return alive(**built.call)

    text = None
    if built.scored is not None:
        ids = written.ids if built.scored_ids is None else built.scored_ids
        text = TextFacts(inputs={"input_ids": ids}, axes=(), real=built.scored)
    facts = SidedFacts(
        form=form,
        samples=written.samples,
        picture=picture,
        sides=built.sides,
        notes=built.notes,
        text=text,
        derived=built.derived,
        blind=built.blind,
        call=built.call,
        tokenizer=written.tokenizer,
    )
    return Prepared(
        run=runner(model, built.pixels, call=call),
        inputs=tuple(value for value in built.call.values() if isinstance(value, Tensor)),
        media=written.photos,
        facts=facts,
        preprocessing=f"{phrase(written.geometries)}; text as {written.ids.shape[1]} tokens",
    )


def _written(model: nn.Module, form: SidedForm, *, media: MediaGiven, processor: Any) -> Written:
    photos = photos_of(media.image)
    texts = () if media.text is None else texts_of(media.text)
    own = media.inputs
    if own is None and not (photos and texts):
        there, lacks, argument = ("picture", "text", "text") if photos else ("text", "picture", "image")
        raise InputError(
            f"{type(model).__name__} was given a {there} alone. Its words and what it sees attend to each other, so it "
            f"needs a {lacks}. Pass {argument}= as well."
        )
    if processor is None and (photos or texts):
        processor = saved_processor(model)
    if photos or texts:
        _check_processor(processor, model)
    if own is None:
        photos, texts = _paired(photos, texts)
        own = _processed(processor, form, photos=photos, texts=texts)
    elif photos and texts:
        _check_same(own, _processed(processor, form, photos=photos, texts=texts))
    elif photos or texts:
        raise InputError(
            f"{type(model).__name__} was given inputs= with {'image' if photos else 'text'}= alone. Prepared tensors "
            "hold both, and are compared with what the processor makes of both. Pass both, or inputs= alone."
        )
    if not isinstance(own, Mapping) or not {"input_ids", "pixel_values"} <= set(own):
        held = ", ".join(map(str, own)) if isinstance(own, Mapping) else type(own).__name__
        raise InputError(
            f"inputs= holds {held or 'nothing'}. {type(model).__name__} needs what its processor returns, input_ids "
            "and pixel_values among it. Pass that."
        )
    return Written(
        model=model,
        processor=processor,
        inputs={str(name): moved(value, model) for name, value in own.items() if isinstance(value, Tensor)},
        photos=photos,
        texts=texts,
        geometries=_geometries(model, form, photos=photos, processor=processor, pixels=own["pixel_values"]),
    )


def _geometries(
    model: nn.Module, form: SidedForm, *, photos: tuple[Photo, ...], processor: Any, pixels: Tensor
) -> tuple[Geometry, ...]:
    """Return how each picture came to the model's pixels, measured; of tensors alone, as they are."""
    if not photos:
        return (Geometry(size_px=(int(pixels.shape[-1]), int(pixels.shape[-2]))),)
    images = processor.image_processor
    if form.image_step is not None:
        return tuple(stepped_geometry(images, photo.size_px, step=form.image_step) for photo in photos)
    options = TransformersOptions()
    return tuple(photo_tensor(photo, model=model, processor=images, options=options)[1] for photo in photos)


def _paired(photos: tuple[Photo, ...], texts: tuple[Words, ...]) -> tuple[tuple[Photo, ...], tuple[Words, ...]]:
    """Return as many pictures as texts: one alone stands with each of the other."""
    if len(photos) != len(texts) and 1 not in (len(photos), len(texts)):
        raise InputError(
            f"There are {len(photos)} pictures and {len(texts)} texts. Each picture has its text, or there is one of "
            "either. Pass as many of both, or one picture or one text."
        )
    count = max(len(photos), len(texts))
    return photos * (count if len(photos) == 1 else 1), texts * (count if len(texts) == 1 else 1)


def _processed(
    processor: Any, form: SidedForm, *, photos: tuple[Photo, ...], texts: tuple[Words, ...]
) -> Mapping[str, Any]:
    pictures = [Image.fromarray(photo.pixels) for photo in photos]
    wanted = [words.text for words in texts]
    try:
        if form.write is not None:
            return form.write(processor, pictures, wanted)
        encoded: Mapping[str, Any] = processor(images=pictures, text=wanted, padding=True, return_tensors="pt")
        return encoded
    except MmattnError:
        raise
    except Exception as problem:  # whatever another library raises over a text or a size
        raise InputError(
            f"{type(processor).__name__} cannot take this picture and text: {said(problem)}. It takes what the model "
            "was trained with. Check the text's marks for the picture, and the processor."
        ) from problem


def moved(value: Tensor, model: nn.Module) -> Tensor:
    """Return a tensor on the model's device, and in its dtype if it is one of pixels."""
    return to_model(value, model) if value.is_floating_point() else value.to(next(model.parameters()).device)


def _check_same(given: Any, made: Mapping[str, Any]) -> None:
    """Raise unless the user's tensors are what the processor makes of the user's picture and text."""
    there = given if isinstance(given, Mapping) else {}
    for name in ("input_ids", "pixel_values"):
        mine, theirs = made[name], there.get(name)
        if isinstance(theirs, Tensor) and theirs.shape == mine.shape:
            apart = float((mine.float() - theirs.float().cpu()).abs().max())
            if apart <= 1e-3 * max(1.0, float(mine.max())):
                continue
        raise InputError(
            f"{name} of inputs= is not what the processor makes of this picture and text, so their places are not "
            "known. Pass processor= with the one that made it, or inputs= alone."
        )


def saved_processor(model: nn.Module) -> Any:
    """Return the processor that was saved where the model was.

    Raises
    ------
    InputError
        There is none on this machine.
    """
    from transformers import AutoProcessor

    auto: Any = AutoProcessor
    name = str(getattr(model, "name_or_path", ""))
    try:
        if name:
            return auto.from_pretrained(name, local_files_only=True)
    except Exception:  # a folder without a processor, or a name that is not on this machine: many kinds
        pass
    raise InputError(
        f"No processor was saved with {type(model).__name__}. It writes the marks of the picture into the text, so "
        "that one is needed. Pass processor=."
    )


def _check_processor(processor: Any, model: nn.Module) -> None:
    if (
        not callable(processor)
        or getattr(processor, "image_processor", None) is None
        or not hasattr(processor, "tokenizer")
    ):
        raise InputError(
            f"processor= is a {type(processor).__name__}. {type(model).__name__} needs one of pictures and texts, "
            "which writes the picture's tokens into the text. Pass the processor that was saved with the model."
        )

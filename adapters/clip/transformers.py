"""Models of pictures and texts of transformers: CLIP, SigLIP, SigLIP 2, AIMv2, AltCLIP, BLIP, BridgeTower, ...

    stream `vision`    patches of the picture (and a class token, or a pool that asks them all)
    stream `text`      pieces of the prompt
    stream `cross`     BLIP's and BridgeTower's: words that ask patches, and patches that ask words
    stream `decoder`   BLIP's captions: words that ask those before them, and patches
    stream `joined`    ViLT: words and patches in one sequence, in which all ask all
    stream `qformer`, `latents`    slots of BLIP-2's Q-Former, latents of a perceiver: see `transformers_sides`

In a model of two towers (CLIP and its kin) only the two features meet: there is no attention between
a word and a patch, and what links the two is made from the towers by a method of its own. A picture
alone runs the vision tower alone, and a text alone the text tower of such a model.

Where patches stand is found by the engine of `..vit.layouts`, from a run of the vision tower on
indices; which tokens every other attention joins is told by `transformers_forms`.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmattn.errors import InputError
from mmattn.interception.calls import Call, Emit
from mmattn.interception.feature_maps import FeatureMap
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, PairScores, Prepared
from mmattn.interception.writing import Way
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer

from ..hub import said
from ..pixels import Size
from ..vit.layouts import PictureFacts, feature_map
from ..vit.pictures import phrase, runner
from ..vit.transformers import readout_of
from ..vit.transformers_input import TransformersOptions, native_size, vision_setting
from ..vit.transformers_open import takes
from ..vit.transformers_patches import patches_of
from .features import logits_per_image
from .given import checked_options
from .literals import refuse_literals
from .transformers_features import image_features, text_features
from .transformers_forms import Form
from .transformers_input import Read, read
from .transformers_known import form_of, opens_config
from .transformers_layers import Sides, not_placed, placed
from .transformers_open import families, open_model
from .transformers_score import pair_scores, score_of
from .transformers_sequence import embedded, sequence_axes
from .transformers_sides import SidedFacts, SidedForm, prepare_sided
from .transformers_text import TextFacts
from .transformers_written import continued, write, writes

__all__ = ["PairFacts", "TransformersClip", "TransformersOptions", "adapter"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFacts:
    """What the layers of all streams need.

    Parameters
    ----------
    form
        How the class is built.
    samples
        Number of pairs.
    picture, text
        Of each side; None where it does not run.
    pixels
        What the vision tower is called with, by name.
    joined
        The axes of one sequence of both; empty for most.
    """

    form: Form
    samples: int
    picture: PictureFacts | None
    text: TextFacts | None
    pixels: Mapping[str, Any]
    joined: tuple[Axis, ...] = ()
    derived: None = None
    blind: None = None

    @property
    def sides(self) -> Sides:
        """The axes of each side but the patches', which the vision tower's run on indices gives."""
        text = () if self.text is None else self.text.axes
        return {"text": text, "joined": self.joined}

    @property
    def notes(self) -> Mapping[str, str]:
        """What a caption says of a layer: nothing."""
        return {}


class TransformersClip:
    """The adapter `transformers.clip`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "transformers.clip"
    default_stream = "vision"

    def claims(self, model: nn.Module) -> bool:
        """Whether this adapter knows how the model's class is built."""
        return form_of(model) is not None

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
            Nothing to look at, another modality, an empty text, one that spells a sign of its tokenizer,
            pictures and texts that make no pairs, a text without the picture that it needs, a processor
            that cannot be inverted, tensors that do not fit.
        """
        form = form_of(model)
        assert form is not None
        options = checked_options(media, options, kind=TransformersOptions, fields="size_px=, keep_aspect=, crop=")
        if isinstance(form, SidedForm):
            return prepare_sided(model, form, media=media, processor=processor, options=options)
        given = read(media, model=model, processor=processor, options=options, full_length=form.full_length)
        if form.apart and given.text is not None:
            refuse_literals(given.text.axes, given.text.inputs["input_ids"])
        lacks = "picture" if given.pictures is None and not form.apart else "text"
        if lacks == "picture" or (given.text is None and not form.vision):
            there, argument = ("text", "image") if lacks == "picture" else ("picture", "text")
            raise InputError(
                f"{type(model).__name__} was given a {there} alone. Its words and patches attend to each other, so it "
                f"needs a {lacks}. Pass {argument}= as well."
            )
        make = _prepared if form.vision else _prepared_sequence
        return make(model, form, given=given, options=options)

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Place each call on the axes of those who ask and are asked, in the order in which they ran."""
        facts: PairFacts | SidedFacts = prepared.facts
        return placed(
            calls,
            form=facts.form,
            picture=facts.picture,
            sides=facts.sides,
            samples=facts.samples,
            notes=facts.notes,
            derived=facts.derived,
            blind=facts.blind,
        )

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        facts: PairFacts | SidedFacts = prepared.facts
        return not_placed(calls, form=facts.form, picture=facts.picture)

    def image_options(self, *, size_px: int | None, keep_aspect: bool) -> TransformersOptions:
        """Return options for the sizes that a command line names; see `protocol.TakesSizes`."""
        return TransformersOptions(size_px=size_px, keep_aspect=keep_aspect)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit that a target names; see `transformers_score.score_of`."""
        return score_of(output, target)

    def picture_tower(self, model: nn.Module) -> str:
        """Return the path of the vision tower; see `protocol.SharesPicture`."""
        form = form_of(model)
        return "" if form is None else form.vision

    def pair_scores(self, output: Any, prepared: Prepared) -> PairScores:
        """Return what the model says of each pair; see `transformers_score.pair_scores`."""
        text = prepared.facts.text
        return pair_scores(output, ids=None if text is None else text.inputs["input_ids"], real=text and text.real)

    def has_two_towers(self, model: nn.Module) -> bool:
        """Whether nothing in it attends from one side to the other; see `protocol.TwoTowers`."""
        form = form_of(model)
        return form is not None and form.apart

    def image_features(self, model: nn.Module, prepared: Prepared) -> Float[Tensor, "picture dim"]:
        """Return the features of pictures; see `protocol.TwoTowers`."""
        return image_features(model, prepared)

    def text_features(
        self, model: nn.Module, prepared: Prepared, *, blank: bool = False, brief: bool = False
    ) -> Float[Tensor, "text dim"]:
        """Return the features of texts, which are as short as they can be; see `protocol.TwoTowers`."""
        return text_features(model, prepared, blank=blank)

    def feature_map(self, model: nn.Module, prepared: Prepared) -> FeatureMap | None:
        """Return the last feature map of a tower of convolutions; see `interception.feature_maps`."""
        facts: PairFacts = prepared.facts
        return None if facts.picture is None else feature_map(facts.picture)

    def text_axes(self, prepared: Prepared) -> tuple[Axis, ...]:
        """Return the axis of each text; see `protocol.TwoTowers`."""
        facts: PairFacts = prepared.facts
        return () if facts.text is None else facts.text.axes

    def compare(
        self, model: nn.Module, *, image: Float[Tensor, "picture dim"], text: Float[Tensor, "text dim"]
    ) -> Float[Tensor, "picture text"]:
        """Return the model's own logits of features; see `protocol.TwoTowers`."""
        return logits_per_image(model, image=image, text=text)

    def writes(self, model: nn.Module) -> Way | None:
        """Decoders behind a prompt do; see `interception.writing.Writes`."""
        return "anew" if writes(model, form_of(model)) else None

    def write(self, model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
        """Let the model write behind its prompt; see `interception.writing.Writes`."""
        return write(model, prepared, count)

    def continued(self, model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
        """Return the prompt with what was written behind it; see `interception.writing.Writes`."""
        return continued(model, prepared, written)


adapter = TransformersClip()


def _prepared(model: nn.Module, form: Form, *, given: Read, options: TransformersOptions) -> Prepared:
    pictures, text = given.pictures, given.text
    words = {} if text is None else dict(text.inputs)
    values = torch.zeros(0) if pictures is None else pictures.inputs
    pixels = {} if pictures is None else _pixels(model, values, options=options)
    settings = {name: value for name, value in pixels.items() if name == "interpolate_pos_encoding"}

    def look(alive: nn.Module, pixel_values: Tensor) -> Any:
        if form.apart:
            return alive.get_image_features(**_named(alive, pixel_values), **settings)  # type: ignore[operator]
        return alive.get_submodule(form.vision)(pixel_values, **settings)

    def call(alive: nn.Module, pixel_values: Tensor) -> Any:
        if not pixels:
            return alive.get_text_features(**words)  # type: ignore[operator]
        return alive(**words, **pixels) if words else look(alive, pixel_values)

    picture = None
    if pictures is not None:
        picture = PictureFacts(
            model=weakref.ref(model), geometries=pictures.geometries, shape=tuple(values.shape), call=look
        )
    tensors = [value for value in (*words.values(), *pixels.values()) if isinstance(value, Tensor)]
    how = [] if pictures is None else [phrase(pictures.geometries)]
    how += [] if text is None else [f"text as {text.real.shape[1]} tokens"]
    return Prepared(
        run=runner(model, values, call=call, explain=_explained(values, options=options)),
        inputs=tuple(tensors),
        media=given.words if pictures is None else pictures.photos,
        facts=PairFacts(form=form, samples=len(tensors[0]), picture=picture, text=text, pixels=pixels),
        preprocessing="; ".join(how),
        readout="" if pictures is None else readout_of(model.get_submodule(form.vision)),
    )


def _prepared_sequence(model: nn.Module, form: Form, *, given: Read, options: TransformersOptions) -> Prepared:
    pictures, text = given.pictures, given.text
    assert pictures is not None
    assert text is not None
    words, values = dict(text.inputs), pictures.inputs
    joined = sequence_axes(model, values, pictures.geometries, text)

    def call(alive: nn.Module, pixel_values: Tensor) -> Any:
        return alive(**words, **embedded(alive, pixel_values))

    with torch.no_grad():
        pixels = embedded(model, values)
    return Prepared(
        run=runner(model, values, call=call),
        inputs=(*words.values(), *pixels.values()),  # a recording of pixels saw its patches in an order of its own
        media=pictures.photos,
        facts=PairFacts(form=form, samples=len(values), picture=None, text=text, pixels=pixels, joined=joined),
        preprocessing=f"{phrase(pictures.geometries)}; text as {text.real.shape[1]} tokens",
        readout="cls",
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
    pixels: dict[str, Any] = _named(model, values)
    if takes(model, "pixel_mask"):  # BridgeTower's processor makes one, and the model does not look at it
        pixels = {"pixel_mask": torch.ones(len(values), *values.shape[2:], device=values.device), **pixels}
    return {**pixels, **({"interpolate_pos_encoding": True} if interpolates else {})}


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

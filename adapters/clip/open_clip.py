"""Models of open_clip: CLIP in all its forms (OpenAI, CLIPA, SigLIP, EVA, PE-Core, ViTamin, MobileCLIP, ...) and CoCa.

Two towers run side by side and only their two features meet. There is no attention between a word and a
patch; what links the two is made from these towers by a method of its own. CoCa's decoder is the
exception: it writes a caption and looks at the picture for each word. A picture alone runs the image
tower alone, a text alone the text tower.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError, NoAttentionError
from mmattn.interception.calls import Call, Emit
from mmattn.interception.feature_maps import FeatureMap
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, PairScores, Prepared
from mmattn.interception.writing import Way
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.media import Words

from ..vit.layouts import PictureFacts, feature_map
from ..vit.pictures import Brought, phrase, runner
from .features import logits_per_image
from .given import checked_options
from .open_clip_features import image_features, text_features
from .open_clip_input import OpenClipOptions, brought, explained, parts_of
from .open_clip_layers import PairFacts, layers_of, left_out_of, pair_facts
from .open_clip_open import families, open_model
from .open_clip_run import encode, pair_scores, readout_of, score_of
from .open_clip_words import Texts, given_ids, tokenized
from .open_clip_words import readout_of as readout_of_text
from .open_clip_written import continued, write, writes
from .transformers_text import texts_of

__all__ = ["OpenClip", "OpenClipOptions", "adapter"]


class OpenClip:
    """The adapter `open_clip.clip`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "open_clip.clip"
    default_stream = "vision"

    def claims(self, model: nn.Module) -> bool:
        """Whether the model is one of open_clip's, with two towers."""
        return isinstance(model, CLIP | CustomTextCLIP | CoCa)

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Never: open_clip's folders have no config.json of these models; see `open`."""
        return False

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open `ARCHITECTURE/TAG`, `ARCHITECTURE@FILE`, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`."""
        return open_model(name, weights=weights)

    def models(self) -> Iterable[ModelFamily]:
        """What open_clip has of these, by family."""
        return families()

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Bring pictures and texts to the towers as open_clip does, or take the user's own tensors.

        Parameters
        ----------
        media
            `image`: a Photo or several; `text`: a string or several; both: pairs, where one picture or one
            text alone is paired with each of the other. `inputs`: pixels, rows of tokens, or both in a
            mapping `{"image": ..., "text": ...}`.
        processor
            A transform of pictures, a tokenizer, or both as a pair; None: the model's own.
        options
            OpenClipOptions, for the picture.

        Raises
        ------
        InputError
            Nothing to look at, another modality, an empty text, pictures and texts that make no pairs, a
            transform that cannot be inverted, a tokenizer that is not known, tensors that do not fit.
        ModelError
            Patch dropout that is on, so that nobody knows which patches are seen.

        """
        options = checked_options(media, options, kind=OpenClipOptions, fields="crop=")
        _refuse_patch_dropout(model)
        transform, tokenizer = parts_of(processor)
        pixels, ids = _tensors(media.inputs)
        words = () if media.text is None else texts_of(media.text)
        if ids is not None and words:
            raise InputError(
                "inputs= holds a text and text= was given too. The words of a text come from one of them. "
                "Leave the text out of inputs=, or leave text= out."
            )
        pictures = brought(replace(media, inputs=pixels), model=model, transform=transform, options=options)
        texts = None
        if words:
            texts = tokenized(words, model=model, tokenizer=tokenizer)
        elif ids is not None:
            texts = given_ids(ids, model=model)
        prepared = _prepared(model, *_paired(pictures, texts), words=words)
        return replace(prepared, facts=replace(prepared.facts, tokenizer=tokenizer))

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Place the calls of each tower on its own axes.

        Raises
        ------
        NoAttentionError
            A picture was given, and the image tower has no attention (ConvNeXt).

        """
        facts: PairFacts = prepared.facts
        if facts.picture is not None and not any(call.module.startswith("visual.") for call in calls):
            alive: Any = facts.picture.model()
            tower = getattr(alive.visual, "trunk", alive.visual)
            raise NoAttentionError(
                f"The image tower of this model, a {type(tower).__name__}, has no attention: it is convolutions alone. "
                "Maps need attention. Use mmattn.match, which reads its last feature map, pass text= alone "
                "for its text tower, or use another model."
            )
        return layers_of(calls, facts)

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        return left_out_of(calls, prepared.facts)

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit of a picture with a text; see `open_clip_run.score_of`."""
        return score_of(output, target)

    def picture_tower(self, model: nn.Module) -> str:
        """Return the path of the image tower; see `protocol.SharesPicture`."""
        return "visual"

    def pair_scores(self, output: Any, prepared: Prepared) -> PairScores:
        """Return how likely CoCa's decoder is to write each text; see `open_clip_run.pair_scores`."""
        return pair_scores(output, ids=prepared.facts.ids, axes=prepared.facts.texts)

    def has_two_towers(self, model: nn.Module) -> bool:
        """Every model of open_clip has; CoCa's decoder stands beside them. See `protocol.TwoTowers`."""
        return True

    def image_features(self, model: nn.Module, prepared: Prepared) -> Float[Tensor, "picture dim"]:
        """Return the features of pictures; see `protocol.TwoTowers`."""
        return image_features(model, prepared)

    def text_features(
        self, model: nn.Module, prepared: Prepared, *, blank: bool = False, brief: bool = False
    ) -> Float[Tensor, "text dim"]:
        """Return the features of texts; see `protocol.TwoTowers`."""
        return text_features(model, prepared, blank=blank, brief=brief)

    def feature_map(self, model: nn.Module, prepared: Prepared) -> FeatureMap | None:
        """Return the last feature map of a tower of convolutions; see `interception.feature_maps`."""
        facts: PairFacts = prepared.facts
        return None if facts.picture is None else feature_map(facts.picture)

    def text_axes(self, prepared: Prepared) -> tuple[Axis, ...]:
        """Return the axis of each text; see `protocol.TwoTowers`."""
        axes: tuple[Axis, ...] = prepared.facts.texts
        return axes

    def compare(
        self, model: nn.Module, *, image: Float[Tensor, "picture dim"], text: Float[Tensor, "text dim"]
    ) -> Float[Tensor, "picture text"]:
        """Return the model's own logits of features; see `protocol.TwoTowers`."""
        return logits_per_image(model, image=image, text=text)

    def writes(self, model: nn.Module) -> Way | None:
        """CoCa alone does, without a cache; see `interception.writing.Writes`."""
        return "anew" if writes(model) else None

    def write(self, model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
        """Let CoCa write about a picture; see `interception.writing.Writes`."""
        return write(model, prepared, count)

    def continued(self, model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
        """Return the picture with the text that was written about it; see `interception.writing.Writes`."""
        return continued(model, prepared, written)


adapter = OpenClip()


def _refuse_patch_dropout(model: nn.Module) -> None:
    visual: Any = model.visual
    parts: tuple[Any, ...] = (
        getattr(visual, "patch_dropout", None),
        getattr(getattr(visual, "trunk", None), "patch_drop", None),
    )
    for part in parts:
        if getattr(part, "prob", 0) and getattr(part, "training", False):
            raise ModelError(
                f"The model drops {part.prob:.0%} of its patches at random (patch dropout, training mode), and does "
                "not say which. In eval mode every patch is seen. Call model.eval() first."
            )


def _tensors(inputs: Any) -> tuple[Any, Any]:
    """Return the user's pixels and rows of tokens; None for what is not there."""
    if isinstance(inputs, Mapping):
        if not inputs or set(inputs) - {"image", "text"}:
            raise InputError(
                f"inputs= holds {', '.join(map(str, inputs)) or 'nothing'}. It would hold pixels as image and rows of "
                'tokens as text. Pass {"image": pixels, "text": tokens}, or one of them.'
            )
        return inputs.get("image"), inputs.get("text")
    rows = isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.ndim == 2
    return (None, inputs) if rows else (inputs, None)


def _paired(pictures: Brought | None, texts: Texts | None) -> tuple[Brought | None, Texts | None]:
    """Return as many pictures as texts: one of either stands for all."""
    if pictures is None or texts is None:
        return pictures, texts
    count, said = len(pictures.inputs), len(texts.ids)
    if count != said and 1 not in (count, said):
        raise InputError(
            f"There are {count} pictures and {said} texts. Each picture has its text, or there is one of either. "
            "Pass as many of both, or one picture or one text."
        )
    if count < said:
        pictures = Brought(
            inputs=pictures.inputs.expand(said, -1, -1, -1),
            photos=pictures.photos * said,
            geometries=pictures.geometries[:1] * said,
        )
    elif said < count:
        texts = replace(texts, ids=texts.ids.expand(count, -1), axes=texts.axes * count)
    return pictures, texts


def _prepared(model: nn.Module, pictures: Brought | None, texts: Texts | None, *, words: tuple[Words, ...]) -> Prepared:
    pixels = None if pictures is None else pictures.inputs
    ids = None if texts is None else texts.ids
    inputs = tuple(tensor for tensor in (pixels, ids) if tensor is not None)

    def run(alive: nn.Module, _: Tensor) -> Any:
        return encode(alive, pixels=pixels, ids=ids)

    picture = None
    if pictures is not None:
        picture = PictureFacts(
            model=weakref.ref(model), geometries=pictures.geometries, shape=tuple(pictures.inputs.shape), call=_look
        )
    axes: tuple[Axis, ...] = () if texts is None else texts.axes
    said = ([] if pictures is None else [phrase(pictures.geometries)]) + ([] if texts is None else [texts.phrase])
    return Prepared(
        run=runner(
            model,
            torch.zeros(0) if pixels is None else pixels,
            call=run,
            explain=None if pictures is None else explained(pictures.size_px),
        ),
        inputs=inputs,
        media=words if pictures is None else pictures.photos,
        facts=pair_facts(model, picture=picture, texts=axes, pixels=pixels, ids=ids),
        preprocessing="; ".join(said),
        readout=readout_of_text(model) if pictures is None else readout_of(model),
    )


def _look(model: nn.Module, pixels: Tensor) -> Any:
    tower: Any = model.visual
    return tower(pixels)

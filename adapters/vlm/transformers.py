"""Decoders of transformers that read pictures in one stream with words: Llava, ...

    stream `vision`    patches of the picture, or of its tiles, in the tower
    stream `decoder`   one sequence of parts: `text`, `image` (`tiles` where it was cut); several pictures
                       are `image 1`, `image 2`, ... What a token attends to stands before it, as a rule

The processor that was saved with the model writes the prompt (its chat template where it has one and the
text holds no marks for pictures), resizes and cuts the picture. Where each token's pixels lie in the
original picture is measured of that processor; how tokens lie in the prompt is told by the class's line
in `known.py`. Tokens without pixels (newlines between rows, say) have a role and no place.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from mmattn.errors import InputError, ModelError
from mmattn.interception.calls import Call, Emit
from mmattn.interception.protocol import MediaGiven, ModelFamily, Opened, PairScores, Prepared
from mmattn.interception.writing import Way
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer

from ..clip.transformers_forms import Joins
from ..clip.transformers_layers import joined_layer
from ..clip.transformers_open import open_model
from ..clip.transformers_row import words_alone
from ..clip.transformers_score import pair_scores, score_of
from ..clip.transformers_text import TextFacts
from ..vit.pictures import phrase, runner
from .cuts import several
from .given import read
from .known import CLASSES, OneStream, class_of, opens_config
from .layers import Tower, tower_layers, tower_of
from .layouts import special_count
from .rows import row_axes, seen_of
from .written import continued, write

__all__ = ["SequenceFacts", "TransformersSequence", "adapter"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceFacts:
    """What the layers of both streams need.

    Parameters
    ----------
    how
        How the class is built.
    model
        Not kept alive.
    inputs
        Everything that the model is called with.
    tower
        The patches of all views.
    text
        The rows of tokens: their axes, and which of them are the user's words.
    tokenizer
        That reads what the model writes; None where tensors came alone.
    note
        What captions say of the pictures' boxes in the prompt; empty where they are exact.
    """

    how: OneStream
    model: weakref.ref[nn.Module]
    inputs: Mapping[str, Tensor]
    tower: Tower
    text: TextFacts
    tokenizer: Any = None
    note: str = ""

    @property
    def rows(self) -> tuple[Axis, ...]:
        """The axis of each prompt."""
        return self.text.axes


class TransformersSequence:
    """The adapter `transformers.vlm`; see `mmattn.interception.protocol.Adapter` for what each method answers."""

    name = "transformers.vlm"
    default_stream = "decoder"

    def claims(self, model: nn.Module) -> bool:
        """Whether this adapter knows how the model's class is built."""
        return class_of(model) is not None

    def opens(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json names such a class."""
        return opens_config(config)

    def open(self, name: str, weights: Path | None = None) -> Opened:
        """Open a folder or a name on the Hugging Face hub, with its processor."""
        return open_model(name, weights=weights, known=CLASSES)

    def models(self) -> Iterable[ModelFamily]:
        """What can be opened."""
        return [
            ModelFamily(
                name="hf:OWNER/NAME",
                what="decoders that read pictures in one stream with words: " + ", ".join(_names()),
                how_exact="weights, patches and words exact, in both streams",
                source="a folder, or the Hugging Face hub (safetensors only)",
            )
        ]

    def prepare(self, model: nn.Module, media: MediaGiven, processor: Any, options: Any) -> Prepared:
        """Write the prompt and bring its pictures to the model, or take the user's own tensors.

        Parameters
        ----------
        media
            `image` and `text`: a picture and a text, several pairs, one picture with several texts. Several
            pictures stand in one prompt where its text has as many marks for them, or where `image` is a list
            of lists. `inputs`: what the processor returns.
        processor
            The one that was saved with the model; None: it is looked for there.

        Raises
        ------
        InputError
            A picture or a text is missing, another modality, marks and pictures that do not agree, a processor
            that cannot be inverted, tensors that do not fit.
        """
        how = class_of(model)
        assert how is not None
        _check(media, options, named=type(model).__name__)
        given = read(media, model=model, how=how, processor=processor)
        pictures = seen_of(given, model=model, how=how)
        axes = row_axes(given, pictures, model=model, how=how)
        real = words_alone(axes)
        reference = weakref.ref(model)
        facts = SequenceFacts(
            how=how,
            model=reference,
            inputs=given.inputs,
            tower=tower_of(pictures, special=special_count(model)),
            text=TextFacts(inputs={"input_ids": given.ids}, axes=axes, real=real),
            tokenizer=getattr(given.processor, "tokenizer", None),
            note=next((seen.note for own in pictures for seen in own if seen.note), ""),
        )

        def call(alive: nn.Module, _: Tensor) -> Any:
            return alive(**given.inputs)

        alone = all(len(own) == 1 for own in pictures)
        shown = tuple(dict.fromkeys(view.geometry for own in pictures for seen in own for view in seen.views))
        return Prepared(
            run=runner(model, given.inputs["pixel_values"], call=call),
            inputs=tuple(given.inputs.values()),
            media=tuple(group[0] for group in given.photos) if alone else (),
            facts=facts,
            preprocessing=f"{_phrase(shown)}; prompt of {given.ids.shape[1]} tokens",
        )

    def taps(self, model: nn.Module, emit: Emit) -> AbstractContextManager[None]:
        """No extra points: everything goes through the kernels that interception sees."""
        return nullcontext()

    def layers(self, calls: Sequence[Call], prepared: Prepared) -> Sequence[AttentionLayer]:
        """Place the tower's calls on its patches and the decoder's in the sequence, in the order in which they ran."""
        facts: SequenceFacts = prepared.facts
        own, _ = tower_layers(_within(calls, facts.how.tower), facts.tower)
        decoder = facts.how.decoder
        joins = Joins(path=decoder, stream="decoder", query="decoder", key="decoder")
        found = [
            joined_layer(call, joins, sides={"decoder": facts.rows}, samples=len(facts.rows))
            for call in _within(calls, decoder)
        ]
        return [*own, *(replace(layer, note=facts.note) for layer in found)]

    def left_out(self, calls: Sequence[Call], prepared: Prepared) -> tuple[str, ...]:
        """Return what is no token attention, with the reason; see `protocol.LeavesOut`."""
        facts: SequenceFacts = prepared.facts
        how = facts.how
        _, alone = tower_layers(_within(calls, how.tower), facts.tower)
        known = {id(call) for path in (how.tower, how.decoder) for call in _within(calls, path)}
        unknown = dict.fromkeys(call.module for call in calls if id(call) not in known)
        return (*alone, *(f"{module}: which tokens it joins is not known" for module in unknown))

    def score(self, output: Any, target: Any) -> Float[Tensor, ""]:
        """Return the logit that a target names: `(token, vocabulary entry)`, of the word after that token."""
        return score_of(output, target)

    def pair_scores(self, output: Any, prepared: Prepared) -> PairScores:
        """Return how likely the model is to write the text, and the logit of each word; see `protocol.ScoresPairs`."""
        text: TextFacts = prepared.facts.text
        _refuse_seen(prepared.facts)
        return pair_scores(output, ids=text.inputs["input_ids"], real=text.real)

    def picture_tower(self, model: nn.Module) -> str:
        """Return the path of a tower that takes one picture of pixels for each; see `protocol.SharesPicture`."""
        how = class_of(model)
        return how.tower if how is not None and how.cut is several else ""

    def writes(self, model: nn.Module) -> Way:
        """Every pass of `generate` is a step behind a cache; see `interception.writing.Writes`."""
        return "steps"

    def write(self, model: nn.Module, prepared: Prepared, count: int) -> Int[Tensor, "sample token"]:
        """Let the model write behind its prompt; see `interception.writing.Writes`."""
        return write(model, prepared, count)

    def continued(self, model: nn.Module, prepared: Prepared, written: Int[Tensor, "sample token"]) -> Prepared:
        """Return the prompt with what was written behind it; see `interception.writing.Writes`."""
        return continued(model, prepared, written)


adapter = TransformersSequence()


def _refuse_seen(facts: SequenceFacts) -> None:
    """Raise where words are read from both sides, so that each is seen by the row that would write it."""
    kinds = facts.inputs.get("token_type_ids")
    config: Any = getattr(facts.model(), "config", None)
    if (
        kinds is not None
        and getattr(config, "model_type", "") == "paligemma"
        and not bool(kinds[facts.text.real].all())
    ):
        raise ModelError(
            "PaliGemma reads its prompt from both sides, so how likely it would write it is not known. What it writes "
            "is asked word by word. Use mmattn.attend(model, image=..., text=..., generate=N) and mmattn.between(maps)."
        )


def _names() -> list[str]:
    return list(dict.fromkeys(how.named for how in CLASSES.values()))


def _within(calls: Sequence[Call], path: str) -> list[Call]:
    return [call for call in calls if call.module.startswith(f"{path}.")]


def _check(media: MediaGiven, options: Any, *, named: str) -> None:
    others = [name for name in ("audio", "video", "graph", "generate") if getattr(media, name) is not None]
    if others or (media.image is None and media.text is None and media.inputs is None):
        raise InputError(
            f"{named} was given {', '.join(others) or 'nothing'}. It reads pictures in a prompt. Pass image= and "
            "text=, or inputs= for prepared tensors."
        )
    if options is not None:
        raise InputError(
            f"Options {options!r} were given. {named} has none: what its processor makes of a picture goes with the "
            "tokens that it writes for it. Pass a processor that makes the size."
        )


def _phrase(geometries: tuple[Any, ...]) -> str:
    more = f" and {len(geometries) - 1} more views" if len(geometries) > 1 else ""
    return phrase(geometries[:1]) + more

"""Which word goes with which patch, in a model of two towers that share no attention: a construction, chosen by name.

method          what it is                                                       words           unit
`interaction`   second order: Jacobians of both towers, from their references   true rows       signed, of the cosine
`chefer`        attention x gradient of the image tower's last layer             a prompt each   relevance
`gradeclip`     values x gradient x nearness of keys, last layer                 a prompt each   relevance
`naclip`        cosine of patches that look at keys like theirs and at neighbors a prompt each   a cosine
`legrad`        gradient of what each layer forms by its attention, all layers   a prompt each   relevance
`gradcam`       gradient x last feature map of convolutions                      a prompt each   relevance
`similarity`    raw cosine of patches with the prompt; prefers the background    a prompt each   a cosine

An image tower without attention (ConvNeXt) has the places of its last feature map for patches; so has one whose only
attention is a pool (RN50) or whose blocks are of convolutions too (MobileCLIP), where a method needs a sequence of
tokens. What reads attention refuses the first.

The picture is looked at once for all texts. A method that gives a map for each prompt gives a word's map by running
that word as a prompt of its own: what the word means in the text it stands in is not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.analysis.matching.chefer import chefer
from mmattn.analysis.matching.cut import in_blocks
from mmattn.analysis.matching.gradcam import gradcam
from mmattn.analysis.matching.gradeclip import gradeclip
from mmattn.analysis.matching.interaction import interaction
from mmattn.analysis.matching.legrad import legrad
from mmattn.analysis.matching.naclip import naclip
from mmattn.analysis.matching.said import Said, said, words_alone, words_of
from mmattn.analysis.matching.similarity import similarity
from mmattn.analysis.matching.towers import Tower, look, map_of
from mmattn.errors import InputError, ModelError, NoAttentionError, NotFoundError, nearest
from mmattn.interception.gradients import refuse_without_gradients
from mmattn.interception.protocol import Adapter, MediaGiven, TwoTowers
from mmattn.schema.axes import Slots, Tokens
from mmattn.schema.matches import Match
from mmattn.schema.media import Photo, Words
from mmattn.schema.results import Relevance, Unit
from mmattn.schema.source import Source

Method = Literal["interaction", "chefer", "gradeclip", "naclip", "legrad", "gradcam", "similarity"]

_UNITS: dict[str, Unit] = dict.fromkeys(("interaction", "naclip", "similarity"), "signed relevance")
_OF_ATTENTION = ("chefer", "gradeclip", "naclip", "legrad")
_COUNTED = {"steps": ("interaction",), "blocks": ("interaction", "legrad")}
_OWN_PROMPT = "each as a prompt of its own"
_NOTES: dict[str, dict[str, object]] = {
    "similarity": {"note": "raw similarity prefers the background"},
    "naclip": {"note": "a cosine of patches, dense over the picture"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A model with one picture and some texts, made ready.

    Parameters
    ----------
    processor, options
        As `adapter.prepare` takes them.
    source
        For captions.
    kept
        What was made of the texts, shared by pairs that differ in their picture alone.
    """

    adapter: Adapter
    model: nn.Module
    photo: Photo
    texts: tuple[Words, ...]
    processor: Any = None
    options: Any = None
    source: Source = field(default_factory=Source)
    kept: dict[object, Any] = field(default_factory=dict)

    def prepared(self, **media: Any) -> Any:
        """Return a picture or texts as the model gets them."""
        return self.adapter.prepare(self.model, MediaGiven(**media), self.processor, self.options)


def match(pair: Pair, *, method: str | None = None, steps: int | None = None, blocks: int | None = None) -> Match:
    """Return what a model makes of a picture and some texts.

    Parameters
    ----------
    method
        See above; by default `interaction`.
    steps
        For `interaction`: points of the path from a black picture and a blank text (4); 1: the input alone.
    blocks
        Blocks of the image tower, from its end: for `interaction` those that the path leads through (1), for `legrad`
        those that are summed (all).

    Raises
    ------
    NotFoundError
        An unknown method, or more blocks than there are.
    InputError
        `steps` or `blocks` with another method, or below 1.
    ModelError
        A model that the method cannot read.
    """
    chosen = _checked(pair, method, {"steps": steps, "blocks": blocks})
    refuse_without_gradients(pair.model)
    with torch.inference_mode(False):
        return _match(pair, chosen, steps=steps or 4, blocks=blocks)


def _match(pair: Pair, method: Method, *, steps: int, blocks: int | None) -> Match:
    assert isinstance(pair.adapter, TwoTowers)
    seen = pair.prepared(image=pair.photo)
    image = _tower_for(method, pair, look(pair.adapter, pair.model, seen, stream="vision"))
    text = said(pair, steps=steps if method == "interaction" else None)
    source = replace(pair.source, preprocessing="; ".join(filter(None, (seen.preprocessing, text.preprocessing))))
    if method == "interaction":
        rows = _interactions(pair, image, text, steps=steps, blocks=blocks or 1)
        whole = torch.stack([one.sum(dim=0) for one in rows])
        told: dict[str, object] = {"steps": steps, "blocks": blocks or 1, "against": "a black picture and a blank text"}
    else:
        rows, whole = _by_prompts(pair, method, image, text, blocks=blocks)
        told = {"words": _OWN_PROMPT, **_NOTES.get(method, {})}
        if method == "legrad":
            told["layers"] = f"the last {blocks}" if blocks else "all on the last tokens"
    if image.map is not None:
        told["tokens"] = f"places of the last feature map ({image.map.module})"
    with torch.no_grad():
        cosines = (text.features @ image.features.T)[:, 0]
        scores = pair.adapter.compare(pair.model, image=image.features, text=text.features)[0]
    made = _Made(pair=replace(pair, source=source), image=image, text=text, method=method, said=told)
    return Match(
        texts=tuple(one.text for one in pair.texts),
        scores=scores.detach().float().cpu(),
        cosines=cosines.float().cpu(),
        relevances=tuple(made.by_word(number, values) for number, values in enumerate(rows)),
        overall=tuple(made.as_one(number, values) for number, values in enumerate(whole)),
        method=method,
    )


def _tower_for(method: Method, pair: Pair, image: Tower) -> Tower:
    """Return the image tower with the tokens that a method reads: its last attention's, or its last feature map's."""
    name = f"The vision tower of {type(pair.model).__name__}"
    if image.map is not None:
        if method in _OF_ATTENTION:
            raise NoAttentionError(
                f'{name} has no attention: it is convolutions alone. method="{method}" reads attention. '
                'Use "interaction", "gradcam" or "similarity", which read its last feature map.'
            )
        return image
    if method not in ("interaction", "similarity", "gradcam"):
        return image
    found = map_of(pair.adapter, pair.model, image.prepared)
    if method != "gradcam":  # a block whose tokens are a map of channels first (MobileCLIP) takes no sequence
        return replace(image, map=found) if found and (found.channels == 1 or not in_blocks(image)) else image
    if found is None:
        raise ModelError(
            f"{name} has no feature map of convolutions at its end: its patches are tokens. "
            'Grad-CAM reads such a map. Use method="interaction", "gradeclip" or "chefer".'
        )
    return replace(image, map=found)


def _interactions(pair: Pair, image: Tower, text: Said, *, steps: int, blocks: int) -> list[Float[Tensor, "_ patch"]]:
    towers = pair.adapter
    assert isinstance(towers, TwoTowers)
    black = pair.prepared(image=Photo(pixels=np.zeros_like(pair.photo.pixels), name="black"))
    found = interaction(
        pair.model,
        image=image,
        pushed=text.pushed,
        black=lambda: towers.image_features(pair.model, black),
        steps=steps,
        blocks=blocks,
    )
    return [F.pad(one, (0, 0, 0, len(axis) - len(one))) for one, axis in zip(found, text.axes, strict=True)]


def _by_prompts(
    pair: Pair, method: Method, image: Tower, text: Said, *, blocks: int | None
) -> tuple[list[Float[Tensor, "_ patch"]], Float[Tensor, "text patch"]]:
    """Return a map for each text, and for each of its words as a prompt of its own, laid on the word's first token."""
    at = {one.text.strip(): number for number, one in enumerate(pair.texts)}  # a text may be one word
    words = list(dict.fromkeys(word.text for axis in text.axes for word in words_of(axis) if word.text not in at))
    at |= {word: len(text.axes) + number for number, word in enumerate(words)}
    prompts = torch.cat([text.features, words_alone(pair, words)]) if words else text.features
    adapter, model = pair.adapter, pair.model
    match method:
        case "chefer":
            found = chefer(adapter, model, image=image, prompts=prompts)
        case "gradeclip":
            found = gradeclip(adapter, model, image=image, prompts=prompts)
        case "naclip":
            found = naclip(adapter, model, image=image, prompts=prompts)
        case "legrad":
            found = legrad(adapter, model, image=image, prompts=prompts, blocks=blocks)
        case "gradcam":
            found = gradcam(adapter, model, image=image, prompts=prompts)
        case _:
            found = similarity(model, image=image, prompts=prompts)
    rows = []
    for axis in text.axes:
        values = torch.zeros(len(axis), found.shape[1], device=found.device)
        for word in words_of(axis):
            values[word.tokens[0]] = found[at[word.text]].float()
        rows.append(values)
    return rows, found[: len(text.axes)].float()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """What all relevances of a match have in common."""

    pair: Pair
    image: Tower
    text: Said
    method: Method
    said: dict[str, object]

    def by_word(self, number: int, values: Float[Tensor, "token patch"]) -> Relevance:
        axis = self.text.axes[number]
        assert isinstance(axis, Tokens)
        return self._relevance(number, values, query_axis=axis, labels=axis.pieces)

    def as_one(self, number: int, values: Float[Tensor, " patch"]) -> Relevance:
        label = (f"‘{self.pair.texts[number].text}’",)
        return self._relevance(number, values[None], query_axis=Slots.count(1), labels=label)

    def _relevance(self, number: int, values: Tensor, *, query_axis: Any, labels: Sequence[str]) -> Relevance:
        return Relevance(
            values=values.cpu(),
            axis=self.image.axes[0],
            query_axis=query_axis,
            labels=tuple(labels),
            method=self.method,
            unit=_UNITS.get(self.method, "relevance"),
            parameters=self.said,
            media=self.pair.photo,
            query_media=self.pair.texts[number],
            source=self.pair.source,
        )


def _checked(pair: Pair, method: str | None, counts: dict[str, int | None]) -> Method:
    known = get_args(Method)
    if method is not None and method not in known:
        raise NotFoundError(
            f'There is no method "{method}" to link words and patches. Methods for two towers are: '
            f"{nearest(str(method), known)}. Pass one of those."
        )
    chosen: Method = next((one for one in known if one == method), "interaction")
    for name, count in counts.items():
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(
                f"{name}={count!r} is no number of {name}. It is a whole number from 1. Pass such a number."
            )
        if chosen not in _COUNTED[name]:
            raise InputError(
                f'{name}={count} and method="{chosen}" do not go together: {name}= is for '
                f"{' and '.join(_COUNTED[name])}. Leave one of the two out."
            )
    if not isinstance(pair.adapter, TwoTowers) or not pair.adapter.has_two_towers(pair.model):
        raise ModelError(
            f"{type(pair.model).__name__} has not two towers, of pictures and of texts, that compare features at the "
            "end. mmattn.match links words and patches through those; models with cross-attention or one stream "
            "cannot be matched yet. Pass a CLIP or SigLIP, or read this one with mmattn.attend."
        )
    return chosen

"""The number that a target names in the output of a model of pictures and texts of transformers."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmattn.errors import InputError, ModelError
from mmattn.interception.protocol import PairScores

from .written import written


def score_of(output: Any, target: Any) -> Float[Tensor, ""]:
    """Return the logit that a target names.

    Parameters
    ----------
    output
        Of a pair, or of several.
    target
        Of two towers: None, each pair's own logit, summed, or `(picture, text)`. Of a matching head: None,
        the logit for "they match" of each pair, summed, or 0 (they do not) or 1. Of answers: a number, or
        None for the highest of each sample. Of words: `(token, entry)`, the logit of a vocabulary entry at
        that token (a caption's: after it). Summed over the samples.

    Raises
    ------
    ModelError
        Nothing was compared: only one tower ran, or the model has no head.
    InputError
        The target names no logit.
    """
    if (judged := _judged(output)) is not None:
        return _of_matches(judged, target)
    for name, choose in (
        ("logits_per_image", _of_pairs),
        ("logits", _of_logits),
        ("question_answering_score", _of_logits),  # LXMERT
    ):
        if isinstance(logits := getattr(output, name, None), Tensor):
            return choose(logits, target)
    raise ModelError(
        f"The output {type(output).__name__} has no score of a picture with a text: only one tower ran, or the model "
        "has no head that compares them. Pass image= and text= to a model that does, or use a method without a target "
        "(look, rollout)."
    )


def pair_scores(
    output: Any, *, ids: Int[Tensor, "pair token"] | None, real: Bool[Tensor, "pair token"] | None
) -> PairScores:
    """Return the probability that picture and text match, or how likely the model is to write the text.

    Parameters
    ----------
    ids, real
        The texts as the model got them, and which tokens are no padding.

    Raises
    ------
    ModelError
        The model judges no pair and writes no text.
    """
    judged, logits = _judged(output), getattr(output, "logits", None)
    if judged is None and isinstance(logits, Tensor) and logits.shape[1:] == (2,):
        judged = logits
    if isinstance(judged, Tensor) and judged.shape[1:] == (2,):
        return PairScores(
            values=judged.softmax(dim=1)[:, 1], unit="probability of a match", targets=judged[:, 1].clone()
        )
    if isinstance(logits, Tensor) and logits.shape[1:] == (1,):  # ViLT's ranking of texts
        return PairScores(values=logits[:, 0], unit="logit of a match", targets=logits[:, 0].clone())
    fills = type(output).__name__ == "MaskedLMOutput"  # knows what stands behind a word: it does not write
    logits = None if fills else logits
    if isinstance(logits, Tensor) and logits.dim() == 3 and ids is not None and logits.shape[:2] == ids.shape:
        assert real is not None
        return written(logits, ids=ids, real=real)
    raise ModelError(
        f"The output {type(output).__name__} neither judges a picture with a text nor writes the text. A score is one "
        "of the two. Use the class with a head for matching, or for captions; mmattn.attend reads this one's attention."
    )


def _judged(output: Any) -> Tensor | None:
    """Return what a matching head says of each pair; BLIP-2's output has another name for it."""
    name = "logits_per_image" if type(output).__name__ == "Blip2ImageTextMatchingModelOutput" else "itm_score"
    judged = getattr(output, name, None)
    return judged if isinstance(judged, Tensor) and judged.shape[1:] == (2,) else None


def _of_pairs(logits: Float[Tensor, "picture text"], target: Any) -> Float[Tensor, ""]:
    if target is None:
        return logits.diagonal().sum()
    numbers = _numbers(target, logits.shape)
    if numbers is None:
        pictures, texts = logits.shape
        raise InputError(
            f"The target {target!r} names no pair of {pictures} picture(s) and {texts} text(s). It is "
            "(picture, text), two numbers from 0. Pass that, or None for the pairs as they were given."
        )
    return logits[numbers]


def _of_matches(logits: Float[Tensor, "pair 2"], target: Any) -> Float[Tensor, ""]:
    numbers = (1,) if target is None else _numbers((target,), logits.shape[1:])
    if numbers is None:
        raise InputError(
            f"The target {target!r} is neither 0 (the text does not match) nor 1 (it does). A matching head has these "
            "two. Pass one of them, or None for 1."
        )
    return logits[:, numbers[0]].sum()


def _of_logits(logits: Float[Tensor, "sample ..."], target: Any) -> Float[Tensor, ""]:
    if logits.shape[1:] == (2,):
        return _of_matches(logits, target)
    if logits.dim() == 2 and target is None:
        return logits.max(dim=1).values.sum()
    numbers = _numbers(target if isinstance(target, tuple) else (target,), logits.shape[1:])
    if numbers is None:
        raise InputError(
            f"The target {target!r} names no logit: their shape is {tuple(logits.shape)}, samples first. A target is "
            "one index for each dimension after that. Pass an answer's number, or (token, vocabulary entry)."
        )
    for number in numbers:
        logits = logits[:, number]
    return logits.sum()


def _numbers(target: Any, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the target if it is one index for each size."""
    if not isinstance(target, tuple) or len(target) != len(sizes) or not all(type(one) is int for one in target):
        return None
    fits = all(-size <= one < size for one, size in zip(target, sizes, strict=True))
    return target if fits else None

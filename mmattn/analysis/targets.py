"""Toward what: a class by its index or name, for each sample, and the score that gradients start from.

The score of a class is its logit, before any softmax or sigmoid: a probability's gradient vanishes where
the model is sure, and would speak of all other classes too. Samples of a batch do not see each other, so
the gradient of the sum of their scores is the gradient of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.interception.protocol import Adapter, Classifies

# A class by index or name; a list has one for each sample; None: each sample's own top class. Adapters of
# models that do not classify may know other targets.
Target: TypeAlias = Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Goal:
    """A score to take the gradient of, and what it is called, sample by sample."""

    score: Tensor
    names: tuple[str, ...]


def goal(adapter: Adapter, output: Any, target: Target, *, labels: Sequence[str] | None, samples: int) -> Goal:
    """Return the score that a target names in a model's output.

    Parameters
    ----------
    labels
        Class names by index, where they are known.
    samples
        How many there are.

    Raises
    ------
    NotFoundError
        A name or an index that the model does not know; the nearest names are listed.
    InputError
        A target that is none, or not one for each sample.
    ModelError
        The model gives no logits.
    """
    if not isinstance(adapter, Classifies):
        return Goal(score=adapter.score(output, target), names=(str(target),) * samples)
    logits = adapter.logits(output)
    given = target if isinstance(target, list) else [target] * samples
    if len(given) != samples or len(logits) != samples:
        raise InputError(
            f"There are {len(given)} targets for {samples} sample(s). A list has one target for each sample. "
            "Pass as many, or one target for all."
        )
    top = logits.detach().argmax(dim=1).tolist()
    chosen = [
        best if one is None else _index(one, labels, logits.shape[1]) for one, best in zip(given, top, strict=True)
    ]
    score = logits[torch.arange(samples, device=logits.device), torch.tensor(chosen, device=logits.device)].sum()
    return Goal(score=score, names=tuple(_name(one, labels) for one in chosen))


def _index(one: Target, labels: Sequence[str] | None, count: int) -> int:
    if isinstance(one, str):
        return _named(one, labels, count)
    if isinstance(one, bool) or not isinstance(one, int | np.integer):
        raise InputError(
            f"The target {one!r} is no class. A class is an index or a name. Pass target=281, target='tabby', "
            "a list with one for each sample, or None for the top class."
        )
    if not -count <= one < count:
        raise NotFoundError(
            f"There is no class {one}: this model has {count} classes, 0 to {count - 1}. Pass an index in that range, "
            "a name, or None for the top class."
        )
    return int(one) % count


def _named(name: str, labels: Sequence[str] | None, count: int) -> int:
    """Return the index of a class by its name, or by one of its names where a label lists several."""
    if not labels:
        raise NotFoundError(
            f'There is no class "{name}": the names of this model\'s {count} classes are not known. '
            f"Pass an index, 0 to {count - 1}, or None for the top class."
        )
    wanted = name.strip().casefold()
    found = [index for index, label in enumerate(labels[:count]) if wanted in _names_of(label)]
    exact = [index for index in found if labels[index].casefold() == wanted]
    found = exact if len(exact) == 1 else found
    if len(found) > 1:
        listed = ", ".join(_name(index, labels) for index in found)
        raise NotFoundError(
            f'{len(found)} classes are called "{name}": {listed}. One name must mean one class. Pass an index instead.'
        )
    if not found:
        known = {short: label for label in labels for short in (*_names_of(label), label)}
        raise NotFoundError(
            f'There is no class "{name}". The nearest names are: {nearest(wanted, known)}. '
            f"Pass one of those, or an index, 0 to {count - 1}."
        )
    return found[0]


def _names_of(label: str) -> list[str]:
    return [label.casefold(), *(part.strip().casefold() for part in label.split(","))]


def _name(index: int, labels: Sequence[str] | None) -> str:
    return f"'{labels[index]}' ({index})" if labels and index < len(labels) else f"class {index}"

"""Every way in which `mmattn.match` links words and patches of a two-tower model, by one name each, and the model.

A way is a method with its options. Those that a model does not admit (Grad-ECLIP where features are a mean of
patches) are named with what the library says of it; nothing is left out in silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

import mmattn
from assets.training.clip_words import words
from mmattn import opening
from mmattn.analysis.matching.match import Method
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.interception.protocol import Adapter, MediaGiven, TwoTowers
from mmattn.readers import read_photo
from mmattn.schema.matches import Match

DEFAULT = "interaction"

# Of interactions beside the default: points of the path, and blocks of the picture's tower that it leads through.
_ALTERNATIVES = ((1, 1), (8, 1), (4, 2), (4, 4), (8, 4))


@dataclass(frozen=True, kw_only=True)
class Linking:
    """One way to link words and patches: the options of `mmattn.match`; None: its own default."""

    name: str
    method: str
    steps: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairing:
    """A model of pictures and words that is open; scenes have the size of its input."""

    name: str
    model: CustomTextCLIP
    adapter: Adapter
    processor: Any
    size_px: int

    def match(self, picture: Any, texts: Sequence[str], *, by: Linking) -> Match:
        """Return what `mmattn.match` says."""
        found: Match = mmattn.match(
            self.model,
            picture,
            texts=list(texts),
            method=by.method,
            steps=by.steps,
            blocks=by.blocks,
            processor=self.processor,
        )
        return found

    def cosines(self, pictures: Sequence[Any], texts: Sequence[str]) -> Tensor:
        """Return the cosine of each picture with each text, [picture, text]."""
        assert isinstance(self.adapter, TwoTowers)
        given = MediaGiven(image=[read_photo(one) for one in pictures]), MediaGiven(text=list(texts))
        with torch.no_grad():
            seen, said = (self.adapter.prepare(self.model, one, self.processor, None) for one in given)
            image = self.adapter.image_features(self.model, seen)
            return image @ self.adapter.text_features(self.model, said).T


def opened(name: str) -> Pairing:
    """Open a CLIP that was trained on our scenes, by name.

    Raises
    ------
    InputError
        Another model: what is asked of scenes are the words of these.
    """
    _, adapter, found = opening.open_model(name)
    model = found.model
    if not isinstance(model, CustomTextCLIP) or model.vocab_size != len(words()):
        raise InputError(
            f"{name} is a {type(model).__name__} that does not read the {len(words())} words of our scenes. One that "
            "assets/training/clip_train.py made does. Pass --model mmattn:clip, or open_clip:local-dir:FOLDER."
        )
    side = int(model.visual.image_size[0])
    return Pairing(name=name, model=model, adapter=adapter, processor=found.processor, size_px=side)


def linkings(pairing: Pairing) -> tuple[tuple[Linking, ...], dict[str, str]]:
    """Return the ways that a model admits, the default first, and the others with the reason."""
    ways = [Linking(name=f"{DEFAULT} (the default)", method=DEFAULT)]
    ways += [
        Linking(name=_named(steps, blocks), method=DEFAULT, steps=steps, blocks=blocks)
        for steps, blocks in _ALTERNATIVES
    ]
    ways += [Linking(name=method, method=method) for method in get_args(Method) if method != DEFAULT]
    picture = np.zeros((pairing.size_px, pairing.size_px, 3), np.uint8)
    admitted, refused = [], {}
    for way in ways:
        try:
            pairing.match(picture, ["a dog"], by=way)
        except (ModelError, NotFoundError) as problem:  # NotFoundError: fewer blocks than asked for
            refused[way.name] = str(problem).partition(". ")[0] + "."
        else:
            admitted.append(way)
    return tuple(admitted), refused


def _named(steps: int, blocks: int) -> str:
    points = "the input alone" if steps == 1 else f"{steps} points"
    return f"{DEFAULT}, {points}, {blocks} block{'s' if blocks > 1 else ''}"

"""What is asked of words: pictures with a caption, each thing's own prompt, and the boxes where a peak should lie.

A word is asked for in two ways. Its own prompt says only what it is ("a dog"), and the map is the prompt's. In the
caption of the whole scene it stands among others ("a key left of a brown dog"), and the map is the word's row. Where a
thing is there twice, either box is right. Photographs are those that the library ships, with boxes drawn by hand and
a phrase for each (`pointing_photos.toml`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assets.training.captions import caption, phrase
from assets.training.compose import Composer
from assets.training.draws import Draws
from benchmarks.pointing_links import Linking, Pairing
from benchmarks.pointing_scores import Box, Score, scored
from benchmarks.pointing_trials import drawn
from mmattn import catalog

COUNTS = {1: "one thing", 2: "two things", 3: "three things"}

# Numbers of scenes within a seed, so far apart that no scene serves twice; others begin at 0, 1 and 2 million.
_FIRST = 3_000_000

# What stands behind a noun in a caption; behind a color stands a noun.
_BEHIND = r"(?=$|,| and | left of | right of | above | below | next to )"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A thing that is asked for: by its own prompt, and by its word in the caption, as characters [start, end)."""

    prompt: str
    word: tuple[int, int]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A picture with its caption, and what is asked of it."""

    picture: Any
    caption: str
    asked: tuple[Asked, ...]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of each word that was asked for in a picture: its own prompt's map, and its row in the caption."""

    prompt: tuple[Score, ...]
    caption: tuple[Score, ...]


def questions(composer: Composer, *, things: int, seed: int, count: int) -> list[Question]:
    """Return scenes with so many things, with a true caption; what it leaves out is not asked for.

    A scene in which there was no room for all of them is passed over.
    """
    found: list[Question] = []
    number = _FIRST * things
    while len(found) < count:
        scene = composer.scene(number, seed=seed, least=things, most=things)
        draws = Draws("caption", composer.split, seed, number)
        number += 1
        if len(scene.objects) < things:
            continue
        said = caption(scene.objects, draws, size_px=composer.size_px, rich=True)
        asked = []
        for thing, times in said.counts:
            boxes = tuple(each.box_px for each in scene.objects if each.thing == thing)
            noun = thing.plural if times > 1 and thing.plural else thing.noun
            alone = phrase(thing, times, color=False)
            asked.append(Asked(prompt=alone, word=place_of(noun, said.text), boxes=boxes))
        found.append(Question(picture=scene.pixels, caption=said.text, asked=tuple(asked)))
    return found


def place_of(noun: str, text: str) -> tuple[int, int]:
    """Return the characters of a noun in a caption; the color of the same name is another word.

    Examples
    --------
    >>> text = "an orange tiger next to an orange"
    >>> text[slice(*place_of("orange", text))], place_of("orange", text)
    ('orange', (27, 33))

    """
    found = re.search(rf"\b{re.escape(noun)}{_BEHIND}", text)
    assert found is not None, (noun, text)
    return found.span()


def tried(pairing: Pairing, ways: Sequence[Linking], asked: Sequence[Question]) -> dict[str, list[Scores]]:
    """Return the scores of every way on some questions, by its name."""
    return {way.name: [_tried(pairing, way, one) for one in asked] for way in ways}


def _tried(pairing: Pairing, way: Linking, question: Question) -> Scores:
    texts = [question.caption, *(each.prompt for each in question.asked)]
    found = pairing.match(question.picture, texts, by=way)
    return Scores(
        prompt=tuple(scored(found.overall[1 + at], each.boxes) for at, each in enumerate(question.asked)),
        caption=tuple(scored(found.word(each.word, text=0), each.boxes) for each in question.asked),
    )


def photographs() -> dict[str, Question]:
    """Return the shipped photographs; the caption of each is the one phrase that its subject is called by."""
    return {
        name: Question(
            picture=catalog.photo_path(name),
            caption=each.said,
            asked=(Asked(prompt=each.said, word=(0, len(each.said)), boxes=each.boxes),),
        )
        for name, each in drawn().items()
    }

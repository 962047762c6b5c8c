"""What is asked of a reading: pictures, and the boxes in which its peak should lie.

Scenes with one thing ask without naming it: readings toward a target read toward the model's own top class, as
`mmattn image` does by default. Scenes with two or three things ask for each in turn, by name; where a thing is there
twice, either box is right. Photographs are those that the library ships, with boxes drawn by hand
(`pointing_photos.toml`).
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.training.compose import Composer
from benchmarks.pointing_readings import Reading, Subject, read
from benchmarks.pointing_scores import Box, Score, scored
from mmattn import catalog

_AT_ONCE = 32

# Numbers of scenes within a seed, so far apart that no scene serves twice: `evaluate` takes those from 0 on.
_SINGLES, _SEVERAL = 1_000_000, 2_000_000

#: For each reading, for each scene, the scores of its targets.
Found = dict[str, list[list[Score]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One question: a picture, the boxes of what is asked for, and its name (None: the model's top class)."""

    scene: int
    picture: Any
    boxes: tuple[Box, ...]
    target: str | None = None


def singles(composer: Composer, *, seed: int, count: int) -> list[Trial]:
    """Return scenes with one thing."""
    found = []
    for index in range(count):
        scene = composer.scene(_SINGLES + index, seed=seed, most=1)
        found.append(Trial(scene=index, picture=scene.pixels, boxes=tuple(each.box_px for each in scene.objects)))
    return found


def targets(composer: Composer, *, seed: int, count: int) -> list[Trial]:
    """Return scenes with two or three things, once for each name among them.

    A scene in which there was room for only one thing is passed over.
    """
    found: list[Trial] = []
    number = kept = 0
    while kept < count:
        scene = composer.scene(_SEVERAL + number, seed=seed, least=2)
        number += 1
        if len(scene.objects) < 2:
            continue
        for noun in dict.fromkeys(each.thing.noun for each in scene.objects):
            boxes = tuple(each.box_px for each in scene.objects if each.thing.noun == noun)
            found.append(Trial(scene=kept, picture=scene.pixels, boxes=boxes, target=noun))
        kept += 1
    return found


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The boxes of a photograph's subject, and what it is called."""

    said: str
    boxes: tuple[Box, ...]


def drawn() -> dict[str, Drawn]:
    """Return what was drawn on the shipped photographs by hand, by their names."""
    path = Path(__file__).with_name("pointing_photos.toml")
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Drawn(said=each["said"], boxes=tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in each["boxes_px"]))
        for name, each in told.items()
    }


def photographs() -> dict[str, Trial]:
    """Return the shipped photographs with the boxes of their subjects."""
    return {
        name: Trial(scene=index, picture=catalog.photo_path(name), boxes=each.boxes)
        for index, (name, each) in enumerate(drawn().items())
    }


def tried(subject: Subject, chosen: Sequence[Reading], trials: Sequence[Trial]) -> Found:
    """Return the scores of every reading on some trials."""
    found: Found = {one.name: [[] for _ in range(trials[-1].scene + 1)] for one in chosen}
    for start in range(0, len(trials), _AT_ONCE):
        batch = trials[start : start + _AT_ONCE]
        maps = subject.attend([trial.picture for trial in batch])
        for name, results in read(maps, chosen, target=[trial.target for trial in batch]).items():
            for trial, one in zip(batch, results, strict=True):
                found[name][trial.scene].append(scored(one, trial.boxes))
    return found

"""The 96 things that scenes are made of: their names, their colors and their pictures.

`nouns.tsv` has a line for each: noun, file, color (`-` where no one color names it), plural (`-` for what is not
counted, such as scissors). The pictures are Microsoft's 3D Fluent Emoji, 128 px, with transparency; where from and
under which licence is in `assets/SOURCES.md`.

A picture is trimmed to what is opaque, its color multiplied by its opacity (so that turning and scaling bleed nothing
in), and kept at full, half and quarter size: scaling from the next larger one aliases nothing and is fast.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmattn.errors import FormatError, NotFoundError, nearest

HERE = Path(__file__).resolve().parent
OPAQUE = 0.3
"""What is more opaque than this belongs to a thing: its box is the extent of that."""

_LEVELS = 3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One of the things.

    Parameters
    ----------
    noun, plural
        Its name; the plural is None for what is not counted, and is never placed twice.
    color
        The one color that names it, or None.
    file
        Its picture in `objects/`.

    """

    noun: str
    plural: str | None
    color: str | None
    file: str


@cache
def things() -> tuple[Thing, ...]:
    """Return all things, in the order that a model's classes have.

    Examples
    --------
    >>> len(things()), things()[0].noun
    (96, 'dog')

    """
    with (HERE / "nouns.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    return tuple(
        Thing(noun=line["noun"], file=line["file"], color=_told(line["color"]), plural=_told(line["plural"]))
        for line in lines
    )


def thing(noun: str) -> Thing:
    """Return the thing of that name.

    Raises
    ------
    NotFoundError
        There is none; the nearest names are listed.

    Examples
    --------
    >>> thing("ice cream").plural
    'ice creams'

    """
    by_noun = {each.noun: each for each in things()}
    if noun not in by_noun:
        raise NotFoundError(f"There is no thing {noun!r}. There are {nearest(noun, by_noun)}. Pass one of those names.")
    return by_noun[noun]


@cache
def pictures(file: str) -> tuple[Pixels, ...]:
    """Return a thing's picture, RGBA with color multiplied by opacity, at full, half and quarter size.

    Raises
    ------
    FormatError
        The file is not there or is no picture with transparency.

    """
    path = HERE / "objects" / file
    raw = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    found = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
    if found is None or found.ndim != 3 or found.shape[2] != 4:
        raise FormatError(
            f"{path.name} in assets/training/objects is missing or no picture with transparency. "
            "It is part of the repository. Check it out again, or run python assets/training/fetching.py --ship."
        )
    levels = [_trimmed(cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA))]
    for _ in range(_LEVELS - 1):
        height, width = levels[-1].shape[:2]
        smaller = cv2.resize(levels[-1], (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(smaller, np.uint8))
    return tuple(levels)


def extent(alpha: Pixels) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1; the last two excluded) of what is more opaque than `OPAQUE`.

    Examples
    --------
    >>> alpha = np.zeros((4, 6), np.uint8)
    >>> alpha[1:3, 2:5] = 255
    >>> extent(alpha)
    (2, 1, 5, 3)

    """
    seen = alpha > 255 * OPAQUE
    cols, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def _trimmed(rgba: NDArray[np.generic]) -> Pixels:
    """Cut away what is transparent and multiply color by opacity."""
    shown = np.asarray(rgba, np.uint8)
    x0, y0, x1, y1 = extent(shown[..., 3])
    shown = shown[y0:y1, x0:x1].copy()
    opacity = shown[..., 3:].astype(np.float32) / 255
    shown[..., :3] = np.rint(shown[..., :3] * opacity).astype(np.uint8)
    return shown


def _told(word: str) -> str | None:
    return None if word == "-" else word

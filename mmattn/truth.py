"""The truth of a composed scene: what is in it, and where. Read from the `scenes.json` beside the pictures.

    [{"file": "car.webp", "size_px": [336, 336],
      "objects": [{"noun": "car", "color": "red", "box_px": [49, 226, 174, 316], "in_caption": true}],
      "caption": "a red car"}]

`assets/training/scenes.py` writes such lists, and the scenes that are shipped with the library have one. A list comes
from outside: what has another form is refused, with the entry that has it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mmattn.errors import FormatError

Box = tuple[int, int, int, int]

MOST_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True)
class ObjectTruth:
    """One object of a scene.

    Parameters
    ----------
    noun, color
        What it is called; the color is None where no one color names it.
    box_px
        Where it is, in pixels of the picture: x0, y0, x1, y1, the last two excluded.
    in_caption
        Whether the scene's caption speaks of it.

    """

    noun: str
    color: str | None
    box_px: Box
    in_caption: bool

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the box.

        Examples
        --------
        >>> car = ObjectTruth(noun="car", color="red", box_px=(49, 226, 174, 316), in_caption=True)
        >>> car.holds(100, 300), car.holds(174, 300)
        (True, False)

        """
        x0, y0, x1, y1 = self.box_px
        return x0 <= x < x1 and y0 <= y < y1


@dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """A scene's file, its size in pixels, what is in it, and a true sentence about it (None: none was written)."""

    file: str
    size_px: tuple[int, int]
    objects: tuple[ObjectTruth, ...]
    caption: str | None

    @property
    def nouns(self) -> tuple[str, ...]:
        """What is in it, each once."""
        return tuple(dict.fromkeys(each.noun for each in self.objects))

    def boxes(self, noun: str) -> tuple[Box, ...]:
        """Return the box of every object of that name; none where there is no such object."""
        return tuple(each.box_px for each in self.objects if each.noun == noun)


def read_truth(text: str) -> tuple[SceneTruth, ...]:
    """Return the scenes of a `scenes.json`, given as text.

    Raises
    ------
    FormatError
        It is no JSON, an entry has another form, or a box lies outside its picture.

    Examples
    --------
    >>> read_truth('[{"file": "a.png", "size_px": [8, 8], "objects": [], "caption": null}]')[0].nouns
    ()

    """
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"{len(text)} characters")
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise ValueError(f"a {type(entries).__name__}")
    except (ValueError, RecursionError) as problem:
        raise FormatError(
            f"This is no list of scenes: {problem}. scenes.json is a JSON array of at most {MOST_BYTES // 10**6} MB, "
            "with one object a scene. Write it again with assets/training/scenes.py."
        ) from None
    return tuple(_scene(entry, number) for number, entry in enumerate(entries))


def _scene(entry: Any, number: int) -> SceneTruth:
    try:
        _keys(entry, {"file", "size_px", "objects", "caption"})
        width, height = (_whole(side) for side in _list(entry["size_px"]))
        return SceneTruth(
            file=_file(entry["file"]),
            size_px=(width, height),
            objects=tuple(_object(each, width, height) for each in _list(entry["objects"])),
            caption=None if entry["caption"] is None else _words(entry["caption"]),
        )
    except ValueError as problem:
        raise FormatError(
            f"Scene {number} is not as it should be: {problem}. It has file, size_px [width, height], caption, and "
            "objects with noun, color, box_px [x0, y0, x1, y1] inside the picture and in_caption. "
            "Write the list again with assets/training/scenes.py."
        ) from None


def _object(entry: Any, width: int, height: int) -> ObjectTruth:
    _keys(entry, {"noun", "color", "box_px", "in_caption"})
    x0, y0, x1, y1 = (_whole(side) for side in _list(entry["box_px"]))
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"the box {[x0, y0, x1, y1]} does not lie in {width} x {height} px")
    if not isinstance(entry["in_caption"], bool):
        raise ValueError(f"in_caption is {entry['in_caption']!r:.40}")
    return ObjectTruth(
        noun=_words(entry["noun"]),
        color=None if entry["color"] is None else _words(entry["color"]),
        box_px=(x0, y0, x1, y1),
        in_caption=entry["in_caption"],
    )


def _keys(entry: Any, wanted: set[str]) -> None:
    if not isinstance(entry, Mapping) or set(entry) != wanted:
        given = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else f"{entry!r:.40}"
        raise ValueError(f"{given} instead of {', '.join(sorted(wanted))}")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is no list")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is no whole number")
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r:.40} is no word")
    return value


def _file(value: Any) -> str:
    """Return a file's name; a path would lead out of the folder."""
    name = _words(value)
    if PurePosixPath(name).name != name or "\\" in name:
        raise ValueError(f"{name!r:.40} is no file's name")
    return name

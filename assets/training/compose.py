"""A scene: one to three things on a background, each with its box. What a model has to find is known to the pixel.

In this order: a crop of a photograph, its colors changed by a table; clutter (shapes of one color, in 40 % of the
scenes); the things, turned by up to 20 degrees, perhaps mirrored, 0.22 to 0.6 of the picture, hardly overlapping;
something in front that hides a part of one of them (30 %); noise (30 %). Of the things only the brightness changes:
their colors stay true, so that captions can name them. `clutter=False` leaves out the shapes, behind and in front, and
nothing else changes.

A thing's box is the extent of what is more than 0.3 opaque in its own picture, also where something hides it.
Everything in a scene follows from (split, seed, index): it does not matter which others are composed, or where.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from assets.training.draws import Draws
from assets.training.grounds import BANK, Grounds
from assets.training.registries import Split
from assets.training.things import Pixels, Thing, extent, pictures, things
from mmattn.errors import InputError

SIZE_PX = 112
MOST = 3

_LARGEST = {1: 0.6, 2: 0.52, 3: 0.45}
_SMALLEST = 0.22
_TWICE = 0.25  # of the scenes with two or three things, how many have the same one twice or thrice
_NOISES = 32
_OVERLAP = 0.1  # of the smaller of two boxes

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A thing in a scene, and its box in pixels (x0, y0, x1, y1; the last two excluded)."""

    thing: Thing
    box_px: Box


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, RGB, and what is in it."""

    pixels: Pixels
    objects: tuple[Placed, ...]


@dataclass(frozen=True, kw_only=True)
class _Sprite:
    """A thing's picture as it will be pasted, and the box inside it."""

    thing: Thing
    rgba: Pixels
    box: Box


class Composer:
    """Composes scenes of a split.

    Parameters
    ----------
    split
        `train`, or `held-out`: backgrounds that training never saw, and no exchanged color channels.
    clutter
        Whether there are shapes behind and in front of the things.
    size_px
        Both sides of a scene. The pictures of things are 128 px: from 224 px on they are enlarged.

    Raises
    ------
    InputError
        Scenes smaller than 32 or larger than 1024 px.
    DownloadError, MissingExtraError
        The training split's backgrounds cannot be fetched.

    Examples
    --------
    >>> scene = Composer("held-out").scene(0, seed=1)
    >>> scene.pixels.shape, len(scene.objects) in (1, 2, 3)
    ((112, 112, 3), True)

    """

    def __init__(self, split: Split, *, clutter: bool = True, size_px: int = SIZE_PX) -> None:
        if not 32 <= size_px <= 1024:
            raise InputError(
                f"Scenes of {size_px} px cannot be composed. Sides of 32 to 1024 px can. Pass one of those."
            )
        self.split, self.clutter, self.size_px = split, clutter, size_px
        self._grounds = Grounds(split, size_px=size_px)
        noise = Draws("noise").bell(_NOISES, size_px, size_px, 3)
        self._noise = np.rint(4 * noise).astype(np.int16)
        self._steps = np.arange(-128, 128, dtype=np.float32)[None, :, None]

    def scene(self, index: int, *, seed: int, least: int = 1, most: int = MOST) -> Scene:
        """Return scene `index` of a seed, with `least` to `most` things (1 to 3)."""
        if not 1 <= least <= most <= MOST:
            raise InputError(
                f"A scene with {least} to {most} things cannot be composed. It has 1 to {MOST}. "
                "Pass least <= most within those."
            )
        draws = Draws("scene", self.split, seed, index)
        shapes = Draws("clutter", self.split, seed, index)
        canvas = self._ground(draws)
        if self.clutter and shapes.chance(0.4):
            for _ in range(1 + shapes.below(4)):
                _shape(canvas, shapes, largest=0.4)
        chosen = _chosen(draws, count=least + draws.below(most - least + 1))
        objects = self._paste(canvas, chosen, draws)
        if self.clutter and shapes.chance(0.3):
            _hide_part(canvas, objects[shapes.below(len(objects))].box_px, shapes)
        if draws.chance(0.3):
            grain = self._noise[draws.below(_NOISES)]
            cv2.add(canvas, grain * np.int16(1 + draws.below(3)), dst=canvas, dtype=cv2.CV_8U)
        return Scene(pixels=canvas, objects=objects)

    def _ground(self, draws: Draws) -> Pixels:
        crop = self._grounds.crop(draws.below(BANK))
        if self.split == "train" and draws.chance(0.5):
            crop = np.ascontiguousarray(crop[..., draws.order(3)])
        gain, lift = draws.between(0.6, 1.3), draws.between(-25, 25)
        gains = np.array([gain * draws.between(0.85, 1.15) for _ in range(3)], np.float32)
        shown = np.clip(self._steps * gains + (128 + lift), 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(crop, shown), np.uint8)

    def _paste(self, canvas: Pixels, chosen: Sequence[Thing], draws: Draws) -> tuple[Placed, ...]:
        placed: list[Placed] = []
        for thing in chosen:
            side = draws.between(_SMALLEST, _LARGEST[len(chosen)])
            for _ in range(4):
                sprite = _sprite(thing, draws, side_px=side * self.size_px)
                corner = self._room(sprite, placed, draws)
                if corner is not None:
                    _blend(canvas, sprite.rgba, corner)
                    placed.append(Placed(thing=thing, box_px=_moved(sprite.box, corner)))
                    break
                side = max(_SMALLEST, 0.75 * side)
        return tuple(placed)

    def _room(self, sprite: _Sprite, placed: Sequence[Placed], draws: Draws) -> tuple[int, int] | None:
        """Return where a sprite's corner may lie: its box inside the picture, and hardly over another."""
        x0, y0, x1, y1 = sprite.box
        for _ in range(16):
            left, top = draws.below(self.size_px - (x1 - x0) + 1), draws.below(self.size_px - (y1 - y0) + 1)
            corner = (left - x0, top - y0)
            box = _moved(sprite.box, corner)
            if all(overlap(box, other.box_px) <= _OVERLAP for other in placed):
                return corner
        return None


def overlap(one: Box, other: Box) -> float:
    """Return how much of the smaller of two boxes lies in the other.

    Examples
    --------
    >>> overlap((0, 0, 4, 4), (3, 0, 5, 2))
    0.5

    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0, width) * max(0, height) / smaller


def _chosen(draws: Draws, *, count: int) -> list[Thing]:
    """Return the things of a scene: different ones, or some the same."""
    every = things()
    chosen: list[Thing] = []
    while len(chosen) < count:
        one = every[draws.below(len(every))]
        if one not in chosen:
            chosen.append(one)
    if count > 1 and draws.chance(_TWICE) and chosen[0].plural is not None:
        again = 1 + draws.below(count - 1)
        chosen[1 : 1 + again] = [chosen[0]] * again
    return chosen


def _sprite(thing: Thing, draws: Draws, *, side_px: float) -> _Sprite:
    """Return a thing scaled so that its longer side is `side_px`, turned, perhaps mirrored, perhaps darker."""
    levels = pictures(thing.file)
    level = next((each for each in reversed(levels) if max(each.shape[:2]) >= side_px), levels[0])
    height, width = level.shape[:2]
    scale, angle = side_px / max(height, width), math.radians(draws.between(-20, 20))
    mirror = -1 if draws.chance(0.5) else 1
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    cols = math.ceil(abs(cosine) * width + abs(sine) * height) + 2
    rows = math.ceil(abs(sine) * width + abs(cosine) * height) + 2
    across, down = (width - 1) / 2, (height - 1) / 2  # its middle comes to the middle
    turn = np.array(
        [
            [mirror * cosine, -sine, (cols - 1) / 2 - mirror * cosine * across + sine * down],
            [mirror * sine, cosine, (rows - 1) / 2 - mirror * sine * across - cosine * down],
        ]
    )
    rgba = cv2.warpAffine(level, turn, (cols, rows), flags=cv2.INTER_LINEAR)
    light = draws.between(0.75, 1.0)  # darker only: color is multiplied by opacity and may not be brighter than that
    shown = np.asarray(cv2.multiply(rgba, np.array((light, light, light, 1.0))), np.uint8)
    return _Sprite(thing=thing, rgba=shown, box=extent(shown[..., 3]))


def _blend(canvas: Pixels, rgba: Pixels, corner: tuple[int, int]) -> None:
    """Lay a picture with multiplied opacity over the canvas, in place; what reaches over its edge is cut."""
    size_y, size_x = canvas.shape[:2]
    left, top = corner
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size_x, left + rgba.shape[1]), min(size_y, top + rgba.shape[0])
    over, under = rgba[y0 - top : y1 - top, x0 - left : x1 - left], canvas[y0:y1, x0:x1]
    clear = cv2.cvtColor(255 - over[..., 3], cv2.COLOR_GRAY2RGB)
    under[...] = cv2.add(cv2.multiply(under, clear, scale=1 / 255), cv2.cvtColor(over, cv2.COLOR_RGBA2RGB))


def _moved(box: Box, corner: tuple[int, int]) -> Box:
    return box[0] + corner[0], box[1] + corner[1], box[2] + corner[0], box[3] + corner[1]


def _color(draws: Draws) -> tuple[int, int, int]:
    return draws.below(256), draws.below(256), draws.below(256)


def _shape(canvas: Pixels, draws: Draws, *, largest: float) -> None:
    """Draw an ellipse, a polygon or a line of one color somewhere, in place."""
    size = len(canvas)
    center = draws.below(size), draws.below(size)
    color = _color(draws)
    match draws.below(3):
        case 0:
            axes = int(size * draws.between(0.04, largest / 2)), int(size * draws.between(0.04, largest / 2))
            cv2.ellipse(canvas, center, axes, draws.between(0, 180), 0, 360, color, -1, cv2.LINE_AA)
        case 1:
            corners = _polygon(center, draws, radius=size * largest / 2)
            cv2.fillPoly(canvas, [corners], color, cv2.LINE_AA)
        case _:
            end = draws.below(size), draws.below(size)
            cv2.line(canvas, center, end, color, 1 + draws.below(max(2, size // 16)), cv2.LINE_AA)


def _polygon(center: tuple[int, int], draws: Draws, *, radius: float) -> NDArray[np.int32]:
    count = 3 + draws.below(3)
    angles = sorted(draws.between(0, 2 * math.pi) for _ in range(count))
    reach = [radius * draws.between(0.3, 1.0) for _ in range(count)]
    points = [
        (center[0] + far * math.cos(a), center[1] + far * math.sin(a)) for a, far in zip(angles, reach, strict=True)
    ]
    return np.asarray(np.rint(np.array(points)), np.int32)


def _hide_part(canvas: Pixels, box: Box, draws: Draws) -> None:
    """Draw a bar over one side of a box, at most a quarter of it, in place."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    part = draws.between(0.08, 0.25)
    match draws.below(4):
        case 0:
            corners = x0, y0, x0 + int(part * width), y1
        case 1:
            corners = x1 - int(part * width), y0, x1, y1
        case 2:
            corners = x0, y0, x1, y0 + int(part * height)
        case _:
            corners = x0, y1 - int(part * height), x1, y1
    grow = 1 + draws.below(4)
    low, high = (corners[0] - grow, corners[1] - grow), (corners[2] + grow, corners[3] + grow)
    cv2.rectangle(canvas, low, high, _color(draws), -1)

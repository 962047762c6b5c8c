"""What stands behind the things: crops of photographs, cut once into a bank, and smooth fields of our own.

A crop is a square of 0.4 to 1 of the shorter side, perhaps mirrored, scaled to the scene. Cutting costs as much as
the rest of a scene, so `BANK` of them are kept; number k is always the same one, cut when it is first asked for.
In training one in eight is a field of few colors that run into one another, without end and without a source.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from assets.training.draws import Draws
from assets.training.fetching import train_folder
from assets.training.registries import HERE, Split, backgrounds
from assets.training.things import Pixels
from mmattn.errors import FormatError

BANK = 3000
_FIELDS = 0.125


class Grounds:
    """The bank of a split, for scenes of `size_px`; `crop(k)` has the same pixels in every process."""

    def __init__(self, split: Split, *, size_px: int) -> None:
        self._split, self._size_px = split, size_px
        self._photographs = photographs(split)
        self._bank: dict[int, Pixels] = {}

    def crop(self, number: int) -> Pixels:
        """Return crop `number` (0 to `BANK` - 1), RGB; it belongs to the bank and must not be written to."""
        if number not in self._bank:
            self._bank[number] = self._cut(Draws("ground", self._split, number))
        return self._bank[number]

    def _cut(self, draws: Draws) -> Pixels:
        size = (self._size_px, self._size_px)
        if self._split == "train" and draws.chance(_FIELDS):
            return _field(draws, size_px=self._size_px)
        photo = self._photographs[draws.below(len(self._photographs))]
        height, width = photo.shape[:2]
        side = int(draws.between(0.4, 1.0) * min(height, width))
        x, y = draws.below(width - side + 1), draws.below(height - side + 1)
        part = photo[y : y + side, x : x + side]
        part = part[:, ::-1] if draws.chance(0.5) else part
        method = cv2.INTER_AREA if side > self._size_px else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(np.ascontiguousarray(part), size, interpolation=method), np.uint8)


@cache
def photographs(split: Split) -> tuple[Pixels, ...]:
    """Return the photographs of a split, RGB; those of the training split are fetched when they are not there.

    Raises
    ------
    DownloadError, MissingExtraError
        Only for the training split: a registry does not answer or has other bytes, or its client is missing.
    FormatError
        A file is missing or no picture.

    """
    if split == "train":
        folder = train_folder()
        return tuple(_read(folder / f"{each.name}.png") for each in backgrounds(split))
    return tuple(_read(HERE.parent / str(each.shipped)) for each in backgrounds(split))


def _read(path: Path) -> Pixels:
    raw = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    found = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    if found is None:
        raise FormatError(
            f"The background {path.name} is missing or no picture. It belongs to {path.parent}. "
            "Check it out again, or remove that folder if it is in the cache."
        )
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def _field(draws: Draws, *, size_px: int) -> Pixels:
    """Return few random colors, run into one another."""
    cells = 2 + draws.below(5)
    colors = np.array([draws.between(0, 255) for _ in range(cells * cells * 3)], np.float32)
    field = cv2.resize(colors.reshape(cells, cells, 3), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)

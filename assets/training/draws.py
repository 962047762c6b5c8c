"""Random draws that are the same in every process, with every release of numpy.

numpy promises that a bit generator's stream stays as it is, and not what `Generator.integers` or `.normal` make of
it. So everything is made of one kind of draw, doubles from PCG64 in [0, 1), seeded by a hash of what is being drawn.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 64


class Draws:
    """Draws that follow from what they are for, such as `Draws("scene", "train", seed, index)`.

    Examples
    --------
    >>> Draws("scene", 7).below(10) == Draws("scene", 7).below(10)
    True

    """

    def __init__(self, *purpose: str | int) -> None:
        digest = hashlib.sha256(repr(purpose).encode("utf-8")).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        self._ready: list[float] = []

    def share(self) -> float:
        """Return a number in [0, 1)."""
        if not self._ready:
            self._ready = self._generator.random(_AT_ONCE).tolist()
        return self._ready.pop()

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.share()

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1."""
        return int(count * self.share())

    def chance(self, probability: float) -> bool:
        """Return True with that probability."""
        return self.share() < probability

    def order(self, count: int) -> list[int]:
        """Return 0 to `count` - 1, shuffled."""
        left = list(range(count))
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def bell(self, *shape: int) -> NDArray[np.float32]:
        """Return numbers of mean 0 and deviation 1, nearly normal: sums of four draws."""
        four = self._generator.random((4, *shape)).sum(axis=0)
        return np.asarray((four - 2) * np.sqrt(3), np.float32)

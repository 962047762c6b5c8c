"""The input as eye or ear had it: what the places of an axis are places in.

A medium is what a person would look at: an upright picture, a text, a sound. Coordinates on an
axis (pixels, characters, seconds) are coordinates of its medium. Media never hold paths or
library objects; `mmattn.readers` makes them from files.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from mmattn.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """A picture, upright (EXIF orientation applied), as 8-bit RGB.

    Parameters
    ----------
    pixels
        `[row, col, 3]`, RGB, 0 to 255. Row 0 is the top as a person sees it.
    name
        Where it came from, for captions: a file name, never a path.

    Examples
    --------
    >>> Photo(pixels=np.zeros((480, 640, 3), np.uint8)).size_px
    (640, 480)
    """

    pixels: UInt8[np.ndarray, "row col 3"]
    name: str = "image"

    def __post_init__(self) -> None:
        if 0 in self.pixels.shape:
            raise InputError(
                f"The picture is empty: its size is {self.size_px} px. "
                "A picture has at least one pixel. Pass another image."
            )

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])


@dataclass(frozen=True, kw_only=True)
class Words:
    """A text, as the user wrote it; spans on an axis are character offsets `[start, end)` in it."""

    text: str
    name: str = "text"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """A recording as mono samples; places on an axis are seconds from its beginning."""

    samples: Float[np.ndarray, " sample"]
    rate_hz: int
    name: str = "sound"

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate_hz


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A video: frames as 8-bit RGB with the time of each, in seconds from the beginning."""

    frames: UInt8[np.ndarray, "frame row col 3"]
    times_s: Float[np.ndarray, " frame"]
    name: str = "clip"

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return int(self.frames.shape[2]), int(self.frames.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A graph: edges as `[2, edge]` source over target, with what is known of its nodes."""

    edges: Int[np.ndarray, "2 edge"]
    node_count: int
    labels: tuple[str, ...] | None = None
    positions: Float[np.ndarray, "node 2"] | None = None
    edge_values: Shaped[np.ndarray, " edge"] | None = None
    name: str = "graph"


Media = Photo | Words | Sound | Clip | Graph

"""A map held against boxes: does its peak lie in one, and how much of it does.

    hit      the middle of the strongest patch lies in a box
    mass     sum of v+ x (share of the patch in the boxes)  /  sum of v+
    chance   area of the boxes / area of what the model saw

`v+` is the positive part of a map over patches; what lies on special tokens has no place and does not count. Chance is
what a map that knows nothing gets, of hits and of mass. Boxes that overlap count once.

Shares of hits are told with Wilson's 95 % interval, masses with that of a mean. Both count scenes, not targets: what is
found in one scene hangs together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import numpy as np
from jaxtyping import Float

from mmattn.schema.results import Relevance

Box = tuple[float, float, float, float]
_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class Score:
    """One map against the boxes of its target."""

    hit: bool
    mass: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean with the ends of its 95 % interval, and the means of the seeds."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]


def scored(found: Relevance, boxes: Sequence[Box]) -> Score:
    """Return how the first row of a map stands to boxes in pixels of the picture."""
    axis = found.axis
    places = np.asarray(axis.places(), np.float64)
    inside = share_inside(places, boxes)
    areas = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    content = np.asarray(axis.content)
    values = found.row().double().cpu().numpy()[content].clip(min=0)
    x0, y0, x1, y1 = (float(v) for v in found.peak())  # type: ignore[union-attr]  # a box: the axis is a grid
    total = values.sum()
    return Score(
        hit=holds(boxes, ((x0 + x1) / 2, (y0 + y1) / 2)),
        mass=float((values * inside).sum() / total) if total > 0 else 0.0,
        chance=float((areas * inside).sum() / areas.sum()),
    )


def holds(boxes: Sequence[Box], point: tuple[float, float]) -> bool:
    """Whether a point lies in one of the boxes; their right and lower edges are outside.

    Examples
    --------
    >>> holds([(0, 0, 2, 2)], (0, 1)), holds([(0, 0, 2, 2)], (2, 1))
    (True, False)

    """
    x, y = point
    return any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)


def share_inside(places: Float[np.ndarray, "patch 4"], boxes: Sequence[Box]) -> Float[np.ndarray, " patch"]:
    """Return which part of each patch lies in the boxes.

    Examples
    --------
    >>> patches = np.array([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    >>> share_inside(patches, [(1, 0, 3, 1), (2, 0, 3, 1)]).tolist()
    [0.25, 0.25]

    """
    x0, y0, x1, y1 = np.array(boxes, np.float64).T
    xs, ys = np.unique([x0, x1]), np.unique([y0, y1])
    # The edges of all boxes cut the plane into cells, each of which is in a box or not.
    across = (x0[:, None] <= xs[:-1]) & (xs[1:] <= x1[:, None])
    down = (y0[:, None] <= ys[:-1]) & (ys[1:] <= y1[:, None])
    covered = (across[:, :, None] & down[:, None, :]).any(axis=0).astype(np.float64)
    width, height = _overlap(places[:, [0, 2]], xs), _overlap(places[:, [1, 3]], ys)
    areas = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    return np.asarray(np.einsum("px,xy,py->p", width, covered, height) / areas)


def hits(seeds: Sequence[Sequence[Sequence[Score]]]) -> Share:
    """Return the share of hits, from the scores of each scene of each seed."""
    every = [score for scenes in seeds for scene in scenes for score in scene]
    mean = fmean(score.hit for score in every)
    low, high = wilson(mean, count=sum(len(scenes) for scenes in seeds))
    own = tuple(fmean(score.hit for scene in scenes for score in scene) for scenes in seeds)
    return Share(mean=mean, low=low, high=high, by_seed=own)


def masses(seeds: Sequence[Sequence[Sequence[Score]]]) -> Share:
    """Return the mean share of mass inside, from the scores of each scene of each seed."""
    mean = fmean(score.mass for scenes in seeds for scene in scenes for score in scene)
    by_scene = [fmean(score.mass for score in scene) for scenes in seeds for scene in scenes]
    reach = _Z * stdev(by_scene) / sqrt(len(by_scene)) if len(by_scene) > 1 else 1.0
    own = tuple(fmean(score.mass for scene in scenes for score in scene) for scenes in seeds)
    return Share(mean=mean, low=max(0.0, mean - reach), high=min(1.0, mean + reach), by_seed=own)


def chances(seeds: Sequence[Sequence[Sequence[Score]]]) -> float:
    """Return what chance gets on the same scenes."""
    return fmean(score.chance for scenes in seeds for scene in scenes for score in scene)


def wilson(share: float, *, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share among so many (Wilson 1927).

    Examples
    --------
    >>> [round(end, 3) for end in wilson(1.0, count=100)]
    [0.963, 1.0]

    """
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _overlap(
    spans: Float[np.ndarray, "patch 2"], edges: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, "patch interval"]:
    """Return how long each span lies in each interval between edges."""
    low = np.maximum(spans[:, :1], edges[:-1])
    return np.asarray(np.maximum(np.minimum(spans[:, 1:], edges[1:]) - low, 0))

"""What pointing found, as tables: one for scenes with clutter and one without, and a short one of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from assets.training.evaluate import Knows
from benchmarks.harness import Line
from benchmarks.pointing_readings import CHEFER, ROLLOUT
from benchmarks.pointing_scores import Score, Share, chances, hits, masses

MEAN_PRECISION, THINGS = 0.97, 90
CHANCE = "chance (area of the boxes)"

#: For each seed, for each scene, the scores of its targets.
Seeds = list[list[list[Score]]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One reading, over all seeds, with clutter or without."""

    reading: str
    single: Share
    target: Share
    mass_single: Share
    mass_target: Share


@dataclass(frozen=True, kw_only=True)
class Part:
    """All that was found with clutter, or without it."""

    clutter: bool
    rows: tuple[Row, ...]
    chance_single: float
    chance_target: float
    knows: tuple[Knows, ...]

    def row(self, reading: str) -> Row:
        """Return the row of a reading."""
        return next(row for row in self.rows if row.reading == reading)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What one reading must reach, in scenes with clutter."""

    reading: str
    job: str
    least: float


GOALS = (
    Goal(reading=ROLLOUT, job="single", least=0.92),
    Goal(reading=CHEFER, job="single", least=0.99),
    Goal(reading=CHEFER, job="target", least=0.97),
)


def part(*, clutter: bool, single: dict[str, Seeds], target: dict[str, Seeds], knows: Sequence[Knows]) -> Part:
    """Return the rows of all readings, and chance."""
    rows = tuple(
        Row(
            reading=name,
            single=hits(single[name]),
            target=hits(target[name]),
            mass_single=masses(single[name]),
            mass_target=masses(target[name]),
        )
        for name in single
    )
    first = next(iter(single))
    return Part(
        clutter=clutter,
        rows=rows,
        chance_single=chances(single[first]),
        chance_target=chances(target[first]),
        knows=tuple(knows),
    )


def table(found: Part) -> str:
    """Return a part as a Markdown table, with intervals."""
    named = f"{_phrase(found.clutter)} clutter"
    named = named[0].upper() + named[1:]
    chance = [found.chance_single, found.chance_target] * 2
    body = [
        [row.reading, *(_interval(share) for share in (row.single, row.target, row.mass_single, row.mass_target))]
        for row in found.rows
    ]
    head = [named, "single", "target", "mass in box, single", "mass in box, target"]
    return markdown([head, [CHANCE, *(f"{one:.3f}" for one in chance)], *body])


def short(parts: Sequence[Part], *, lines: Sequence[Line], photos: dict[str, str], chance_photos: str) -> str:
    """Return one table of all, each number with clutter / without."""
    head = ["reading", "single", "target", "mass in box", "time", "peak MB", "photographs"]
    times = {line.way: line for line in lines}
    chance = [
        CHANCE,
        _both([one.chance_single for one in parts]),
        _both([one.chance_target for one in parts]),
        _both([one.chance_single for one in parts]),
        "",
        "",
        chance_photos,
    ]
    body = []
    for name in (row.reading for row in parts[0].rows):
        rows = [one.row(name) for one in parts]
        shares = ([r.single.mean for r in rows], [r.target.mean for r in rows], [r.mass_single.mean for r in rows])
        line = times.get(name)
        cost = (
            ["", ""] if line is None else [f"{line.ratio:.1f}", "" if line.peak_mb is None else f"{line.peak_mb:.0f}"]
        )
        body.append([name, *(_both(share) for share in shares), *cost, photos[name]])
    return markdown([head, chance, *body])


def known(parts: Sequence[Part]) -> str:
    """Return what the model itself knows, on other scenes of the same seeds."""
    head = ["the model itself", "mean average precision", "top class right, single", "things", "seed by seed (mAP)"]
    body = [
        [
            f"{_phrase(one.clutter)} clutter",
            f"{fmean(each.mean_average_precision for each in one.knows):.4f}",
            f"{fmean(each.single_top1 for each in one.knows):.4f}",
            f"{min(each.classes for each in one.knows)}",
            ", ".join(f"{each.mean_average_precision:.4f}" for each in one.knows),
        ]
        for one in parts
    ]
    return markdown([head, *body])


def judged(parts: Sequence[Part]) -> list[str]:
    """Return one sentence for each goal: what was asked, what came out with clutter and without."""
    precise = [fmean(each.mean_average_precision for each in one.knows) for one in parts]
    count = min(each.classes for each in parts[0].knows)
    state = _state(precise[0] >= MEAN_PRECISION and count >= THINGS)
    said = [
        f"- {state}: mean average precision >= {MEAN_PRECISION} over at least {THINGS} things: "
        f"{_listed(precise)} over {count}"
    ]
    for goal in GOALS:
        shares: list[Share] = [getattr(one.row(goal.reading), goal.job) for one in parts]
        found = shares[0]
        said.append(
            f"- {_state(found.mean >= goal.least)}: {goal.reading}, {goal.job} >= {goal.least}: "
            f"{_listed([share.mean for share in shares])} (95 %: {found.low:.4f} to {found.high:.4f})"
        )
    return said


def _state(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _listed(values: Sequence[float]) -> str:
    """Return values of the parts: with clutter, and without."""
    return ", ".join(f"{value:.4f}" + (" without clutter" if at else "") for at, value in enumerate(values))


def _phrase(clutter: bool) -> str:
    return "with" if clutter else "without"


def _interval(share: Share) -> str:
    return f"{share.mean:.3f} ({share.low:.3f} to {share.high:.3f})"


def _both(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first as head, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])

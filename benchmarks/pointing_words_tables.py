"""What pointing with words found, as tables: scenes by their number of things, what the model knows, photographs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from assets.training.clip_evaluate import AMONG
from benchmarks.pointing_links import DEFAULT
from benchmarks.pointing_phrases import COUNTS, Scores
from benchmarks.pointing_scores import Score, Share, chances, hits, wilson
from benchmarks.pointing_tables import CHANCE, markdown

PROMPT, CAPTION = "its prompt", "in a caption"
RETRIEVAL, SIDES, BEST, OWN = 0.95, 0.75, 0.97, 0.85

#: For each number of things, for each way, for each seed, the scores of its scenes.
Found = Mapping[int, Mapping[str, Sequence[Sequence[Scores]]]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way: the share of peaks in the right box, by number of things and over all (0), prompts and captions."""

    way: str
    prompt: dict[int, Share]
    caption: dict[int, Share]


@dataclass(frozen=True, kw_only=True)
class Knows:
    """What the model knows of a seed's scenes; shares from 0 to 1."""

    seed: int
    caption_of_scene: float
    scene_of_caption: float
    left_right: float
    above_below: float


@dataclass(frozen=True, kw_only=True)
class Pointed:
    """All that was found on scenes."""

    rows: tuple[Row, ...]
    chance: dict[int, float]
    scenes: dict[int, int]


def pointed(found: Found) -> Pointed:
    """Return the rows of all ways, and chance."""
    sizes = (*found, 0)
    first = next(iter(found.values()))
    rows = tuple(
        Row(
            way=way,
            prompt={size: hits(_scenes(found, way, size, "prompt")) for size in sizes},
            caption={size: hits(_scenes(found, way, size, "caption")) for size in sizes},
        )
        for way in first
    )
    way = next(iter(first))
    return Pointed(
        rows=rows,
        chance={size: chances(_scenes(found, way, size, "prompt")) for size in sizes},
        scenes={size: sum(map(len, _scenes(found, way, size, "prompt"))) for size in sizes},
    )


def _scenes(found: Found, way: str, size: int, asked: str) -> list[list[tuple[Score, ...]]]:
    """Return for each seed the scores of each scene, of one number of things or (0) of all."""
    chosen = [by_way[way] for things, by_way in found.items() if size in (0, things)]
    return [[getattr(scene, asked) for part in parts for scene in part] for parts in zip(*chosen, strict=True)]


def table(found: Pointed) -> str:
    """Return the shares with their intervals."""
    sizes = tuple(found.chance)
    head = ["peak in the right box", *(f"{_size(size)}, {asked}" for size in sizes for asked in (PROMPT, CAPTION))]
    chance = [CHANCE, *(f"{found.chance[size]:.3f}" for size in sizes for _ in range(2))]
    body = [
        [row.way, *(_interval(share) for size in sizes for share in (row.prompt[size], row.caption[size]))]
        for row in found.rows
    ]
    return markdown([head, chance, *body])


def short(found: Pointed, *, per_prompt_ms: Mapping[str, float], photos: Mapping[str, str], by_chance: str) -> str:
    """Return one table of all, for the README: prompt / in a caption; time for each prompt; photographs."""
    head = ["method", *(_size(size) for size in COUNTS), "ms a prompt", "photographs: words it knows / never saw"]
    chance = [CHANCE, *(f"{found.chance[size]:.2f}" for size in COUNTS), "", by_chance]
    body = [
        [
            row.way,
            *(f"{row.prompt[size].mean:.2f} / {row.caption[size].mean:.2f}" for size in COUNTS),
            f"{per_prompt_ms[row.way]:.0f}" if row.way in per_prompt_ms else "",
            photos[row.way],
        ]
        for row in found.rows
    ]
    return markdown([head, chance, *body])


def known(knows: Sequence[Knows], *, count: int) -> str:
    """Return what the model itself knows, on other scenes of the same seeds."""
    head = ["the model itself", "share", "seed by seed"]
    names = {
        "caption_of_scene": f"caption of a scene, first among {AMONG}",
        "scene_of_caption": f"scene of a caption, first among {AMONG}",
        "left_right": "left and right told from the exchanged caption",
        "above_below": "above and below told from the exchanged caption",
    }
    body = []
    for field, name in names.items():
        shares = [float(asdict(each)[field]) for each in knows]
        mean = fmean(shares)
        low, high = wilson(min(max(mean, 0.0), 1.0), count=count * len(knows))
        within = f" ({low:.3f} to {high:.3f})" if field.endswith(("_scene", "_caption")) else ""
        body.append([name, f"{mean:.3f}{within}", ", ".join(f"{share:.3f}" for share in shares)])
    return markdown([head, *body])


def judged(found: Pointed, knows: Sequence[Knows]) -> list[str]:
    """Return one sentence for each goal."""
    said = []
    for name, field, least in (
        (f"caption of a scene among {AMONG}", "caption_of_scene", RETRIEVAL),
        (f"scene of a caption among {AMONG}", "scene_of_caption", RETRIEVAL),
        ("left and right", "left_right", SIDES),
    ):
        said.append(_goal(name, fmean(float(asdict(each)[field]) for each in knows), least))
    for asked, name in (("prompt", PROMPT), ("caption", CAPTION)):
        own = next(row for row in found.rows if row.way.startswith(f"{DEFAULT} ("))
        best = max(found.rows, key=lambda row: getattr(row, asked)[0].mean)
        said.append(_goal(f"pointing, {name}, {own.way}", getattr(own, asked)[0].mean, OWN))
        said.append(_goal(f"pointing, {name}, best method, {best.way}", getattr(best, asked)[0].mean, BEST))
    return said


def _goal(name: str, share: float, least: float) -> str:
    return f"- {'reached' if share >= least else 'MISSED'}: {name} >= {least}: {share:.4f}"


def _size(size: int) -> str:
    return COUNTS[size] if size else "all"


def _interval(share: Share) -> str:
    return f"{share.mean:.3f} ({share.low:.3f} to {share.high:.3f})"

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from PIL import Image

import mmattn
from assets.training.compose import Composer
from assets.training.evaluate import Knows
from benchmarks.pointing_photographs import Photographs, photographed
from benchmarks.pointing_readings import OURS, Reading, Subject, heads_of_last, opened, read, readings
from benchmarks.pointing_scores import Box, Score, Share, chances, hits, masses, scored, share_inside
from benchmarks.pointing_tables import GOALS, Part, Row, judged
from benchmarks.pointing_trials import Trial, photographs, singles, targets, tried
from mmattn import catalog, plugins
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

ROOT = Path(__file__).parents[2]


def grid_map(values: Sequence[Sequence[float]], *, size_px: int) -> Relevance:
    """Return a map over square patches behind a class token that is stronger than all of them."""
    rows, cols = np.shape(values)
    axis = PatchGrid.plain(
        rows=rows, cols=cols, patch_px=(8.0, 8.0), size_px=(size_px * cols // rows, size_px), special=("cls",)
    )
    flat = torch.tensor([[99.0, *np.ravel(values).tolist()]])
    return Relevance(values=flat, axis=axis, query_axis=Slots.count(1), labels=("class token",), method="planted")


def painted(boxes: Sequence[Box], *, size: int) -> Float[np.ndarray, "row col"]:
    """Return 1 where a pixel lies in a box."""
    canvas = np.zeros((size, size))
    for x0, y0, x1, y1 in boxes:
        canvas[int(y0) : int(y1), int(x0) : int(x1)] = 1
    return canvas


edges = st.tuples(st.integers(0, 23), st.integers(1, 24)).filter(lambda pair: pair[0] < pair[1])
boxes = st.lists(st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), edges, edges), min_size=1, max_size=3)


@given(boxes)
def test_the_part_of_a_patch_in_boxes_is_that_of_its_pixels(given: list[Box]) -> None:
    patches = [(x, y, x + 4, y + 6) for y in range(0, 24, 6) for x in range(0, 24, 4)]
    pixels = painted(given, size=24)
    plain = [pixels[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in patches]
    assert np.allclose(share_inside(np.array(patches, float), given), plain)


@given(boxes, st.integers(0, 2**32 - 1))
def test_mass_and_chance_are_sums_over_pixels(given: list[Box], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 3)).round(3)
    values[1, 1] = 1.0
    found = scored(grid_map(values.tolist(), size_px=24), given)
    spread = np.kron(values.clip(min=0), np.ones((8, 8)))
    pixels = painted(given, size=24)
    assert found.mass == pytest.approx((spread * pixels).sum() / spread.sum(), abs=1e-6)
    assert found.chance == pytest.approx(pixels.mean())


def test_a_hit_is_the_middle_of_the_strongest_patch_in_any_box() -> None:
    found = grid_map([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]], size_px=24)  # its middle is (20, 12)
    assert scored(found, [(20, 12, 21, 13)]).hit
    assert scored(found, [(0, 0, 8, 8), (16, 8, 24, 16)]).hit
    assert not scored(found, [(16, 8, 20, 16)]).hit  # a right edge is outside
    assert not scored(found, [(8, 16, 16, 24)]).hit  # the second strongest


def test_a_map_without_anything_positive_has_no_mass_in_a_box() -> None:
    assert scored(grid_map([[-1.0, -2.0], [-3.0, -4.0]], size_px=16), [(0, 0, 16, 16)]).mass == 0.0


def test_boxes_are_in_pixels_of_the_picture_and_chance_is_of_what_the_model_saw() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1).eval()
    wide = Image.fromarray(np.zeros((100, 200, 3), np.uint8))
    axis = mmattn.look(mmattn.attend(model, image=wide)).axis
    x0, _, x1, _ = axis.seen_box()
    assert (x0, x1) != (0, 200)  # cropped
    found = Relevance(
        values=torch.ones(1, len(axis)), axis=axis, query_axis=Slots.count(1), labels=("",), method="planted"
    )
    half = scored(found, [(0, 0, 100, 100)])
    assert half.chance == pytest.approx((100 - x0) / (x1 - x0))
    assert half.mass == pytest.approx(half.chance)


def test_intervals_count_scenes_and_means_count_targets() -> None:
    right, wrong = Score(hit=True, mass=0.5, chance=0.1), Score(hit=False, mass=0.1, chance=0.3)
    seeds = [[[right, right], [wrong]], [[right]]]
    found = hits(seeds)
    assert found.mean == 0.75
    assert found.by_seed == pytest.approx((2 / 3, 1.0))
    # Wilson's interval of 0.75 among 3 scenes, from the quadratic (p - x)^2 = z^2 x (1 - x) / n
    ends = np.sort(np.roots([1 + 1.96**2 / 3, -(1.5 + 1.96**2 / 3), 0.75**2]))
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert masses(seeds).mean == pytest.approx(0.4)
    assert chances(seeds) == pytest.approx(0.15)


def test_every_thing_of_a_scene_is_asked_for_once_by_name() -> None:
    composer = Composer("held-out")
    asked = targets(composer, seed=7, count=40)
    by_scene = [[trial for trial in asked if trial.scene == scene] for scene in range(40)]
    assert sum(map(len, by_scene)) == len(asked)
    for trials in by_scene:
        nouns = [trial.target for trial in trials]
        assert len(set(nouns)) == len(nouns)
        assert 2 <= sum(len(trial.boxes) for trial in trials) <= 3
    assert any(len(trial.boxes) == 2 for trial in asked)  # twice the same thing
    alone = singles(composer, seed=7, count=40)
    assert [trial.scene for trial in alone] == list(range(40))
    assert all(len(trial.boxes) == 1 and trial.target is None for trial in alone)


def test_scores_come_to_the_scenes_that_they_are_of() -> None:
    """A reading that lights what is bright points at what is bright, whatever its place in a batch."""
    draws = np.random.default_rng(0)
    trials = []
    for scene in range(40):
        for _ in range(1 + scene % 2):
            row, col = draws.integers(0, 4, 2).tolist()
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[16 * row : 16 * row + 16, 16 * col : 16 * col + 16] = 200
            box = (16.0 * col, 16.0 * row, 16.0 * col + 16, 16.0 * row + 16)
            trials.append(Trial(scene=scene, picture=picture, boxes=(box,)))
    bright, dark = planted("bright", sign=1), planted("dark", sign=-1)
    found = tried(small_subject(), [bright, dark], trials)
    assert [len(scene) for scene in found["bright"]] == [1 + scene % 2 for scene in range(40)]
    assert all(score.hit and score.mass == 1.0 for scene in found["bright"] for score in scene)
    assert not any(score.hit for scene in found["dark"] for score in scene)


def planted(name: str, *, sign: int) -> Reading:
    def each(maps: AttentionMaps) -> Relevance:
        photo = maps.media[0]
        assert isinstance(photo, Photo)
        axis = mmattn.look(maps).axis
        tiles = photo.pixels.reshape(4, 16, 4, 16, 3).astype(np.float32).mean(axis=(1, 3, 4)).ravel()
        values = torch.cat([torch.zeros(1), torch.from_numpy(sign * tiles)])[None]
        return Relevance(values=values, axis=axis, query_axis=Slots.count(1), labels=("",), method="planted")

    return Reading(name=name, aimed=False, each=each, door=each)


def small_subject() -> Subject:
    whole = {"crop_pct": 1.0}
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, pretrained_cfg_overlay=whole).eval()
    _, adapter = plugins.claiming(model)
    return Subject(
        name="small", model=model, adapter=adapter, processor=None, labels=None, size_px=64, names_things=False
    )


def test_a_model_without_targets_is_read_without() -> None:
    subject = small_subject()
    chosen = readings(subject, head=2)
    assert [one.name for one in chosen] == [
        *("last layer", "last layer, best head"),
        *("rollout", "rollout, least over heads"),
    ]
    maps = subject.attend([np.zeros((64, 64, 3), np.uint8)])
    assert len(heads_of_last(maps)) == 3
    found = read(maps, chosen, target=[None])
    assert torch.equal(found["last layer, best head"][0].values, mmattn.look(maps, head=2).values)


def test_a_batch_is_read_as_the_doors_read_one_picture() -> None:
    subject = opened(OURS)
    assert subject.names_things
    chosen = readings(subject, head=1)
    trials = singles(Composer("held-out"), seed=7, count=2)
    maps = subject.attend([trial.picture for trial in trials])
    together = read(maps, chosen, target=[None, None])
    for index, trial in enumerate(trials):
        alone = subject.attend([trial.picture])
        for one in chosen:
            ours, door = together[one.name][index], one.door(alone)
            door = door[0] if isinstance(door, list) else door
            assert torch.allclose(ours.values, door.values, rtol=1e-3, atol=1e-5), one.name
            assert (ours.method, ours.target) == (door.method, door.target)
    assert len({str(results[0].values.tolist()) for results in together.values()}) == len(chosen)


def test_a_named_thing_is_what_is_read_toward() -> None:
    subject = opened(OURS)
    trials = targets(Composer("held-out"), seed=7, count=3)
    chosen = [one for one in readings(subject, head=0) if one.aimed]
    maps = subject.attend([trial.picture for trial in trials])
    for results in read(maps, chosen, target=[trial.target for trial in trials]).values():
        assert [one.target.split("'")[1] for one in results] == [trial.target for trial in trials]


def test_all_shipped_photographs_have_boxes_inside_of_them() -> None:
    trials = photographs()
    assert {*trials, "horse"} == set(catalog.photos())
    for trial in trials.values():
        with Image.open(trial.picture) as picture:
            width, height = picture.size
        assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in trial.boxes)


def test_the_photographs_are_told_with_what_the_model_took_them_for() -> None:
    subject = opened(OURS)
    found = photographed(subject, readings(subject, head=0))
    named = dict(zip(found.names, found.named, strict=True))
    maps = subject.attend([catalog.photo_path("dogs")])
    top = mmattn.relevance(maps).target.split("'")[1]
    assert named["dogs"].startswith(f"{top} (0.")
    assert "knows nothing of photographs" in found.warning()
    assert "fig" in found.warning()  # a background in training


def test_photographs_are_counted_beside_chance() -> None:
    scores = (Score(hit=True, mass=0.5, chance=0.25), Score(hit=False, mass=0.5, chance=0.5))
    found = Photographs(subject="x", taught_scenes=False, names=("a", "b"), named=(), scores={"look": scores})
    assert found.counts() == {"look": "1 of 2"}
    assert found.chance() == "0.8 of 2"
    assert "| look | in | out | 1 of 2 |" in found.table()


@pytest.mark.parametrize(("value", "state"), [(0.99, "reached"), (0.9899, "MISSED")])
def test_a_goal_is_judged_in_scenes_with_clutter(value: float, state: str) -> None:
    part = {clutter: part_of(value if clutter else 1.0, clutter=clutter) for clutter in (True, False)}
    said = judged([part[True], part[False]])
    assert [line.split(": ")[1].split(" >=")[0] for line in said[1:]] == [f"{g.reading}, {g.job}" for g in GOALS]
    assert said[2].startswith(f"- {state}: Chefer, single >= 0.99: {value:.4f}, 1.0000 without clutter")


@pytest.mark.parametrize(
    ("precision", "things", "state"), [(0.97, 90, "reached"), (0.969, 96, "MISSED"), (1, 89, "MISSED")]
)
def test_knowing_is_judged_by_precision_and_by_how_many_things(precision: float, things: int, state: str) -> None:
    part = part_of(1.0, clutter=True, precision=precision, things=things)
    assert judged([part])[0].startswith(f"- {state}: mean average precision")


def part_of(value: float, *, clutter: bool, precision: float = 1.0, things: int = 96) -> Part:
    share = Share(mean=value, low=0.0, high=1.0, by_seed=(value,))
    rows = tuple(
        Row(reading=name, single=share, target=share, mass_single=share, mass_target=share)
        for name in dict.fromkeys(goal.reading for goal in GOALS)
    )
    knows = Knows(mean_average_precision=precision, single_top1=1.0, classes=things, scenes=1)
    return Part(clutter=clutter, rows=rows, chance_single=0.1, chance_target=0.1, knows=(knows,))


def test_the_benchmark_runs_and_its_tables_are_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    said = run("--tiny", "--rounds", "1", "--no-memory", "--json", str(path)).stdout
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["seeds"] == [101]
    assert [part["clutter"] for part in found["parts"]] == [True, False]
    with_clutter, without = found["parts"]
    for one, other in zip(with_clutter["rows"], without["rows"], strict=True):
        both = [f"{one[key]['mean']:.3f} / {other[key]['mean']:.3f}" for key in ("single", "target", "mass_single")]
        assert f"| {one['reading']} | {' | '.join(both)} |" in said
    assert {"Chefer", "gradient rollout", "rollout", "last layer"} <= {row["reading"] for row in with_clutter["rows"]}
    assert {line["way"] for line in found["lines"]} >= {row["reading"] for row in with_clutter["rows"]}
    assert all(line in said for line in found["targets"])


def test_the_seed_that_the_best_head_is_chosen_on_is_not_reported_on() -> None:
    done = run("--seeds", "2", "3", "--tuning-seed", "2", ok=False)
    assert "pass other --seeds" in done.stderr


def test_a_model_that_is_not_there_is_one_line() -> None:
    done = run("--model", "mmattn:vot", ok=False)
    assert done.stderr.startswith("error: The catalog has no model mmattn:vot.")


def run(*options: str, ok: bool = True) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.pointing", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is ok, done.stderr
    return done

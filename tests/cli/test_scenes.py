"""`mmattn image` on the shipped scenes with the model that is part of the library: the light is where the thing is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmattn import catalog
from mmattn.truth import SceneTruth

ONE_KIND = [name for name in catalog.scenes() if len(catalog.scene_truth(name).nouns) == 1]


@pytest.fixture
def record(mmattn: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run `mmattn image` on a scene and return what it says of it."""

    def run(name: str, *words: str) -> dict[str, Any]:
        file = tmp_path / "numbers.json"
        ran = mmattn("image", catalog.scene_path(name), "--model", "mmattn:vit", *words, "--json", file)
        assert ran.code == 0, ran.err
        (found,) = json.loads(file.read_text(encoding="utf-8"))
        assert found["size_px"] == list(catalog.scene_truth(name).size_px)
        return dict(found)

    return run


def points_at(truth: SceneTruth, noun: str, peak_px: list[float]) -> bool:
    """Whether a peak lies in a box of a thing."""
    x, y = peak_px
    return any(each.holds(x, y) for each in truth.objects if each.noun == noun)


def test_the_peak_toward_each_thing_lies_in_its_box_on_eleven_of_twelve_scenes(record):
    right = []
    for name in catalog.scenes():
        truth = catalog.scene_truth(name)
        peaks = {noun: record(name, "--method", "chefer", "--target", noun)["peak_px"] for noun in truth.nouns}
        right += [name] * all(points_at(truth, noun, peak) for noun, peak in peaks.items())
    assert len(right) >= len(catalog.scenes()) - 1, set(catalog.scenes()) - set(right)


def test_without_any_option_the_thing_that_is_there_is_named_and_lit(record):
    right = []
    for name in ONE_KIND:
        truth = catalog.scene_truth(name)
        found = record(name)
        (noun,) = truth.nouns
        right += [name] * (f"'{noun}'" in str(found["target"]) and points_at(truth, noun, found["peak_px"]))
    assert len(right) >= len(ONE_KIND) - 1, set(ONE_KIND) - set(right)


def test_a_thing_that_the_model_does_not_know_gets_the_nearest_names(mmattn, tmp_path):
    ran = mmattn("image", catalog.scene_path("car"), "-m", "mmattn:vit", "-t", "zebras", "-o", tmp_path / "x.png")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert 'no class "zebras". The nearest names are: zebra' in ran.err

"""Scenes in memory: boxes hold their things to the pixel, splits share no background, clutter can be left out."""

import doctest
import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training import compose  # noqa: E402
from assets.training.compose import Composer, Scene, overlap  # noqa: E402
from assets.training.draws import Draws  # noqa: E402
from assets.training.registries import HERE, backgrounds  # noqa: E402
from assets.training.things import OPAQUE, Pixels, extent, pictures, thing, things  # noqa: E402
from mmattn.errors import NotFoundError  # noqa: E402

MODULES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "__init__")
FREE = {"CC0 1.0", "CC BY 4.0", "CC BY 2.0", "public domain"}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer("held-out")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"assets.training.{name}")).failed == 0


def test_there_are_96_things_with_a_picture_each_and_they_are_small() -> None:
    assert len({each.noun for each in things()}) == len({each.file for each in things()}) == 96
    assert {path.name for path in (HERE / "objects").iterdir()} == {each.file for each in things()}
    for each in things():
        assert all(max(level.shape[:2]) > 25 for level in pictures(each.file)[:2])
    shipped = [path for folder in ("objects", "backgrounds") for path in (HERE / folder).iterdir()]
    assert sum(path.stat().st_size for path in shipped) < 1_000_000


def test_a_thing_that_there_is_not_lists_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="dog"):
        thing("dogg")


def test_a_box_is_the_extent_of_the_opaque_pixels_that_were_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every paste is written down beside the scene: its opacity, laid on an empty picture, has exactly that box."""
    pasted: list[Pixels] = []
    blend = compose._blend

    def beside(canvas: Pixels, rgba: Pixels, corner: tuple[int, int]) -> None:
        blend(canvas, rgba, corner)
        alpha = np.zeros((*canvas.shape[:2], 3), np.uint8)
        blend(alpha, np.repeat(rgba[..., 3:], 4, axis=-1), corner)
        pasted.append(alpha[..., 0])

    monkeypatch.setattr(compose, "_blend", beside)
    composer = Composer("held-out", size_px=96)
    for index in range(60):
        pasted.clear()
        scene = composer.scene(index, seed=2)
        assert [each.box_px for each in scene.objects] == [extent(alpha) for alpha in pasted]
        for each, alpha in zip(scene.objects, pasted, strict=True):
            x0, y0, x1, y1 = each.box_px
            outside = alpha.copy()
            outside[y0:y1, x0:x1] = 0
            assert outside.max() <= 255 * OPAQUE < alpha[y0:y1, x0:x1].max()


def test_things_look_like_their_pictures_where_their_boxes_are(composer: Composer) -> None:
    """The most alike of all 96 pictures, scaled to the box, is nearly always the true one."""
    plain = Composer("held-out", clutter=False)
    scenes = [plain.scene(index, seed=5, most=1) for index in range(40)]
    assert sum(_most_alike(scene) == scene.objects[0].thing.noun for scene in scenes) >= 24


def _most_alike(scene: Scene) -> str:
    x0, y0, x1, y1 = scene.objects[0].box_px
    shown = cv2.resize(scene.pixels[y0:y1, x0:x1], (24, 24), interpolation=cv2.INTER_AREA).astype(float)
    away = {}
    for each in things():
        small = cv2.resize(pictures(each.file)[1], (24, 24), interpolation=cv2.INTER_AREA).astype(float)
        opaque = small[..., 3:] / 255
        candidates = (small, small[:, ::-1])
        away[each.noun] = min(
            float((np.abs(shown - one[..., :3]) * o).sum() / o.sum())
            for one, o in zip(candidates, (opaque, opaque[:, ::-1]), strict=True)
        )
    return min(away, key=lambda noun: away[noun])


def test_boxes_hardly_overlap_and_as_many_things_are_there_as_were_asked_for(composer: Composer) -> None:
    for index in range(150):
        found = composer.scene(index, seed=3, least=2, most=3).objects
        assert len(found) in (2, 3)
        pairs = [(a.box_px, b.box_px) for i, a in enumerate(found) for b in found[:i]]
        assert all(overlap(one, other) <= 0.1 for one, other in pairs)


def test_a_scene_is_the_same_whatever_was_composed_before(composer: Composer) -> None:
    first = composer.scene(7, seed=1)
    for index in range(3):
        composer.scene(index, seed=1)
    again, fresh = composer.scene(7, seed=1), Composer("held-out").scene(7, seed=1)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.pixels, fresh.pixels)
    assert first.objects == again.objects == fresh.objects
    assert not np.array_equal(first.pixels, composer.scene(7, seed=2).pixels)


def test_clutter_changes_some_pixels_of_some_scenes_and_nothing_else() -> None:
    with_shapes, without = Composer("held-out"), Composer("held-out", clutter=False)
    changed = []
    for index in range(80):
        one, other = (each.scene(index, seed=4) for each in (with_shapes, without))
        assert one.objects == other.objects
        changed.append(float((one.pixels != other.pixels).any(axis=-1).mean()))
    assert 0.4 < np.mean([share > 0 for share in changed]) < 0.75, "0.58 are expected"
    assert 0.02 < np.mean([share for share in changed if share > 0]) < 0.3


def test_the_splits_share_no_background_and_every_one_is_free_to_use() -> None:
    train, held_out = backgrounds("train"), backgrounds("held-out")
    assert not {each.member for each in train} & {each.member for each in held_out}
    assert not {each.name for each in train} & {each.name for each in held_out}
    assert all(each.shipped is not None for each in held_out)
    assert {each.license for each in (*train, *held_out)} <= FREE
    assert all(each.author for each in (*train, *held_out))


def test_what_is_shipped_for_scenes_stands_in_the_sources_with_author_and_licence() -> None:
    text = (ROOT / "assets" / "SOURCES.md").read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in text
    for each in backgrounds("held-out"):
        lines = [line for line in text.splitlines() if line.startswith("|") and Path(str(each.shipped)).name in line]
        assert any(each.author in line and each.license in line for line in lines), each


def test_draws_are_even_and_follow_from_their_purpose() -> None:
    draws = Draws("test", 1)
    shares = np.array([draws.share() for _ in range(4000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert sorted(draws.order(5)) == [0, 1, 2, 3, 4]
    bell = draws.bell(200, 200)
    assert abs(float(bell.std()) - 1) < 0.02
    assert Draws("test", 1).share() == shares[0] != Draws("test", 2).share()

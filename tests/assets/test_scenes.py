"""The shipped scenes: as composed, free to ship, small, of many kinds; and their list is read strictly."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn import catalog
from mmattn.cli.credits import scene_credits
from mmattn.errors import FormatError, NotFoundError
from mmattn.truth import read_truth

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training.compose import Composer, Scene  # noqa: E402
from assets.training.demo_scenes import INDICES, SEED, SIZE_PX, scene_name, write_demo_scenes  # noqa: E402
from assets.training.draws import Draws  # noqa: E402
from assets.training.grounds import BANK  # noqa: E402
from assets.training.registries import backgrounds  # noqa: E402
from assets.training.things import things  # noqa: E402

CAR: dict[str, Any] = {
    "file": "car.webp",
    "size_px": [336, 336],
    "objects": [{"noun": "car", "color": "red", "box_px": [49, 226, 174, 316], "in_caption": True}],
    "caption": "a red car",
}


@pytest.fixture(scope="module")
def composed() -> dict[str, tuple[int, Scene]]:
    """The scenes as composed now, by name, each with its index."""
    composer = Composer("held-out", size_px=SIZE_PX)
    scenes = [(index, composer.scene(index, seed=SEED)) for index in INDICES]
    return {scene_name(scene): (index, scene) for index, scene in scenes}


def test_a_scene_is_what_the_composer_makes_and_its_boxes_are_the_composers(
    composed: dict[str, tuple[int, Scene]],
) -> None:
    assert set(catalog.scenes()) == set(composed)
    for name, (_, scene) in composed.items():
        truth = catalog.scene_truth(name)
        said = [(each.noun, each.color, each.box_px) for each in truth.objects]
        assert said == [(each.thing.noun, each.thing.color, each.box_px) for each in scene.objects]
        with Image.open(catalog.scene_path(name)) as picture:
            assert picture.size == truth.size_px == (SIZE_PX, SIZE_PX)
            shown = np.asarray(picture.convert("RGB")).astype(int)
        # the same pixels with the same release of OpenCV; another may round otherwise, along edges
        assert np.quantile(np.abs(shown - scene.pixels), 0.99) <= 2, name


def test_the_same_command_writes_the_same_list(tmp_path: Path) -> None:
    shipped = catalog.scene_path("car").with_name("scenes.json")
    assert write_demo_scenes(tmp_path).read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")


def test_every_scene_names_the_author_and_licence_of_its_background(composed: dict[str, tuple[int, Scene]]) -> None:
    credits = {Path(credit.file).stem: credit for credit in scene_credits()}
    assert set(credits) == set(composed)
    grounds = backgrounds("held-out")
    for name, (index, _) in composed.items():
        crop = Draws("scene", "held-out", SEED, index).below(BANK)
        ground = grounds[Draws("ground", "held-out", crop).below(len(grounds))]
        assert credits[name].author == f"{ground.author} (background), Microsoft (things)"
        assert credits[name].license == f"{ground.license} (background), MIT (things)"
        assert ground.license.startswith(("CC0", "CC BY "))


def test_together_they_are_small_and_of_many_kinds() -> None:
    truths = [catalog.scene_truth(name) for name in catalog.scenes()]
    assert sum(catalog.scene_path(name).stat().st_size for name in catalog.scenes()) < 2_500_000
    counts = [len(truth.objects) for truth in truths]
    assert min(counts.count(count) for count in (1, 2, 3)) >= 3
    assert any(len(truth.nouns) < len(truth.objects) for truth in truths), "the same thing twice"
    nouns = {each.noun for each in things()}
    assert all(noun in nouns for truth in truths for noun in truth.nouns)


def test_an_unknown_scene_lists_those_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no scene 'camel'\. There are camels,"):
        catalog.scene_path("camel")


def test_the_boxes_of_a_thing_that_is_there_twice_are_two() -> None:
    truth = catalog.scene_truth("koalas-apple")
    assert (len(truth.boxes("koala")), len(truth.boxes("apple")), truth.boxes("car")) == (2, 1, ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../car.webp"}, "no file's name"),
        ({"file": ""}, "no word"),
        ({"size_px": [336]}, "not enough values"),
        ({"size_px": [336.0, 336]}, "no whole number"),
        ({"caption": 3}, "no word"),
        ({"seed": 7}, "seed"),
        ({"objects": {}}, "no list"),
        ({"objects": [CAR["objects"][0] | {"box_px": [49, 226, 174, 337]}]}, "does not lie in 336 x 336"),
        ({"objects": [CAR["objects"][0] | {"box_px": [174, 226, 174, 316]}]}, "does not lie in"),
        ({"objects": [CAR["objects"][0] | {"box_px": [True, 226, 174, 316]}]}, "no whole number"),
        ({"objects": [CAR["objects"][0] | {"in_caption": 1}]}, "in_caption is 1"),
        ({"objects": [CAR["objects"][0] | {"noun": None}]}, "None"),
        ({"objects": ["car"]}, "'car' instead of"),
    ],
)
def test_an_entry_of_another_form_is_refused_with_its_number(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=r"Scene 1 is not as it should be") as caught:
        read_truth(json.dumps([CAR, CAR | change]))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '"scenes"', "[1,", "NaN"])
def test_what_is_no_list_of_scenes_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no list of scenes"):
        read_truth(text)

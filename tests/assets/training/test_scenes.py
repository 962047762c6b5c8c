"""Scenes as files: what scenes.json says is so, nothing needs a network, and the same command writes the same bytes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training.captions import holds  # noqa: E402
from assets.training.things import things  # noqa: E402

COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3}
COLORS = {each.color for each in things() if each.color}
WORDS = {each.noun: each.noun for each in things()} | {each.plural: each.noun for each in things() if each.plural}


def wrote(folder: Path, *more: str, split: str = "held-out", count: int = 40) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does, with no network to go to and nothing in the cache."""
    script = [sys.executable, str(ROOT / "assets" / "training" / "scenes.py")]
    asked = ["--seed", "11", "--count", str(count), "--split", split, "--out", str(folder)]
    nowhere = {"MMATTN_CACHE": str(folder / "cache"), "PATH": str(folder), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [*script, *asked, *more], env=os.environ | nowhere, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    done = wrote(path, "--captions")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return found


def test_every_scene_has_its_picture_and_what_is_in_it(folder: Path, entries: list[dict[str, Any]]) -> None:
    assert len(entries) == 40
    for entry in entries:
        assert set(entry) == {"file", "size_px", "objects", "caption"}
        with Image.open(folder / entry["file"]) as picture:
            assert list(picture.size) == entry["size_px"] == [112, 112]
            assert picture.mode == "RGB"
        assert 1 <= len(entry["objects"]) <= 3
        for each in entry["objects"]:
            assert set(each) == {"noun", "color", "box_px", "in_caption"}
            (thing,) = [thing for thing in things() if thing.noun == each["noun"]]
            assert each["color"] == thing.color
            x0, y0, x1, y1 = each["box_px"]
            assert 0 <= x0 < x1 <= 112
            assert 0 <= y0 < y1 <= 112


def test_scenes_have_one_to_three_things_of_many_sizes(entries: list[dict[str, Any]]) -> None:
    assert {len(entry["objects"]) for entry in entries} == {1, 2, 3}
    sides = [
        max(x1 - x0, y1 - y0) / 112 for entry in entries for x0, y0, x1, y1 in (o["box_px"] for o in entry["objects"])
    ]
    assert 0.2 < min(sides) < 0.3
    assert 0.45 < max(sides) < 0.8


def test_the_same_command_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert wrote(tmp_path, "--captions", count=12).returncode == 0
    for file in sorted(tmp_path.glob("*.png")):
        assert file.read_bytes() == (folder / file.name).read_bytes()
    lines = (folder / "scenes.json").read_text(encoding="utf-8").splitlines()[:12]
    again = (tmp_path / "scenes.json").read_text(encoding="utf-8").splitlines()[:12]
    assert [line.rstrip(",") for line in lines] == [line.rstrip(",") for line in again]


def test_without_captions_nothing_is_said_and_the_pictures_are_the_same(folder: Path, tmp_path: Path) -> None:
    assert wrote(tmp_path, count=3).returncode == 0
    found = json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))
    assert [entry["caption"] for entry in found] == [None] * 3
    assert not any(each["in_caption"] for entry in found for each in entry["objects"])
    assert (tmp_path / "scene-00002.png").read_bytes() == (folder / "scene-00002.png").read_bytes()


def test_a_caption_is_true_of_its_boxes(tmp_path: Path) -> None:
    assert wrote(tmp_path, "--captions", "--least", "2", "--size", "32", count=400).returncode == 0
    found = json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))
    relations = [is_true(entry) for entry in found]
    assert sum(relations) > 60, "many captions say how two things lie"
    assert any("two " in entry["caption"] for entry in found)
    assert any("three " in entry["caption"] for entry in found)


def is_true(entry: dict[str, Any]) -> int:
    """Read a caption word by word and hold it against the boxes; return how many relations it has."""
    here = entry["objects"]
    said: set[str] = set()
    relations = 0
    for part in re.split(", and |, ", entry["caption"]):
        found = re.split(r" (left of|above) ", part)
        groups = [[told(words, here) for words in side.split(" and ")] for side in found[::2]]
        said |= {noun for group in groups for noun in group}
        for (first, *_), relation, (second, *_) in zip(groups[:-1], found[1::2], groups[1:], strict=True):
            relations += 1
            for one in boxes(here, first):
                assert all(holds(relation, one, other, size_px=entry["size_px"][0]) for other in boxes(here, second))
                axis = 0 if relation == "left of" else 1
                assert all(one[axis] < other[axis] for other in boxes(here, second)), entry
    assert said == {each["noun"] for each in here if each["in_caption"]}, entry
    return relations


def told(words: str, here: list[dict[str, Any]]) -> str:
    """Return the noun of a phrase such as "two red apples", whose count and color are true."""
    first, *rest = words.split()
    count = COUNTS.get(first, 1)
    rest = rest if first in COUNTS else [first, *rest]
    color = rest[0] if rest[0] in COLORS and len(rest) > 1 else None
    noun = WORDS[" ".join(rest[1:] if color else rest)]
    of_it = [each for each in here if each["noun"] == noun]
    assert len(of_it) == count, (words, here)
    assert color is None or all(each["color"] == color for each in of_it)
    return noun


def boxes(here: list[dict[str, Any]], noun: str) -> list[tuple[int, int, int, int]]:
    return [tuple(each["box_px"]) for each in here if each["noun"] == noun]


def test_the_training_split_says_in_one_line_what_it_lacks(tmp_path: Path) -> None:
    done = wrote(tmp_path, split="train", count=1)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "@pmndrs/assets 1.7.0 is fetched with npm, which is not on this machine" in line
    assert "--split held-out" in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--count", "0"], "--count is 0"),
        (["--least", "3", "--most", "2"], "3 to 2 things"),
        (["--most", "4"], "1 to 4 things"),
        (["--size", "20"], "20 px"),
    ],
)
def test_what_cannot_be_composed_is_said_in_one_line(more: list[str], said: str, tmp_path: Path) -> None:
    done = wrote(tmp_path, *more)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = wrote(tmp_path / "file", "--count", "1")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot be written" in done.stderr


def test_pictures_of_a_seed_are_of_many_kinds(folder: Path) -> None:
    middles = {tuple(np.asarray(Image.open(path))[50:60, 50:60].mean((0, 1)).round(1)) for path in folder.glob("*.png")}
    assert len(middles) == 40

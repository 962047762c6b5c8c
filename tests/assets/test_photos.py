"""The shipped photographs: whole, upright, small, and each with its source and licence."""

import ast
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from mmattn import catalog
from mmattn.errors import NotFoundError

FREE = ("CC0", "public domain", "CC BY 4.0")


@pytest.mark.parametrize("name", catalog.photos())
def test_a_photograph_is_whole_upright_and_free_to_ship(name: str) -> None:
    path = catalog.photo_path(name)
    with Image.open(path) as photo:
        photo.load()
        assert photo.mode in {"RGB", "L"}
        assert not photo.getexif(), "no camera data, and so no rotation and no place"
        assert 300 <= min(photo.size) <= max(photo.size) <= 1000
        assert np.asarray(photo).std() > 20, "a picture of something"
    (line,) = [line for line in _sources() if line.startswith(f"| `{path.name}`")]
    author, licence = line.split("|")[3:5]
    assert author.strip()
    assert any(word in licence for word in FREE)


def test_sources_name_no_picture_that_is_not_shipped() -> None:
    named = {line.split("`")[1] for line in _sources() if line.startswith("| `") and "mmattn:" not in line}
    photos = {catalog.photo_path(name).name for name in catalog.photos()}
    assert named == photos | {catalog.scene_path(name).name for name in catalog.scenes()}


def test_sources_name_every_model_that_is_fetched() -> None:
    text = "\n".join(_sources())
    for entry in catalog.entries():
        assert f"`{entry.full_name}`" in text
        assert entry.wheel is None or f"{entry.wheel.package} {entry.wheel.version}" in text


def test_together_they_are_small_and_of_all_shapes() -> None:
    paths = [catalog.photo_path(name) for name in catalog.photos()]
    assert sum(path.stat().st_size for path in paths) < 1_500_000
    sizes = [Image.open(path).size for path in paths]
    assert {(w > h) - (w < h) for w, h in sizes} == {1, 0, -1}, "landscape, square and portrait"
    assert {"astronaut", "chelsea", "coffee", "rocket", "horse"} <= set(catalog.photos())


def test_an_unknown_photograph_lists_those_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"no photograph 'rockets'\. There are rocket,"):
        catalog.photo_path("rockets")


def test_assets_import_nothing() -> None:
    tree = ast.parse(files("mmattn.assets").joinpath("__init__.py").read_text(encoding="utf-8"))
    assert [type(node).__name__ for node in tree.body] == ["Expr"], "a docstring alone"


def _sources() -> list[str]:
    return files("mmattn.assets").joinpath("SOURCES.md").read_text(encoding="utf-8").splitlines()

"""Every example runs, and makes the picture that it is named for."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_model
from weights import real_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
# Those that name classes run the model that knows them, which is part of the library.
OWN_MODEL = {"match", "which_of_three"}
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "options")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"))


def run(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", NAMES)
def test_example_makes_its_picture(name, tiny, tmp_path, monkeypatch):
    model = [] if name in OWN_MODEL else ["--model", tiny]
    run(name, "--out", str(tmp_path), *model, monkeypatch=monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert min(picture.size) > 200


def test_heads_of_real_weights_move_the_output(tmp_path, monkeypatch, capsys):
    real_weights("dinov2-small")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    moved = runpy.run_path(str(EXAMPLES / "intervene_heads.py"))["features_moved"]
    import mmattn
    from mmattn.catalog import photo_path

    maps = mmattn.attend("mmattn:dinov2-small", image=photo_path("horse"))
    shares = [moved(maps, layer="blocks.11.attn", head=head) for head in range(6)]
    assert all(0.01 < share < 2 for share in shares)

"""Models, photos and the program, for the tests of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from tiny import tiny_model

from mmattn import catalog
from mmattn.cli import main


class Ran(NamedTuple):
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def mmattn(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*words: object) -> Ran:
        code = main([str(word) for word in words])
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def photo() -> Path:
    return catalog.photo_path("chelsea")


@pytest.fixture
def album(tmp_path: Path, photo: Path) -> Path:
    """Three small pictures, the second of them broken."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.png", "c.jpg"):
        Image.open(photo).resize((90, 60)).save(folder / name)
    (folder / "b.jpg").write_bytes(b"no picture at all")
    return folder

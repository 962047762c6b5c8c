"""`mmattn demo`: the gallery is whole, its lines run, and a real browser shows it."""

import contextlib
import html.parser
import shlex
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from PIL import Image

from mmattn import catalog
from mmattn.cli import main
from mmattn.cli.credits import Credit, credits, scene_credits
from mmattn.cli.gallery import page
from mmattn.cli.studio import Job


@pytest.fixture(scope="session")
def gallery(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the small model, in a folder that held something already."""
    folder = tmp_path_factory.mktemp("demo") / "gallery"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "index.html").write_text("old")
    assert main(["demo", "--out", str(folder), "--model", tiny]) == 0
    return folder


class Page(html.parser.HTMLParser):
    """Collects what a page links to and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.lines: list[str] = []
        self.blocks: list[list[str]] = []
        self.line: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "img":
            self.pictures.append(given)
        if tag == "pre":
            self.blocks.append([])
        if given.get("class") == "line":
            self.line = ""

    def handle_data(self, data: str) -> None:
        if self.line is not None:
            self.line += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self.line is not None:
            self.blocks[-1].append(self.line)
            self.line = None


def read(folder: Path) -> Page:
    return Page((folder / "index.html").read_text())


def test_only_its_own_files_are_replaced(gallery):
    assert (gallery / "mine.txt").read_text() == "mine"
    assert (gallery / "index.html").read_text().startswith("<!doctype html>")
    assert not [path for path in gallery.iterdir() if path.name.startswith(".")]


def test_every_link_and_picture_is_there(gallery):
    shown = read(gallery)
    files = [link for link in shown.links if not link.startswith(("#", "https://", "http://"))]
    files += [str(picture["src"]) for picture in shown.pictures]
    assert len(shown.pictures) >= 20
    for file in files:
        assert (gallery / file).is_file(), file


def test_every_picture_says_what_drew_it_and_how_large_it_is(gallery):
    for picture in read(gallery).pictures:
        assert any(model in str(picture["alt"]) for model in ("tiny.safetensors", "mmattn:vit", "mmattn:clip"))
        if not str(picture["src"]).endswith(".svg"):
            assert Image.open(gallery / str(picture["src"])).size == (
                int(str(picture["width"])),
                int(str(picture["height"])),
            )


def test_every_photo_and_scene_has_author_and_licence(gallery):
    text = (gallery / "index.html").read_text()
    assert {credit.file for credit in credits()} == {catalog.photo_path(name).name for name in catalog.photos()}
    assert {credit.file for credit in scene_credits()} == {catalog.scene_path(name).name for name in catalog.scenes()}
    for credit in (*credits(), *scene_credits()):
        assert credit.author.split(" (")[0].replace('"', "") in text.replace("&quot;", "").replace('"', "")
        assert credit.license.split(" (")[0] in text


def test_lines_of_the_gallery_draw_its_pictures(gallery, tmp_path):
    """Run every Python block and every command in a copy without pictures; the same pixels come out."""
    shown = read(gallery)
    for folder in ("photos", "scenes"):
        (tmp_path / folder).symlink_to(gallery / folder)
    with contextlib.chdir(tmp_path):
        for block in shown.blocks:
            if block[0].startswith("mmattn "):
                for line in block:
                    assert main(shlex.split(line)[1:]) == 0, line
            else:
                (tmp_path / "saved").mkdir(exist_ok=True)
                exec(compile("\n".join(block), "gallery", "exec"), {})
    compared = 0
    for picture in shown.pictures:
        file = str(picture["src"])
        if not (tmp_path / file).exists() or file.endswith(".svg"):
            continue
        ours, theirs = (np.asarray(Image.open(folder / file)) for folder in (gallery, tmp_path))
        assert ours.shape == theirs.shape, file
        assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 2, file
        compared += 1
    assert compared >= 15


def test_everything_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    job = Job(key=evil, title=evil, sentence=evil, shots=(), commands=(evil,), python=evil)
    credit = Credit(file=evil, what=evil, author=evil, license=evil, url=None)
    text = page([job], folder=tmp_path, model=evil, credits=[credit])
    assert "<script" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("width", [1280, 500])
def test_browser_shows_every_picture_without_asking_anyone(gallery, tmp_path, width):
    shot = tmp_path / "page.png"
    ran = opened(gallery / "index.html", folder=tmp_path, ask=f"--screenshot={shot}", size=(width, 2000))
    assert "Content Security Policy" not in ran.stderr
    gray = np.asarray(Image.open(shot).convert("L"))
    assert gray.shape[1] == width
    assert (gray < 140).mean() > 0.15  # photographs; text alone and broken pictures leave the paper light

"""No command writes over what it reads or over its own pictures, and says so before the model opens."""

from pathlib import Path

import pytest

NO_MODEL = ("--model", "mmattn:no-such-model")


def refused(ran, *phrases: str) -> None:
    """Hold a run to one line, which is not about the model: it was refused before that was looked for."""
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran
    assert "no-such-model" not in ran.err
    for phrase in phrases:
        assert phrase in ran.err


@pytest.fixture
def cat(tmp_path: Path, photo: Path) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_bytes(photo.read_bytes())
    return path


def test_numbers_are_never_written_over_a_picture(mmattn, cat, tmp_path, monkeypatch):
    before = cat.read_bytes()
    (tmp_path / "link.json").symlink_to(cat)
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for other in (cat, "cat.jpg", "./folder/cat.jpg", "link.json"):
        refused(mmattn("image", cat, "--json", other, *NO_MODEL), "is a file that is read")
    assert cat.read_bytes() == before


def test_numbers_are_never_written_over_what_is_drawn_or_opened(mmattn, cat, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    same, linked = tmp_path / "same.png", tmp_path / "link" / "same.png"
    refused(mmattn("image", cat, "-o", same, "--json", linked, *NO_MODEL), "is a picture that -o writes")
    in_folder = tmp_path / "out" / "cat.png"
    refused(mmattn("image", cat, "-o", tmp_path / "out", "--json", in_folder, *NO_MODEL), "is a picture that -o writes")
    weights = tmp_path / "mine.pth"
    refused(mmattn("image", cat, "--json", weights, "--model", f"timm:vit_x@{weights}"), "is a file that is read")


def test_numbers_for_a_folder_are_refused(mmattn, cat, tmp_path):
    refused(mmattn("image", cat, "--json", tmp_path, *NO_MODEL), "is a folder", "numbers.json")
    refused(mmattn("image", cat, "--json", f"{tmp_path}/new/", *NO_MODEL), "is a folder")
    refused(mmattn("image", cat, "--json", "", *NO_MODEL), "--json is empty")


def test_places_that_are_no_files_and_no_folders_are_named_for_what_they_are(mmattn, cat, tmp_path):
    refused(mmattn("image", cat, "-o", "/dev/full", *NO_MODEL), "/dev/full is a device, not a folder")
    refused(mmattn("image", cat, "--json", "/dev/full", *NO_MODEL), "/dev/full is a device, not a file")
    refused(mmattn("demo", "--out", cat, *NO_MODEL), "is a file, not a folder", "--out")
    refused(mmattn("image", cat, "-o", "", *NO_MODEL), "-o is empty")
    refused(mmattn("image", "", "-o", tmp_path / "out", *NO_MODEL), "An empty path")


def test_places_that_cannot_be_looked_at_are_refused(mmattn, cat, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("x" * 300, "x" * 300 + ".png", tmp_path / "loop" / "a.png", "a\0.png"):
        refused(mmattn("image", cat, "-o", place, *NO_MODEL), "Nothing can be written to")
        refused(mmattn("image", cat, "--json", place, *NO_MODEL), "Nothing can be written to")
    refused(mmattn("image", "x" * 300 + ".jpg", "-o", tmp_path / "out", *NO_MODEL), "cannot be looked at", "too long")


def test_a_picture_may_be_drawn_over_an_older_one(mmattn, cat, tiny, tmp_path):
    out, numbers = tmp_path / "old.png", tmp_path / "old.json"
    out.write_bytes(b"old")
    numbers.write_bytes(b"old")
    assert mmattn("image", cat, "-o", out, "--json", numbers, "--model", tiny).code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert numbers.read_bytes().startswith(b"[{")

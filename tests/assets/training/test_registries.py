"""What scenes are made of comes from its registries with the pinned bytes, or not at all and in one clear line.

The registries' clients are real programs on a path of their own: shell scripts that answer as npm, apt-get and pip do.
"""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training import registries  # noqa: E402
from assets.training.fetching import exposed  # noqa: E402
from assets.training.grounds import Grounds  # noqa: E402
from assets.training.registries import Package, archive, backgrounds, member, package, packages  # noqa: E402
from mmattn.errors import DownloadError, FormatError, MissingExtraError, NotFoundError  # noqa: E402

BYTES = b"what the registry serves"
PACKAGE = Package(
    name="things", registry="npm", version="1.0.0", file="things-1.0.0.tgz", sha256=hashlib.sha256(BYTES).hexdigest()
)


@pytest.fixture(autouse=True)
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a path of their own, both empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    return folder


def client(folder: Path, name: str, *lines: str) -> None:
    script = folder / name
    script.write_text("\n".join(["#!/bin/sh", *lines]) + "\n", encoding="utf-8")
    script.chmod(0o755)


def serving(folder: Path, *, sent: bytes = BYTES) -> None:
    client(folder, "npm", f"printf '%s' '{sent.decode()}' > things-1.0.0.tgz", f"echo once >> {folder}/asked")


def test_an_archive_is_fetched_once_and_kept(clients: Path) -> None:
    serving(clients)
    path = archive(PACKAGE)
    assert path.read_bytes() == BYTES
    assert archive(PACKAGE) == path
    assert (clients / "asked").read_text(encoding="utf-8") == "once\n"
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(clients: Path) -> None:
    serving(clients, sent=b"something else")
    with pytest.raises(DownloadError, match=r"things-1\.0\.0\.tgz has the SHA-256 [0-9a-f]{16}\.\.\., not the pinned"):
        archive(PACKAGE)
    assert list((clients.parent / "cache" / "training").iterdir()) == []


def test_an_archive_that_was_changed_in_the_cache_is_refused(clients: Path) -> None:
    serving(clients)
    archive(PACKAGE).write_bytes(BYTES[:-1])
    with pytest.raises(DownloadError, match="not the pinned one"):
        archive(PACKAGE)


@pytest.mark.parametrize(("registry", "name"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_client_that_is_missing_is_named(registry: str, name: str) -> None:
    with pytest.raises(MissingExtraError, match=f"fetched with {name}, which is not on this machine"):
        archive(replace(PACKAGE, registry=registry))


def test_what_a_registry_said_is_in_the_error(clients: Path) -> None:
    client(clients, "npm", "echo 'npm error code ENOTFOUND' >&2", "exit 1")
    with pytest.raises(DownloadError, match="could not be fetched from npm: npm error code ENOTFOUND") as caught:
        archive(PACKAGE)
    assert "\n" not in str(caught.value)
    client(
        clients, "apt-get", "echo 'Reading package lists...'", "echo 'E: Version 1.0.0 was not found' >&2", "exit 100"
    )
    with pytest.raises(DownloadError, match=r"E: Version 1\.0\.0 was not found.*Run apt-get update first"):
        archive(replace(PACKAGE, registry="apt"))


def test_a_registry_that_does_not_answer_is_not_waited_for(clients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "LIMIT_S", 0.2)
    client(clients, "npm", "while :; do :; done")
    with pytest.raises(DownloadError, match=r"no answer in 0\.2 s"):
        archive(PACKAGE)


def test_an_archive_of_another_name_is_refused(clients: Path) -> None:
    client(clients, "npm", "printf x > things-2.0.0.tgz")
    with pytest.raises(DownloadError, match=r"npm gave things-2\.0\.0\.tgz for things 1\.0\.0"):
        archive(PACKAGE)


def test_files_are_read_from_archives_of_both_kinds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("folder/file", b"in a wheel")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        about = tarfile.TarInfo("folder/file")
        about.size = len(b"in a tar")
        tar.addfile(about, io.BytesIO(b"in a tar"))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(packed.getvalue()))
    assert member(tmp_path / "a.whl", "folder/file") == b"in a wheel"
    assert member(tmp_path / "a.tgz", "folder/file") == b"in a tar"
    for name in ("a.whl", "a.tgz"):
        with pytest.raises(FormatError, match=f"{name} has no file other"):
            member(tmp_path / name, "other")


def test_every_background_comes_from_a_package_that_is_pinned() -> None:
    for each in (*backgrounds("train"), *backgrounds("held-out")):
        assert package(each.package) is packages()[each.package]
    for each in packages().values():
        assert len(each.sha256) == 64
        assert each.version in " ".join(each.command())
    with pytest.raises(NotFoundError, match="scikit-image"):
        package("scikit-images")


def test_a_panorama_keeps_its_order_of_light_and_its_lamps_do_not_ring() -> None:
    light = np.full((40, 60, 3), 0.3, np.float32)
    light[20, 30], light[20, 31] = 500.0, -60.0
    shown = exposed(light)
    assert shown.shape == (26, 60, 3)
    assert shown.min() >= shown[0, 0, 0] - 1, "nothing is darker than the wall"
    ramp = exposed(np.linspace(0.01, 100, 9, dtype=np.float32)[None, :, None].repeat(20, 0).repeat(3, 2))[5, :, 0]
    assert (np.diff(ramp.astype(int)) > 0).all()


@pytest.mark.skipif(os.environ.get("MMATTN_FETCH") != "1", reason="fetches 55 MB; MMATTN_FETCH=1 runs it")
def test_the_training_backgrounds_come_from_the_real_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    assert Grounds("train", size_px=64).crop(5).shape == (64, 64, 3)

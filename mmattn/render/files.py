"""A file is written whole or not at all: beside its place first, then moved there."""

import os
import tempfile
from pathlib import Path

from mmattn.errors import OutputError


def write_whole(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, making the folder, and return the path; on failure nothing is left behind."""
    beside: str | None = None
    try:
        target = Path(os.path.realpath(path))  # a link stays one: what it points to is written
        if target.exists() and not target.is_file():
            kind = "folder" if target.is_dir() else "device"
            raise OutputError(f"{path} is a {kind}, not a file, and is left alone. Pass the name of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, target)
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if beside is not None and os.path.exists(beside):
            os.unlink(beside)
        why = getattr(error, "strerror", None) or error
        raise OutputError(
            f"Cannot write {path}: {why}. The folder must exist or be one that can be made, and "
            "be writable. Choose another place with path= or -o."
        ) from error
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Which pictures a command line means: files, folders and patterns, in a stable order."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmattn.errors import InputError, MmattnError

SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        *("avif", "heic", "heif", "jp2", "tga", "qoi"),
    )
)


def list_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Return the picture files that `paths` mean, each once, in the order given.

    A file is taken as it is, whatever its suffix. A folder gives the pictures in it (not in its
    subfolders, and no hidden ones), a pattern such as `photos/**/*.jpg` the pictures that it matches,
    both sorted.

    Raises
    ------
    InputError
        An empty path, one that may not be read, nothing there, or no picture in any of them;
        the message says what was searched.

    Examples
    --------
    >>> list_photos(["no/such.jpg"])
    Traceback (most recent call last):
    mmattn.errors.InputError: There is no file or folder 'no/such.jpg'. Check the path.

    """
    found = dict.fromkeys(photo for path in paths for photo in _photos(path))
    if not found:
        raise InputError("No picture was named. Pass image files, a folder, or a pattern such as 'photos/*.jpg'.")
    return list(found)


def _photos(given: str | Path) -> list[Path]:
    if given == "":
        raise InputError("An empty path names no picture. Pass image files, a folder ('.' for this one), or a pattern.")
    try:
        return _listed(Path(os.path.expanduser(given)))
    except MmattnError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL
        why = getattr(error, "strerror", None) or error
        named = str(given) if len(str(given)) <= 200 else f"{str(given)[:100]}...{str(given)[-60:]}"
        raise InputError(
            f"'{named}' cannot be looked at: {why}. Pictures are files that may be read. Check the path and its "
            "permissions."
        ) from error


def _listed(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        shown = (entry for entry in path.iterdir() if not entry.name.startswith("."))
        return _pictures(shown, searched=f"The folder '{path}'")
    if any(sign in str(path) for sign in "*?["):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        return _pictures(matches, searched=f"The pattern '{path}'")
    raise InputError(f"There is no file or folder '{path}'. Check the path.")


def _pictures(candidates: Iterable[Path], *, searched: str) -> list[Path]:
    files = sorted(path for path in candidates if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise InputError(
            f"{searched} has no picture: {len(files)} file(s), none with a suffix such as .jpg, .png, .webp or .tif. "
            "Pass another folder or pattern, or name the files."
        )
    return pictures

"""Where results go: one file for one input, a folder for several; never over an input, never two into one."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmattn.cli.options import is_folder
from mmattn.errors import InputError, OutputError

SUFFIXES = ("png", "jpg", "jpeg", "webp", "svg", "pdf", "html", "htm")


def plan(inputs: Sequence[Path], *, out: str, suffix: str) -> tuple[list[Path], list[str]]:
    """Return one output a input, and a sentence for each name that had to be changed.

    Parameters
    ----------
    inputs
        The files that are read.
    out
        As the user gave it.
    suffix
        Of files in a folder, without the dot; a file's own suffix counts otherwise.

    Raises
    ------
    InputError
        Several inputs for one file, a suffix that is not known, or an output that is an input.
    OutputError
        A place where nothing can be written.

    Examples
    --------
    >>> plan([Path("a/cat.jpg"), Path("b/cat.png")], out="out", suffix="png")[0]
    [PosixPath('out/cat.png'), PosixPath('out/cat-2.png')]

    """
    target = place_of(out, option="-o")
    into_folder = is_folder(target, text=out)
    check_writable(target, wants="folder" if into_folder else "file", option="-o")
    if into_folder:
        return _in_folder(inputs, folder=target, suffix=suffix)
    if len(inputs) > 1:
        raise InputError(
            f"{len(inputs)} pictures cannot go into one file, '{out}'. Several pictures go into a folder, one file "
            f"each. Pass -o {target.stem or 'out'}/."
        )
    if target.suffix.lower().removeprefix(".") not in SUFFIXES:
        raise InputError(
            f"'{out}' has the suffix {target.suffix}, which says no format. Formats are "
            f"{', '.join(f'.{known}' for known in SUFFIXES)}. Pass -o {target.stem}.png, or a folder."
        )
    if _key(target) == _key(inputs[0]):
        raise InputError(f"-o '{out}' is the picture itself, which is never written over. Pass another name.")
    return [target], []


def check_json(text: str, *, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Check that numbers can be written to a file which is neither read nor drawn, before any work is done.

    Raises
    ------
    InputError
        The file is an input or a picture that will be written, also by another name or through a link.
    OutputError
        It is a folder, or a place where nothing can be written.

    """
    target = place_of(text, option="--json")
    check_writable(target, wants="folder" if text.endswith(("/", os.sep)) else "file", option="--json")
    if target.is_dir() or text.endswith(("/", os.sep)):
        raise OutputError(
            f"--json '{text}' is a folder, and the numbers of all pictures go into one file. "
            f"Pass --json {target / 'numbers.json'}."
        )
    for others, what in ((inputs, "is a file that is read"), (outputs, "is a picture that -o writes")):
        if _key(target) in {_key(path) for path in others}:
            raise InputError(f"--json '{text}' {what}, and would be written over. Pass another name.")


def place_of(text: str, *, option: str) -> Path:
    """Return the path that an option names, `~` being the user's home; InputError for an empty one."""
    if not text:
        raise InputError(f"{option} is empty. It names a place to write to. Pass a path.")
    return Path(os.path.expanduser(text))


def check_writable(target: Path, *, wants: Literal["file", "folder"], option: str) -> None:
    """Raise OutputError where nothing can be written, before any work is done; creates nothing."""
    try:
        wrong = _wrong(target, wants=wants)
    except (OSError, ValueError) as error:  # no permission to look, a loop of links, a name too long, a NUL
        wrong = str(getattr(error, "strerror", None) or error)
    if wrong:
        raise OutputError(
            f"Nothing can be written to '{_short(target)}': {wrong}. An output is a new file, or a folder that is "
            f"there or can be made. Choose another place with {option}."
        )


def _wrong(target: Path, *, wants: Literal["file", "folder"]) -> str:
    """Return what keeps a place from being written, or an empty text."""
    nearest = target
    while (kind := _kind(nearest)) is None and nearest != nearest.parent:
        nearest = nearest.parent
    if kind in ("file", "device") and (nearest != target or wants == "folder"):
        return f"{nearest} is a {kind}, not a folder"
    if kind == "device":
        return f"{nearest} is a device, not a file"
    return "" if os.access(nearest, os.W_OK) else f"{nearest} is not writable"


def _kind(path: Path) -> str | None:
    """Return `file`, `folder` or `device` (also a pipe or socket), or None where nothing is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def _in_folder(inputs: Sequence[Path], *, folder: Path, suffix: str) -> tuple[list[Path], list[str]]:
    taken = {_key(path) for path in inputs}
    outputs, said = [], []
    for path in inputs:
        wished = folder / f"{path.stem}.{suffix}"
        output, count = wished, 1
        while _key(output) in taken:
            count += 1
            output = folder / f"{path.stem}-{count}.{suffix}"
        if output != wished:
            said.append(f"{wished.name} is taken, so {path} becomes {output}")
        taken.add(_key(output))
        outputs.append(output)
    return outputs, said


def _key(path: Path) -> str:
    """Return what two names of one file share, also where file systems ignore case."""
    return os.path.realpath(path).casefold()

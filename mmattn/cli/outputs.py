"""Where results go: one file for one input, a folder for several; never over an input, never two into one."""

import os
from collections.abc import Sequence
from pathlib import Path

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
    target = Path(out).expanduser()
    check_writable(target)
    if is_folder(target, text=out):
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


def check_writable(target: Path) -> None:
    """Raise OutputError where nothing can be written, before any work is done; creates nothing."""
    nearest = target
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    wrong = (
        f"{nearest} is a file, not a folder"
        if not nearest.is_dir() and nearest != target
        else f"{nearest} is not writable"
        if not os.access(nearest, os.W_OK)
        else ""
    )
    if wrong:
        raise OutputError(
            f"Nothing can be written to '{target}': {wrong}. An output is a new file, or a folder that is there or can "
            "be made. Choose another place with -o."
        )


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
    return str(path.resolve()).casefold()

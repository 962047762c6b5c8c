"""The Hugging Face hub, asked shortly: at once an error where it cannot be reached, and no bars of its own."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from mmattn.errors import MmattnError

_Loaded = TypeVar("_Loaded")


def check_reachable() -> None:
    """Fail at once where the hub's name does not resolve: its client retries for half a minute.

    Raises
    ------
    OSError
        There is no way to the hub.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if host and not getproxies():
        socket.getaddrinfo(host, 443)  # socket.gaierror is an OSError


def local_or_hub(
    where: str,
    load: Callable[[str, bool], _Loaded],
    *,
    unreadable: Callable[[str, Exception], MmattnError],
    unreachable: Callable[[str, Exception], MmattnError],
) -> _Loaded:
    """Return what `load(where, local)` gives: from this machine, else from the hub.

    Parameters
    ----------
    unreadable
        Makes the error for a folder that is there and cannot be opened.
    unreachable
        Makes the error for a name that is no folder and that the hub does not give.

    Raises
    ------
    MmattnError
        One of these two, or what `load` itself says.
    """
    try:
        return load(where, True)
    except MmattnError:
        raise
    except Exception as problem:  # files from outside: their readers raise nearly anything
        if Path(where).exists():
            raise unreadable(where, problem) from problem
    try:
        check_reachable()
        return load(where, False)
    except MmattnError:
        raise
    except Exception as problem:
        raise unreachable(where, problem) from problem


def address(name: str, *, weights: Path | None) -> str:
    """Return what a library is asked to open: the catalog's weights, a folder that is there, or a name on the hub."""
    folder = Path(name).expanduser() if weights is None else weights
    return str(folder) if weights is not None or folder.exists() else name


@contextmanager
def no_bar() -> Iterator[None]:
    """Leave out the bar over tensors that are read in a moment (transformers 5 shows one)."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def said(problem: Exception) -> str:
    """Return the first line of another library's error, for a sentence of our own.

    Examples
    --------
    >>> said(OSError("It is not there."))
    'It is not there'
    """
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
    return lines[0].rstrip(".:")[:300]

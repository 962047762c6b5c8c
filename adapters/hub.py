"""The Hugging Face hub, asked shortly: at once an error where it cannot be reached, and no bars of its own."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


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

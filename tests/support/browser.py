"""A real browser for pages; where there is none, those tests skip in one line."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=8000"
)


def chromium() -> str:
    """Return the browser's path, or skip."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium: pages are not opened")
    return found


def opened(page: Path, *, folder: Path, ask: str, size: tuple[int, int] = (1280, 900)) -> subprocess.CompletedProcess:
    """Open a page headless in a profile of its own; `ask` is `--dump-dom` or `--screenshot=FILE`."""
    command = [
        *(chromium(), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}"),
        *(f"--window-size={size[0]},{size[1]}", "--enable-logging=stderr", "--v=0", ask, page.resolve().as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

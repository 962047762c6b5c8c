"""Who took the bundled photographs and on what terms, read from the table in `assets/SOURCES.md`."""

import importlib.resources
import re
from dataclasses import dataclass
from functools import cache

_ROW = re.compile(r"^\| `(?P<file>[^`|]+)` \| (?P<what>[^|]+) \| (?P<author>[^|]+) \| (?P<license>[^|]+) \|")
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<url>https?://[^)\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Credit:
    """One photograph: its file name, what it shows, author, licence and where that is written."""

    file: str
    what: str
    author: str
    license: str
    url: str | None


@cache
def credits() -> tuple[Credit, ...]:
    """Return a credit for each bundled photograph.

    Examples
    --------
    >>> [credit.author for credit in credits() if credit.file == "astronaut.jpg"]
    ['NASA']

    """
    text = importlib.resources.files("mmattn.assets").joinpath("SOURCES.md").read_text(encoding="utf-8")
    table = text.partition("## Photographs")[2].partition("\n## ")[0]
    return tuple(_credit(found) for found in map(_ROW.match, table.splitlines()) if found)


def _credit(row: re.Match[str]) -> Credit:
    link = _LINK.search(row["license"])
    return Credit(
        file=row["file"],
        what=row["what"].strip(),
        author=row["author"].strip(),
        license=_LINK.sub(lambda found: found["text"], row["license"]).strip(),
        url=link["url"] if link else None,
    )

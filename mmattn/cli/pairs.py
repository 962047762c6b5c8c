"""Pairs of a picture and a text, from a table: a CSV file from outside is hostile until parsed."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mmattn.errors import FormatError, InputError

COLUMNS = ("image", "text")

_MOST_BYTES = 16 << 20
_MOST_LETTERS = 10_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A picture, and the texts that it is held against."""

    image: Path
    texts: tuple[str, ...]


def read_pairs(path: Path) -> list[Asked]:
    """Return the pictures of a table with their texts; rows of the same picture that follow each other are one.

    Parameters
    ----------
    path
        A CSV file in UTF-8 whose first line names the columns `image` and `text`, others beside them. Paths are
        taken from the table's own folder.

    Raises
    ------
    InputError
        It is not there, has no rows, or a row has no picture or no text.
    FormatError
        It is no such table, or a line has more columns than the first.

    """
    rows = list(_rows(path))
    if not rows:
        raise InputError(
            f"'{path.name}' has no pairs below its first line. Each line is a picture and a text. Add some."
        )
    found = groupby(rows, key=lambda row: path.parent / os.path.expanduser(row[0]))
    return [Asked(image=image, texts=tuple(text for _, text in group)) for image, group in found]


def _rows(path: Path) -> Iterable[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = tuple(name.strip() for name in reader.fieldnames or ())
        if any(columns.count(name) != 1 for name in COLUMNS):
            raise FormatError(
                f"'{path.name}' has the columns {', '.join(columns)[:200] or 'none'}. A table of pairs has one column "
                "image and one column text, with commas between columns. Name them in its first line."
            )
        reader.fieldnames = columns
        for row in reader:
            if None in row:
                raise FormatError(
                    f"Line {reader.line_num} of '{path.name}' has more columns than the {len(columns)} of the first "
                    "line. A text with commas stands in double quotes. Put them around it."
                )
            image, text = ((row[column] or "").strip() for column in COLUMNS)
            yield _checked(path, reader.line_num, image, text)
    except csv.Error as problem:
        raise FormatError(
            f"'{path.name}' is no table at line {reader.line_num}: {problem}. It is a CSV file with the columns image "
            "and text. Put texts with commas or quotes into double quotes."
        ) from None


def _checked(path: Path, line: int, image: str, text: str) -> tuple[str, str]:
    if not image or not text or len(text) > _MOST_LETTERS:
        what = "no picture" if not image else "no text" if not text else f"a text of {len(text):,} letters"
        raise InputError(
            f"Line {line} of '{path.name}' has {what}. It has a picture and a text of up to {_MOST_LETTERS:,} letters. "
            "Correct or remove it."
        )
    return image, text


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise FormatError(
                f"'{path.name}' has {size / 2**20:.0f} MiB, and a table of pairs has up to {_MOST_BYTES >> 20}. "
                "Split it."
            )
        data = path.read_bytes()
        if b"\0" in data:
            raise FormatError(f"'{path.name}' is no text in UTF-8. A table of pairs is. Save it as UTF-8.")
        return data.decode("utf-8-sig")
    except OSError as problem:
        raise InputError(
            f"'{path}' cannot be read: {problem.strerror or problem}. --pairs names a CSV file. Check the path."
        ) from problem
    except UnicodeDecodeError:
        raise FormatError(f"'{path.name}' is no text in UTF-8. A table of pairs is. Save it as UTF-8.") from None

"""Letters: which font has a character, how wide a text is, where it breaks.

DejaVu Sans comes with matplotlib and covers Latin, Greek, Cyrillic, Arabic, Hebrew and mathematics;
for the rest (Chinese, Japanese, Korean, ...) the fonts of the system are tried in turn. Both
writers use the same fonts, so that a figure breaks its lines where the raster does.
"""

import importlib.util
import re
import sys
import unicodedata
import warnings
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

ELLIPSIS = "…"

_FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts",),
}
_WIDE = (
    "NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "SourceHanSans-Regular", "DroidSansFallbackFull",
    "DroidSansFallback", "wqy-microhei", "wqy-zenhei", "PingFang", "Hiragino Sans GB", "AppleSDGothicNeo",
    "msyh", "YuGothR", "malgun", "NotoSansDevanagari-Regular", "NotoSansThai-Regular", "Arial Unicode",
    "unifont", "Symbola", "seguiemj",
)  # fmt: skip


@lru_cache(maxsize=2)
def files(bold: bool = False) -> tuple[Path, ...]:
    """Return the font files to try for a character, in order: DejaVu Sans, then wide ones of the system."""
    spec = importlib.util.find_spec("matplotlib")
    found: list[Path] = []
    if spec is not None and spec.submodule_search_locations:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        found.append(Path(next(iter(spec.submodule_search_locations))) / "mpl-data" / "fonts" / "ttf" / name)
    by_stem: dict[str, Path] = {}
    for folder in _FOLDERS.get(sys.platform, ()):
        for path in sorted(Path(folder).expanduser().rglob("*.[to]t[fc]")):
            by_stem.setdefault(path.stem.lower(), path)
    found += [by_stem[stem.lower()] for stem in _WIDE if stem.lower() in by_stem]
    return tuple(path for path in found if path.is_file())


@lru_cache(maxsize=64)
def fonts(size_px: int, bold: bool = False, shaped: bool = False) -> tuple["FreeTypeFont", ...]:
    """Return the fonts of one size, the first being the usual one; Pillow's own if no other is there.

    `shaped` lets Pillow join letters and set them from right to left, which it does through libraqm.
    """
    from PIL import ImageFont

    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    opened = tuple(ImageFont.truetype(str(path), size_px, layout_engine=engine) for path in files(bold))
    if opened:
        return opened
    default = ImageFont.load_default(size_px)
    return (default,) if isinstance(default, ImageFont.FreeTypeFont) else ()


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Return the text without control and direction characters, lone surrogates and runs of blanks."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


def drawable(text: str) -> bool:
    """Say whether the fonts here have every character of a text, and its letters can be joined and ordered."""
    if text.isascii():
        return True
    found = all(c.isascii() or _found(c, False) is not None for c in clean(text))
    return found and (raqm() or not _joined(text))


def runs(text: str, *, size_px: int, bold: bool = False) -> list[tuple[str, "FreeTypeFont"]]:
    """Return the text in pieces, each with the first font that has its characters."""
    shaped = _joined(text)
    if shaped and not raqm():
        _warn_of_order()
    available = fonts(size_px, bold, shaped and raqm())
    pieces = groupby(text, key=lambda character: _font_for(character, bold))
    return [("".join(group), available[index]) for index, group in pieces]


@lru_cache(maxsize=4096)
def width(text: str, *, size_px: int, bold: bool = False) -> float:
    """Return how wide a text is in pixels."""
    return float(sum(font.getlength(piece) for piece, font in runs(text, size_px=size_px, bold=bold)))


def wrap(text: str, *, size_px: int, width_px: float, bold: bool = False, most: int = 12) -> list[str]:
    """Return the text in lines no wider than `width_px`; the last of `most` lines ends in an ellipsis.

    Breaks at blanks, and inside a word only where the word alone is too long (or has no blanks, as
    in Chinese).
    """
    lines: list[str] = []
    line = ""
    # A dot between parts of a caption stays with the part before it.
    for word in re.findall(r"\S+(?: ·(?= ))?", clean(text)[:4000]):
        joined = f"{line} {word}" if line else word
        if width(joined, size_px=size_px, bold=bold) <= width_px:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _broken(word, size_px=size_px, width_px=width_px, bold=bold)
        lines += full
    lines += [line] if line else []
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + ELLIPSIS]


def _broken(word: str, *, size_px: int, width_px: float, bold: bool) -> list[str]:
    pieces, piece = [], ""
    for character in word:
        if piece and width(piece + character, size_px=size_px, bold=bold) > width_px:
            pieces.append(piece)
            piece = ""
        piece += character
    return [*pieces, piece]


@lru_cache(maxsize=8192)
def _font_for(character: str, bold: bool) -> int:
    """Return the first font that draws the character otherwise than as its box for a missing one."""
    if character.isascii():
        return 0
    found = _found(character, bold)
    if found is not None:
        return found
    warnings.warn(
        f"No font here has the character {character!r}: it is drawn as an empty box. "
        "Install a font that has it, such as Noto Sans CJK, or save as .svg, where it stays text.",
        stacklevel=2,
    )
    return 0


@lru_cache(maxsize=8192)
def _found(character: str, bold: bool) -> int | None:
    for index, font in enumerate(fonts(16, bold)):
        if bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff")):
            return index
    return None


@lru_cache(maxsize=1)
def raqm() -> bool:
    """Say whether Pillow can join letters and order them from right to left."""
    from PIL import features

    return bool(features.check("raqm")) and bool(features.check("fribidi"))


def _joined(text: str) -> bool:
    """Say whether some letters run from right to left or change with their neighbors."""
    return not text.isascii() and any(
        unicodedata.bidirectional(c) in ("R", "AL") or "\u0900" <= c <= "\u109f" or "\u1780" <= c <= "\u17ff"
        for c in text
    )


@lru_cache(maxsize=1)
def _warn_of_order() -> None:
    warnings.warn(
        "This Pillow has no libraqm: letters from right to left, and those that join, are drawn in the wrong order. "
        "Install the wheel of Pillow and fribidi, or save as .svg, where they stay text.",
        stacklevel=2,
    )

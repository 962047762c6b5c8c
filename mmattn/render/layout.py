"""Where everything stands: rectangles of panels, legends and lines of text, in output pixels.

Both writers paint from one layout, so a figure looks like the raster. The order from the top:
title, column labels, rows of panels (each with its own title, legend and caption), shared legend,
caption. Text grows slowly with the picture: 11 px at 300 px, about 24 px at 1080p, 40 px at 4K.
"""

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from mmattn.errors import InputError
from mmattn.render import color, fonts
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.marks import Anchor, Color, ColorBar, Key, Labels

INK: Color = (28, 28, 32)
SOFT: Color = (96, 96, 104)

_LEAST_EM = 11
_LEAST_PX = 240
_MOST_PX = 4096  # width of several panels together, unless asked
_LIMIT_PX = 200_000_000

Rect: TypeAlias = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True, kw_only=True)
class Text:
    """One line: x is its left, middle or right; y the middle of its height."""

    x: float
    y: float
    text: str
    size_px: int
    color: Color = INK
    anchor: Anchor = "left"
    bold: bool = False
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The colored bar itself, and where its ticks are."""

    rect: Rect
    bar: ColorBar
    ticks_x: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """The small sample beside a word of the legend."""

    rect: Rect
    key: Key


Piece: TypeAlias = Text | Strip | Swatch


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The finished arrangement.

    Parameters
    ----------
    width_px, height_px
        Of the whole picture.
    em_px
        Height of the text; marks are drawn for 14.
    panels
        One rectangle a panel, in their order.
    """

    width_px: int
    height_px: int
    em_px: int
    panels: tuple[Rect, ...]
    pieces: tuple[Piece, ...]


def natural_width(drawing: Drawing) -> int:
    """Return the width at which a single photo keeps its own pixels, or a sheet its tiles."""
    height = _natural_height(drawing)
    wide = height * sum(_column_aspects(drawing))
    if len(drawing.panels) > 1:
        wide = min(wide, _MOST_PX)
    total = round(wide)
    for _ in range(3):  # the margins make the whole wider, and so its text and its margins
        total = round(wide) + _sides(drawing, _em(drawing, total))
    return max(total, 22 * _LEAST_EM)


def arrange(drawing: Drawing, *, width_px: int | None = None) -> Layout:
    """Return the layout of a drawing for a width of the whole picture.

    Raises
    ------
    InputError
        For a width under 64 px, or a picture of more than 200 million pixels.
    """
    if width_px is not None and width_px < 64:
        raise InputError(f"width_px={width_px} is too small to draw on. It is at least 64. Pass a larger width.")
    builder = _Builder(drawing, width_px)
    layout = builder.build()
    if layout.width_px * layout.height_px > _LIMIT_PX:
        raise InputError(
            f"The drawing would be {layout.width_px} x {layout.height_px} px. At most {_LIMIT_PX // 10**6} million "
            "pixels are drawn. Pass a smaller width_px."
        )
    return layout


@dataclass
class _Builder:
    """Runs down the page once, collecting rectangles; `y` is how far it has come."""

    drawing: Drawing
    width_px: int | None
    pieces: list[Piece] = field(default_factory=list)
    rects: list[Rect] = field(default_factory=list)
    y: int = 0

    def build(self) -> Layout:
        drawing = self.drawing
        natural = natural_width(drawing)
        self.total = self.width_px or natural
        self.em = _em(drawing, self.total)
        self.margin = _margin(self.em)
        self.gap = _gap(drawing, self.em)
        self.left = self.margin + _label_width(drawing, self.em)
        inner = self.total - _sides(drawing, self.em)
        aspects = _column_aspects(drawing)
        self.tall = max(1.0, inner / sum(aspects))
        if self.width_px is None:  # nothing grows to fill a page that is wide only for its text
            self.tall = min(self.tall, _natural_height(drawing))
        self.wide = [max(1, round(self.tall * aspect)) for aspect in aspects]
        self.y = self.margin
        self.text_width = self.total - 2 * self.margin
        self._lines(drawing.title, bold=True, size=round(1.2 * self.em), after=0.5)
        self._column_labels()
        for row in range(drawing.rows):
            self._row(row)
        self.y += 0 if drawing.tight else -self.gap
        self.y += self.em // 2 if drawing.tight and (drawing.bar or drawing.keys) else 0
        self._legend(drawing.bar, drawing.keys, x=self.margin, width=self.text_width)
        if drawing.caption:
            self.y += round(0.5 * self.em)
        self._lines(drawing.caption, size=self._small, ink=SOFT, most=12)
        return Layout(
            width_px=self.total,
            height_px=self.y + self.margin,
            em_px=self.em,
            panels=tuple(self.rects),
            pieces=tuple(self.pieces),
        )

    @property
    def _small(self) -> int:
        return max(10, round(0.88 * self.em))

    def _lines(
        self,
        text: str,
        *,
        size: int,
        ink: Color = INK,
        bold: bool = False,
        after: float = 0.0,
        x: int | None = None,
        width: int | None = None,
        most: int = 4,
    ) -> None:
        step = round(1.35 * size)
        room = self.text_width if width is None else width
        for line in fonts.wrap(text, size_px=size, width_px=room, bold=bold, most=most):
            at = self.margin if x is None else x
            self.pieces.append(Text(x=at, y=self.y + step / 2, text=line, size_px=size, color=ink, bold=bold))
            self.y += step
        if text:
            self.y += round(after * self.em)

    def _column_labels(self) -> None:
        labels = self.drawing.col_labels
        if not labels:
            return
        x = self.left
        for label, wide in zip(labels, self.wide, strict=True):
            text = _fitted(label, self._small, wide + self.gap)
            self.pieces.append(
                Text(
                    x=x + wide / 2,
                    y=self.y + 0.7 * self.em,
                    text=text,
                    size_px=self._small,
                    color=SOFT,
                    anchor="center",
                )
            )
            x += wide + self.gap
        self.y += round(1.5 * self.em)

    def _row(self, row: int) -> None:
        cols = self.drawing.cols
        panels = self.drawing.panels[row * cols : (row + 1) * cols]
        self._side_by_side([panel.title for panel in panels], size=self.em, bold=True, ink=INK)
        top, x, deepest = self.y, self.left, 0
        for panel, wide in zip(panels, self.wide, strict=False):
            # The column fits its widest panel; the others keep the height of the row and are narrower.
            high = max(1, round(self.tall))
            across = max(1, min(wide, round(self.tall * panel.aspect)))
            self.rects.append((x, top, across, high))
            deepest = max(deepest, high)
            x += wide + self.gap
        if self.drawing.row_labels:
            text = _fitted(self.drawing.row_labels[row], self._small, _label_width(self.drawing, self.em))
            at = self.left - round(0.5 * self.em)
            self.pieces.append(
                Text(x=at, y=top + deepest / 2, text=text, size_px=self._small, color=SOFT, anchor="right")
            )
        self.y = top + deepest
        self._below(panels)
        self.y += self.gap

    def _below(self, panels: tuple[Panel, ...]) -> None:
        """Each panel's own legend and caption, in its column."""
        top, x, deepest = self.y, self.left, self.y
        for panel, wide in zip(panels, self.wide, strict=False):
            self.y = top
            room = self.text_width if self.drawing.cols == 1 else wide
            if panel.bar or panel.keys:
                self.y += round(0.5 * self.em)
            self._legend(panel.bar, panel.keys, x=x, width=room)
            if panel.caption:
                self.y += round(0.4 * self.em)
            self._lines(panel.caption, size=self._small, ink=SOFT, x=x, width=room, most=12)
            deepest = max(deepest, self.y)
            x += wide + self.gap
        self.y = deepest

    def _side_by_side(self, texts: list[str], *, size: int, bold: bool, ink: Color) -> None:
        """Texts over the columns, their last lines level with one another."""
        if not any(texts):
            return
        step = round(1.35 * size)
        broken = [
            fonts.wrap(text, size_px=size, width_px=wide if len(self.wide) > 1 else self.text_width, bold=bold, most=3)
            for text, wide in zip(texts, self.wide, strict=False)
        ]
        most = max(len(lines) for lines in broken)
        x = self.left
        for lines, wide in zip(broken, self.wide, strict=False):
            for index, line in enumerate(lines):
                y = self.y + (most - len(lines) + index + 0.5) * step
                self.pieces.append(Text(x=x, y=y, text=line, size_px=size, color=ink, bold=bold))
            x += wide + self.gap
        self.y += most * step + round(0.25 * self.em)

    def _legend(self, bar: ColorBar | None, keys: tuple[Key, ...], *, x: int, width: int) -> None:
        """The color bar, then swatches beside it, or under it where there is no room."""
        if bar is None and not keys:
            return
        size, step = self._small, round(1.6 * self.em)
        needs = [2 * self.em + round(fonts.width(fonts.clean(key.word), size_px=size)) for key in keys]
        top, left, bottom = self.y, x, self.y
        if bar is not None:
            length = self._bar_length(bar, width)
            bottom = self._bar(bar, x=x, length=length)
            beside = x + length + 2 * self.em
            fits = bool(needs) and beside + max(needs) <= x + width
            left, top = (beside, top) if fits else (x, bottom + self.em // 3)
        at, y = left, top
        for key, need in zip(keys, needs, strict=True):
            if at > left and at + need > x + width:
                at, y = left, y + step
            lines = self._key(key, x=at, y=y, width=x + width - at)
            y += (lines - 1) * round(1.2 * size)
            at += need + round(1.2 * self.em)
        self.y = max(bottom, y + step if keys else bottom)

    def _key(self, key: Key, *, x: int, y: int, width: int) -> int:
        """A swatch and its word, in several lines where it must; returns how many."""
        size = self._small
        rect = (x, y + round(0.3 * self.em), round(1.4 * self.em), self.em)
        self.pieces.append(Swatch(rect=rect, key=key))
        lines = fonts.wrap(key.word, size_px=size, width_px=width - 1.9 * self.em, most=3)
        for index, line in enumerate(lines):
            at = y + 0.8 * self.em + index * round(1.2 * size)
            self.pieces.append(Text(x=x + 1.9 * self.em, y=at, text=line, size_px=size, color=SOFT))
        return max(1, len(lines))

    def _bar_length(self, bar: ColorBar, width: int) -> int:
        """Room for the words over it and the numbers under it, and less than half of a wide picture."""
        words = fonts.width(_bar_words(bar), size_px=self._small) + 2
        return round(min(width, max(18 * self.em, 0.36 * width, words)))

    def _bar(self, bar: ColorBar, *, x: int, length: int) -> int:
        """The unit over the strip, numbers under it; returns where it ends."""
        size, scale = self._small, bar.scale
        label = _fitted(_bar_words(bar), size, length)
        self.pieces.append(Text(x=x, y=self.y + 0.7 * size, text=label, size_px=size, color=SOFT))
        y = self.y + round(1.6 * size)
        high = max(6, round(0.7 * self.em))
        at = [x + length * (value - scale.vmin) / (scale.vmax - scale.vmin) for value, _ in bar.ticks]
        self.pieces.append(Strip(rect=(x, y, length, high), bar=bar, ticks_x=tuple(at)))
        middle = scale.center if scale.kind == "diverging" else (scale.vmin + scale.vmax) / 2
        numbers: list[tuple[float, float, Anchor]] = [
            (x, scale.vmin, "left"),
            (x + length / 2, middle, "center"),
            (x + length, scale.vmax, "right"),
        ]
        words = [color.number(value, span=scale.vmax - scale.vmin) for _, value, _ in numbers]
        wide = [fonts.width(word, size_px=size) + size / 2 for word in words]
        # The middle number goes first where there is no room for three.
        kept = (0, 1, 2) if 2 * max(wide[0], wide[2]) + wide[1] <= length else (0, 2)
        for index in kept:
            at_x, _, anchor = numbers[index]
            line = y + high + 0.8 * size
            self.pieces.append(Text(x=at_x, y=line, text=words[index], size_px=size, color=SOFT, anchor=anchor))
        return y + high + round(1.5 * size)


def _bar_words(bar: ColorBar) -> str:
    words = [f"{word} = {color.number(value)}" for value, word in bar.ticks]
    return " · ".join([bar.label, *words] if bar.label else words)


def _natural_height(drawing: Drawing) -> float:
    """The tallest panel in its own pixels; a single tiny one is enlarged by a whole number."""
    height = max(panel.natural_px[1] for panel in drawing.panels)
    if len(drawing.panels) > 1:
        return height
    return height * max(1, math.ceil(_LEAST_PX / max(drawing.panels[0].natural_px)))


def _em(drawing: Drawing, width: float) -> int:
    """The height of the text: by the size of the picture, and in a sheet by that of its tiles too."""
    high = _grid_height(drawing, width)
    most = min(width / 16, high / drawing.rows / 5 if drawing.tight else math.inf)
    return max(_LEAST_EM, round(min(max(0.0118 * math.sqrt(width * high) + 7, _beside_words(drawing, high)), most)))


def _beside_words(drawing: Drawing, high: float) -> float:
    """Text that does not look lost under words that grow with their panel."""
    sizes = [
        mark.size_px / (panel.space[3] - panel.space[1])
        for panel in drawing.panels
        for mark in panel.marks
        if isinstance(mark, Labels) and mark.scaled
    ]
    return 0.36 * high / drawing.rows * max(sizes, default=0.0)


def _margin(em: int) -> int:
    return em


def _gap(drawing: Drawing, em: int) -> int:
    return max(2, em // 5) if drawing.tight else round(1.2 * em)


def _sides(drawing: Drawing, em: int) -> int:
    return 2 * _margin(em) + _label_width(drawing, em) + (drawing.cols - 1) * _gap(drawing, em)


def _label_width(drawing: Drawing, em: int) -> int:
    if not drawing.row_labels:
        return 0
    size = max(10, round(0.88 * em))
    widest = max(fonts.width(fonts.clean(label), size_px=size) for label in drawing.row_labels)
    return round(min(widest, 10 * em) + 0.5 * em)


def _column_aspects(drawing: Drawing) -> list[float]:
    cols = min(drawing.cols, len(drawing.panels))
    columns = [max(panel.aspect for panel in drawing.panels[col :: drawing.cols]) for col in range(cols)]
    return columns + [columns[-1]] * (drawing.cols - cols)


def _grid_height(drawing: Drawing, width: float) -> float:
    return width / sum(_column_aspects(drawing)) * drawing.rows


def _fitted(text: str, size_px: int, width_px: float) -> str:
    lines = fonts.wrap(text, size_px=size_px, width_px=width_px, most=1)
    return lines[0] if lines else ""


def panel_affine(panel: Panel, rect: Rect) -> tuple[float, float, float, float]:
    """Return (scale x, scale y, shift x, shift y) from a panel's coordinates to output pixels."""
    x0, y0, x1, y1 = panel.space
    sx, sy = rect[2] / (x1 - x0), rect[3] / (y1 - y0)
    return sx, sy, rect[0] - sx * x0, rect[1] - sy * y0

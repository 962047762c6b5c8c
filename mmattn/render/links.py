"""Lines between the words of a text and the patches of a picture.

The picture with its grid, the words beside it, and for each word a curve to its strongest patch: width and
opacity carry the weight, the color tells the word. 20 words with 5 lines each cross 2,256 times and cover a
quarter of a picture, so the default draws one line a word; the legend says how much weight is not drawn.

A row in which no patch stands out has no strongest patch: its line is the thinnest there is, whatever the
scale, and the legend names the word.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmattn.errors import InputError
from mmattn.render import color, columns, strongest, two_heats
from mmattn.render.columns import Column
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import (
    QUERY_COLOR,
    QUERY_WORD,
    SATURATION,
    SEPARATOR,
    UNITS,
    describe,
    picture,
    unseen,
)
from mmattn.render.marks import (
    Boxes,
    Color,
    ColorBar,
    Dots,
    Fills,
    Key,
    Labels,
    Mark,
    Paint,
    Scale,
    Strokes,
)
from mmattn.render.paragraph import by_number
from mmattn.render.stage import ground, staged
from mmattn.render.strongest import Link, signed
from mmattn.render.worded import Focus, WordRows, numbered_phrase, patches_at, word_rows
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

if TYPE_CHECKING:
    from PIL.Image import Image

# Paul Tol's "light" scheme: told apart with every kind of color vision, and all light enough to be seen
# inside a dark rim on any photograph and to carry black letters.
COLORS: tuple[Color, ...] = (
    (119, 170, 221), (238, 136, 102), (238, 221, 136), (68, 187, 153),
    (255, 170, 187), (153, 221, 255), (170, 170, 0), (187, 204, 51),
)  # fmt: skip
SOFT: Color = (96, 96, 104)

_THIN, _THICK = 1.2, 5.5  # px, for text of 14
_FAINT = 0.35
_FOCUSED = 5  # lines of a word in focus
_RIMMED = 0.2  # strength from which an outline has its dark rim
_SIDE = 0.7  # of a word's side, over which its lines begin
_NESTED = 0.085  # of a patch, between the outlines of words that share it
_SAMPLE = COLORS[2]  # in the legend
_NAMED = 6  # words in a legend


def links(
    relevance: Relevance,
    *,
    focus: Focus = None,
    query: Sequence[float] | None = None,
    k: int | None = None,
    heat: bool = False,
    on: "Photo | Image | np.ndarray | None" = None,
    saturation: float = SATURATION,
    title: str | None = None,
    caption: str | None = None,
) -> Drawing:
    """Return the lines between the words of a text and the patches of a picture.

    Parameters
    ----------
    relevance
        Rows are tokens of a text, columns patches of a picture; shares, relevance, or signed.
    focus
        One word (or several in a row): as typed, by its number along the text, or by its characters
        (start, end). Its `k` strongest patches are linked, the other words are only named. Of signed values those
        for the word and those against it (dashed); without a focus those for it alone.
    query
        The other way round: a point (x, y) or a box (x0, y0, x1, y1) in pixels of the picture. It is linked
        with the `k` words for which it weighs most.
    k
        Lines a word: 1, or 5 for a word in focus; with `query` the number of words, 5.
    heat
        Heat on both sides under the lines: what the words in question gave to each patch, and what each word
        gave to the picture (or to the place of `query`).
    on
        Another picture to draw on, of the same aspect.
    saturation
        Share of the picture's own color that is kept, so that colors tell words.
    title, caption
        By default what is in focus, and method, model, scale and what is never drawn.

    Raises
    ------
    PlaceError
        When rows or columns have no places, or the model never saw the query.
    NotFoundError
        For a word that is not there (those that are get listed), or that stands several times.
    InputError
        For `focus` and `query` together, or a `k` under 1.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import PatchGrid, Tokens
    >>> text = Tokens.of("a dog", pieces=["a", "dog"], spans=[(0, 1), (2, 5)])
    >>> grid = PatchGrid.plain(rows=2, cols=3, patch_px=(16, 16), size_px=(96, 64))
    >>> values = torch.tensor([[0.3, 0.1, 0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 0.9, 0.0]])
    >>> one = Relevance(values=values, axis=grid, query_axis=text, labels=("a", "dog"), method="cross")
    >>> links(one).panels[0].boxes("dog")
    [(32.0, 32.0, 64.0, 64.0)]
    """
    rows = word_rows(relevance)
    relevance = rows.relevance
    photo = staged(picture(relevance, on=on), saturation=saturation)
    per = _count(k, 1 if focus is None and query is None else _FOCUSED)
    if query is None:
        asked, headline = None, _title(rows, focus)
        found, scale = strongest.of_words(rows, rows.chosen(focus), k=per, against=focus is not None)
    elif focus is None:
        columns_at, headline = patches_at(rows.grid, query)
        asked = np.searchsorted(rows.grid.cells[rows.grid.content], rows.grid.cells[columns_at])
        found, scale = strongest.of_place(rows, asked, k=per)
    else:
        raise InputError(
            f"focus={focus!r} and query={query!r} were given together. Lines begin at a word or at a place. "
            "Pass one of the two."
        )
    column = columns.beside(rows.grid.size_px, rows.labels)
    inks = _inks(found, scale, by_sign=focus is not None and signed(rows))
    under, bar = two_heats.of_picture(rows, rows.chosen(focus)) if heat else (None, None)
    chips, words_bar = two_heats.of_words(rows, asked) if heat else (None, None)
    if bar is None and focus is not None and signed(rows):
        bar = _bar(rows, scale)
    marks = [*ground(rows.grid, photo, heat=under), *_drawn(rows, column, found, inks, asked)]
    linked = [link.word for link in found]
    marks += _written(column, linked) if chips is None else _heated(column, chips, linked)
    panel = Panel(
        space=column.space,
        marks=tuple(marks),
        bar=bar,
        keys=tuple(_keys(rows, found, scale=scale, per=per, asked=asked, focus=focus)),
        background=(255, 255, 255),
    )
    parts = [describe(relevance, scale, row=None), rows.special_phrase(), numbered_phrase(rows.labels)]
    said = SEPARATOR.join(part for part in parts if part)
    return Drawing(
        panels=(panel,),
        title=headline if title is None else title,
        caption=said if caption is None else caption,
        bar=words_bar,
    )


def word_color(word: int) -> Color:
    """Return the color of a word by its number along the text: the same in every drawing of it."""
    return COLORS[word % len(COLORS)]


def _count(k: int | None, default: int) -> int:
    if k is None:
        return default
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k={k!r} is no number of lines. It is a whole number from 1. Leave it out for the default.")
    return k


def _inks(found: Sequence[Link], scale: Scale, *, by_sign: bool) -> UInt8[np.ndarray, "line 3"]:
    """Return a color for each line: its word's, or for a word in focus whose row is signed, for or against."""
    if by_sign:
        at = [0.5 + 0.5 * np.sign(link.value) * max(link.strength, 0.35) for link in found]
        chosen: np.ndarray = color.table(color.DIVERGING)[np.round(np.array(at) * 255).astype(int)].reshape(-1, 3)
        return chosen
    return np.array([word_color(link.word) for link in found], np.uint8).reshape(-1, 3)


def _drawn(
    rows: WordRows,
    column: Column,
    found: Sequence[Link],
    inks: UInt8[np.ndarray, "line 3"],
    asked: Int[np.ndarray, " patch"] | None,
) -> list[Mark]:
    """Return the outlined patches, the curves from weak to strong, and the dots in which they end."""
    places = rows.grid.places()
    if asked is None:
        boxes = places[[link.patch for link in found]].reshape(-1, 4)
        outlines = _outlines(rows, found, boxes, inks)
    else:
        whole = np.concatenate([places[asked][:, :2].min(axis=0), places[asked][:, 2:].max(axis=0)])
        boxes = np.tile(whole, (len(found), 1))
        outlines = [Boxes(boxes=whole[None], width_px=2.5, color=QUERY_COLOR, name="query")]
    if not found:
        return outlines
    ends = (boxes[:, :2] + boxes[:, 2:]) / 2
    order = np.argsort([link.strength for link in found], kind="stable")
    strength = np.array([found[i].strength for i in order])
    paths = columns.curves(_fan(column, [link.word for link in found], ends)[order], ends[order])
    lines = Strokes(
        paths=paths,
        widths_px=_THIN + (_THICK - _THIN) * strength,
        opacities=_FAINT + (1.0 - _FAINT) * strength,
        colors=inks[order],
        dashed=np.array([found[i].value < 0 for i in order]),
        name="links",
    )
    dots = [Dots(points=ends[chosen], radius_px=3.0, color=ink, name="end") for chosen, ink in _by_color(inks)]
    return [*outlines, lines, *dots]


def _fan(column: Column, words: Sequence[int], ends: Float[np.ndarray, "line 2"]) -> Float[np.ndarray, "line 2"]:
    """Return where each line begins: at the middle of its word, or several spread over its side, the highest first."""
    starts: np.ndarray = column.anchors[list(words)]
    for word in sorted(set(words)):
        lines = np.flatnonzero(np.array(words) == word)
        ranks = np.argsort(np.argsort(ends[lines, 1], kind="stable"), kind="stable")
        half = _SIDE * (column.boxes[word, 3] - column.boxes[word, 1]) / 2
        starts[lines, 1] += half * (2 * ranks / max(len(lines) - 1, 1) - (len(lines) > 1))
    return starts


def _outlines(
    rows: WordRows, found: Sequence[Link], boxes: Float[np.ndarray, "line 4"], inks: UInt8[np.ndarray, "line 3"]
) -> list[Mark]:
    """Return each link's patch outlined in its color, one inside the other where words share a patch."""
    taken: dict[int, int] = {}
    inset = np.zeros(len(found))
    for index, link in enumerate(found):
        level = min(taken.get(link.patch, 0), 4)
        taken[link.patch] = level + 1
        inset[index] = _NESTED * level * (boxes[index, 2:] - boxes[index, :2]).min()
    inner = boxes + inset[:, None] * np.array([1.0, 1.0, -1.0, -1.0])
    marks: list[Mark] = []
    for word in dict.fromkeys(link.word for link in found):
        for lines, ink in _by_color(inks, among=[index for index, link in enumerate(found) if link.word == word]):
            strong = max(found[index].strength for index in lines)
            wide, rimmed, name = 1.0 + 1.5 * strong, strong > _RIMMED, rows.labels[word]
            marks.append(Boxes(boxes=inner[lines], width_px=wide, color=ink, halo=rimmed, name=name))
    return marks


def _by_color(
    inks: UInt8[np.ndarray, "line 3"], *, among: Sequence[int] | None = None
) -> list[tuple[list[int], Color]]:
    """Return the lines of each color: a mark of one color is drawn at once."""
    found: dict[Color, list[int]] = {}
    for line in range(len(inks)) if among is None else among:
        red, green, blue = inks[line].tolist()
        found.setdefault((red, green, blue), []).append(line)
    return [(lines, ink) for ink, lines in found.items()]


def _written(column: Column, words: Sequence[int]) -> list[Mark]:
    """Return the words: those with lines on their color, the others plain."""
    active = sorted(set(words))
    rest = [index for index in range(len(column.texts)) if index not in set(active)]
    colors = np.array([word_color(index) for index in active], np.uint8).reshape(-1, 3)
    chips = Fills(boxes=column.boxes[active], colors=colors, radius=0.35 * column.type_px, name="words")
    return [chips, *(_labels(column, chosen, ink) for chosen, ink in ((active, color.BLACK), (rest, SOFT)) if chosen)]


def _heated(column: Column, inks: UInt8[np.ndarray, "word 3"], words: Sequence[int]) -> list[Mark]:
    """Return all words on the colors of their weight, and a dot of its lines' color beside each that has some."""
    white = color.reads_white(inks)
    groups = ((np.flatnonzero(~white).tolist(), color.BLACK), (np.flatnonzero(white).tolist(), color.WHITE))
    chips = Fills(boxes=column.boxes, colors=inks, radius=0.35 * column.type_px, name="words")
    dots = [
        Dots(points=column.anchors[[word]], radius_px=4.0, color=word_color(word), name="word")
        for word in sorted(set(words))
    ]
    return [chips, *dots, *(_labels(column, chosen, ink) for chosen, ink in groups if chosen)]


def _labels(column: Column, chosen: Sequence[int], ink: Color) -> Labels:
    return Labels(
        points=column.starts[list(chosen)],
        texts=tuple(column.texts[index] for index in chosen),
        instead=tuple(by_number(index) for index in chosen),
        size_px=column.type_px,
        color=ink,
        halo=False,
        anchor="left",
        scaled=True,
        name="words",
    )


def _title(rows: WordRows, focus: Focus) -> str:
    toward = rows.relevance.target
    if focus is None:
        return f"toward {toward}" if toward else ""
    return f"‘{' '.join(rows.called(word) for word in rows.chosen(focus))}’"


def _bar(rows: WordRows, scale: Scale) -> ColorBar:
    return ColorBar(scale=scale, paint=Paint(color_map=color.DIVERGING, opacity=1.0), label=UNITS[rows.relevance.unit])


def _keys(
    rows: WordRows,
    found: Sequence[Link],
    *,
    scale: Scale,
    per: int,
    asked: Int[np.ndarray, " patch"] | None,
    focus: Focus,
) -> list[Key]:
    """Return what lines, boxes and dashes mean, and how much weight no line shows."""
    most = color.number(max(abs(scale.vmax), abs(scale.vmin)))
    unit = UNITS[rows.relevance.unit]
    what = "strongest patch" if per == 1 else f"{per} strongest patches"
    whose = "each word's" if focus is None else "the word's"
    what += " for it (against: in focus)" if signed(rows) and focus is None else ""
    if asked is None:
        drawn = f"{whose} {what}; width and opacity: {unit}, 0 to {most}"
    else:
        drawn = f"the words for which it weighs most; width and opacity: {unit}, 0 to {most}"
    linked = {link.word for link in found}
    bare = [word for word in rows.chosen(focus) if word not in linked] if asked is None else []
    none = f"; none: {_named(rows, bare)} (nothing above zero)" if bare else ""
    keys = [Key(kind="strokes", word=f"{drawn}{none}; {_missing(rows, found, asked, focus)}", color=_SAMPLE)]
    if any(link.value < 0 for link in found):
        keys.append(Key(kind="dashed", word="against", color=_SAMPLE))
    if asked is not None:
        keys.append(Key(kind="box", word=QUERY_WORD, color=QUERY_COLOR))
    dull = list(dict.fromkeys(link.word for link in found if link.strength == 0.0))
    if dull:
        what = "no patch stands out" if asked is None else "no word stands out"
        keys.append(Key(kind="line", word=f"thinnest: {what} ({_named(rows, dull)})", color=_SAMPLE))
    if len(unseen(rows.grid)):
        keys.append(Key(kind="unseen", word="not seen by the model"))
    return keys


def _named(rows: WordRows, words: Sequence[int]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(rows.called(word) for word in words[:_NAMED]) + more


def _missing(rows: WordRows, found: Sequence[Link], asked: Int[np.ndarray, " patch"] | None, focus: Focus) -> str:
    """Return how much of the weight in question no line shows."""
    shown = sum(abs(link.value) for link in found)
    if asked is not None:
        whole = float(np.abs(rows.patches[:, asked].sum(axis=1)).sum())
        whose = "what the words give it"
    else:
        chosen = rows.chosen(focus)
        whole = float(np.abs(rows.values[chosen]).sum() + rows.outside[chosen].sum())
        whose = "the words' weight" if focus is None else "its weight"
    share = 100.0 * (1.0 - min(shown / whole, 1.0)) if whole > 0 else 0.0
    return f"{share:.3g} % of {whose} is not drawn"

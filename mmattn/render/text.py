"""A text with its words on colors: how much each of them mattered.

Words stand on white paper and get darker with their weight (ColorBrewer's OrRd); signed weights go to red
and to blue about zero. Letters are black or white, whichever can be read: their contrast to the color below
is at least 4.5 to 1 (WCAG 2.2, 1.4.3), since of the two one always has 4.58.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from mmattn.errors import InputError, PlaceError
from mmattn.render import color, paragraph
from mmattn.render.drawing import Drawing, Panel
from mmattn.render.image import SEPARATOR, UNITS, describe
from mmattn.render.marks import Color, ColorBar, Fills, Labels, Mark, Scale
from mmattn.render.paragraph import Paragraph
from mmattn.render.worded import columns_phrase, joined, numbered_phrase
from mmattn.schema.results import Relevance
from mmattn.schema.tokens import Span, Tokens

UNREAD: Color = (118, 118, 118)  # contrast 4.5 on white

_TYPE_PX = 22.0
_PITCH = 1.95  # of a line, in type sizes
_TALL = 1.5  # of a word's color
_OVER = 0.14  # a word's color reaches so far over its letters
_WIDEST, _NARROWEST = 40.0, 12.0  # of the lines, in type sizes
_LONGEST = 20_000  # characters


def text_overlay(
    relevance: Relevance,
    *,
    row: int = 0,
    color_map: str | None = None,
    scale: str | Scale | Sequence[Relevance] = "percentile",
    percentile: float = 99.0,
    title: str | None = None,
    caption: str | None = None,
) -> Drawing:
    """Return one row of a relevance over the words of its text.

    A word of several pieces has their weight together. Special tokens and padding are told in the caption
    with their weight; what no token holds (cut off by the model's context) is gray.

    Parameters
    ----------
    relevance
        Its columns are tokens of a text.
    row
        Which of its rows.
    color_map
        `OrRd` by default, `coolwarm` for signed values; also every other name that `overlay` knows.
    scale, percentile
        As for a picture: `"percentile"`, `"max"`, a Scale, or the relevances to compare with.
    title, caption
        By default the row's label, and method, model, scale and special tokens.

    Raises
    ------
    PlaceError
        When the columns are no tokens of a text, or no word has a token.
    InputError
        For an unknown scale, or a text of more than 20,000 characters.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import Slots
    >>> text = Tokens.of("a dog", pieces=["a", "dog"], spans=[(0, 1), (2, 5)])
    >>> one = Relevance(values=torch.tensor([[0.1, 0.9]]), axis=text, query_axis=Slots.count(1), labels=("cls",),
    ...                 method="look")
    >>> [mark.texts for mark in text_overlay(one).panels[0].marks if isinstance(mark, Labels)]
    [('a',), ('dog',)]
    """
    axis = _text_axis(relevance)
    words = axis.words()
    values = _weights(relevance, row)
    chosen = _scale(relevance, values, scale=scale, percentile=percentile)
    paint = color.paint(scale=chosen, color_map=color_map or color.paper_map(chosen), opacity=1.0)
    spans = [word.span for word in words]
    whole = sum(end - start for start, end in spans) / max(len(axis.text), 1)
    wide = float(np.clip((len(axis.text) * whole * 0.55 * 5.0) ** 0.5 * 1.6, _NARROWEST, _WIDEST))
    set_in = paragraph.typeset(axis.text, spans, most_wide=wide)
    at = np.clip((values - chosen.vmin) / (chosen.vmax - chosen.vmin), 0.0, 1.0)
    colors = color.table(paint.color_map)[np.round(at * 255).astype(int)]
    panel = Panel(
        space=(0.0, 0.0, (set_in.width + 2 * _OVER) * _TYPE_PX, set_in.lines * _PITCH * _TYPE_PX),
        marks=tuple(_marks(axis.text, set_in, spans, colors)),
        bar=ColorBar(scale=chosen, paint=paint, label=UNITS[relevance.unit]),
        background=color.WHITE,
    )
    parts = [describe(relevance, chosen, row=row), columns_phrase(relevance, row=row)]
    parts += ["gray: in no token"] if len(set_in.spans) > len(spans) else []
    parts += [numbered_phrase([word.text for word in words])]
    said = SEPARATOR.join(part for part in parts if part)
    name = f"toward {relevance.target}" if relevance.target else relevance.labels[row]
    return Drawing(
        panels=(panel,), title=name if title is None else title, caption=said if caption is None else caption
    )


def _text_axis(relevance: Relevance) -> Tokens:
    axis = relevance.axis
    if not isinstance(axis, Tokens):
        raise PlaceError(
            f"The columns of this relevance are {axis!r}: no tokens of a text. Words are drawn for columns of Tokens. "
            "Use mmattn.overlay or mmattn.draw, which choose by the axis."
        )
    if not axis.words():
        raise PlaceError(f"No word of the text {axis.text[:60]!r} has a token: {axis!r}. Pass a text with words.")
    if len(axis.text) > _LONGEST:
        raise InputError(
            f"The text has {len(axis.text)} characters. At most {_LONGEST} are drawn. Ask about a part of it."
        )
    return axis


def _weights(relevance: Relevance, row: int) -> Float[np.ndarray, " word"]:
    values = relevance.row(row).detach().cpu().double().numpy()
    return joined(values[:, None], _text_axis(relevance).words(), mean=False)[:, 0]


def _scale(relevance: Relevance, values: Float[np.ndarray, " word"], *, scale: object, percentile: float) -> Scale:
    signed = relevance.unit == "signed relevance"
    if isinstance(scale, list | tuple) and scale and all(isinstance(one, Relevance) for one in scale):
        others = [_weights(one, index) for one in scale for index in range(len(one.labels))]
        return color.shared(others, percentile=percentile, signed=signed)
    if not isinstance(scale, str | Scale):
        raise InputError(
            f"scale={scale!r:.60} is no scale. It is a word (percentile, max), a Scale, or the relevances to compare "
            "with. Pass one of those."
        )
    return color.choose(values, how=scale, percentile=percentile, signed=signed)


def _marks(text: str, set_in: Paragraph, spans: Sequence[Span], colors: UInt8[np.ndarray, "word 3"]) -> list[Mark]:
    """Return the colored words, their letters in black and in white, and what no token holds."""
    middle = (set_in.line + 0.5) * _PITCH
    left, right = _sides(set_in)
    boxes = np.stack([left, middle - _TALL / 2, right, middle + _TALL / 2], axis=1) * _TYPE_PX
    starts = np.stack([set_in.x0 + _OVER, middle], axis=1) * _TYPE_PX
    piece_of = {span: piece for piece, span in enumerate(set_in.spans)}
    held = [piece_of[span] for span in spans]
    white = color.reads_white(colors)
    groups = [
        ([piece for piece, light in zip(held, white, strict=True) if not light], color.BLACK),
        ([piece for piece, light in zip(held, white, strict=True) if light], color.WHITE),
        ([piece for piece in range(len(set_in.spans)) if piece not in set(held)], UNREAD),
    ]
    order = {piece: index for index, piece in enumerate(held)}
    labels = [
        Labels(
            points=starts[chosen],
            texts=tuple(text[slice(*set_in.spans[piece])] for piece in chosen),
            instead=tuple(paragraph.by_number(order.get(piece)) for piece in chosen),
            size_px=_TYPE_PX,
            color=ink,
            halo=False,
            anchor="left",
            scaled=True,
            name="unread" if ink is UNREAD else "words",
        )
        for chosen, ink in groups
        if chosen
    ]
    return [Fills(boxes=boxes[held], colors=colors, radius=0.22 * _TYPE_PX, name="words"), *labels]


def _sides(set_in: Paragraph) -> tuple[Float[np.ndarray, " piece"], Float[np.ndarray, " piece"]]:
    """Return where the color of each word begins and ends: over its letters, and half-way to a near neighbor."""
    left, right = set_in.x0.copy(), set_in.x1 + 2 * _OVER
    order = np.lexsort((set_in.x0, set_in.line))
    for one, other in pairwise(order.tolist()):
        if set_in.line[one] == set_in.line[other] and right[one] > left[other]:
            right[one] = left[other] = (right[one] + left[other]) / 2
    return left, right

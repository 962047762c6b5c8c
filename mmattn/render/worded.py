"""A text's side of a relevance: tokens joined to words, special tokens told apart, words found.

A word of several pieces asks as one: shares of attention are averaged over its pieces (they stay
shares), every other unit is summed (relevance is additive). As columns, what the pieces of a word
got is always summed. Special tokens and padding belong to no word: they are never drawn as content,
and their part of the weight is told.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int

from mmattn.errors import InputError, NotFoundError, PlaceError
from mmattn.render import fonts
from mmattn.render.paragraph import by_number
from mmattn.render.parts import of_picture, of_words
from mmattn.schema.axes import PatchGrid, Slots, Tokens
from mmattn.schema.results import Relevance
from mmattn.schema.tokens import Word

# A word as typed, its number along the text, or its characters [start, end).
Focus: TypeAlias = str | int | tuple[int, int] | None

_LISTED = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class WordRows:
    """What each word of a text gave to each token of a picture.

    Parameters
    ----------
    words
        Along the text.
    values
        `[word, token]`, over all tokens of the picture's axis.
    outside
        What each word's row gave to no token of the axis.
    """

    relevance: Relevance
    grid: PatchGrid
    axis: Tokens
    words: tuple[Word, ...]
    values: Float[np.ndarray, "word token"]
    outside: Float[np.ndarray, " word"]

    @property
    def patches(self) -> Float[np.ndarray, "word patch"]:
        """The columns with a place, in the order of `grid.content`."""
        return self.values[:, self.grid.content]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What each word is called: itself, with its number where another is spelled alike."""
        alike = Counter(word.text.casefold() for word in self.words)
        return tuple(
            f"{word.text} [{index}]" if alike[word.text.casefold()] > 1 else word.text
            for index, word in enumerate(self.words)
        )

    def called(self, index: int) -> str:
        """Return what a word is called in titles and legends: its label, or its number where no font has it."""
        label = self.labels[index]
        return label if fonts.drawable(label) else by_number(index)

    def total(self) -> float:
        """Return the weight of all words together, whatever its sign and wherever it went."""
        return float(np.abs(self.values).sum() + self.outside.sum())

    def special_phrase(self) -> str:
        """Return the tokens that are never drawn, with their part of the weight, or an empty text."""
        parts = []
        everything = float(self.relevance.values.detach().abs().sum()) or 1.0
        rows = self.relevance.values.detach().abs().sum(dim=1).cpu().double().numpy()
        found = [_part(role, rows[tokens].sum() / everything, len(tokens)) for role, tokens in _unworded(self.axis)]
        parts += [f"text {', '.join(found)} of all weight"] if found else []
        whole = self.total() or 1.0
        columns = np.abs(self.values).sum(axis=0)
        listed = [
            _part(role, columns[tokens].sum() / whole, len(tokens)) for role, tokens in self.grid.special().items()
        ]
        if self.outside.sum() > 0.0005 * whole:
            listed.append(_part("outside", self.outside.sum() / whole, 1))
        parts += [f"picture {', '.join(listed)} of the words' weight"] if listed else []
        return f"never drawn: {'; '.join(parts)}" if parts else ""

    def chosen(self, focus: Focus) -> list[int]:
        """Return the numbers of the words in focus; all words for None.

        Raises
        ------
        NotFoundError
            For a word, number or characters that are not there, or a word that stands several times.
        """
        if focus is None:
            return list(range(len(self.words)))
        if isinstance(focus, str):
            return self._spelled(focus)
        if isinstance(focus, int | np.integer) and not isinstance(focus, bool):
            index = int(focus)
            if not -len(self.words) <= index < len(self.words):
                raise NotFoundError(
                    f"There is no word {index}: the text has {len(self.words)} words, {self.listed()}. Pass one of "
                    "their numbers."
                )
            return [index % len(self.words)]
        return self._between(focus)

    def listed(self) -> str:
        """Return the words with their numbers, for an error."""
        said = [f"{index} {word.text!r}" for index, word in enumerate(self.words[:_LISTED])]
        return ", ".join(said) + (f", ... ({len(self.words)} in all)" if len(self.words) > _LISTED else "")

    def _spelled(self, asked: str) -> list[int]:
        hits: list[list[int]] = []
        while True:
            try:
                tokens = set(self.axis.tokens_of_word(asked, occurrence=len(hits)).tolist())
            except NotFoundError:
                break
            hits.append([i for i, word in enumerate(self.words) if tokens & set(word.tokens)])
        if not hits:
            raise NotFoundError(
                f"There is no word {asked!r} in the text. Its words are: {self.listed()}. "
                "Pass one of those, its number, or characters (start, end)."
            )
        if len(hits) > 1:
            raise NotFoundError(
                f"{asked!r} stands {len(hits)} times in the text: as word {', '.join(str(hit[0]) for hit in hits)}. "
                "One of them must be meant. Pass its number, or characters (start, end)."
            )
        return hits[0]

    def _between(self, focus: object) -> list[int]:
        try:
            start, end = (int(value) for value in focus)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise InputError(
                f"focus={focus!r} names no word. It is a word, its number, or its characters (start, end). "
                f"The words are: {self.listed()}."
            ) from None
        hits = [i for i, word in enumerate(self.words) if word.span[0] < end and word.span[1] > start]
        if not hits:
            raise NotFoundError(
                f"No word stands in the characters {start} to {end}: the text has {len(self.axis.text)}. "
                f"Its words are: {self.listed()}. Pass characters of one of those."
            )
        return hits


def word_rows(relevance: Relevance) -> WordRows:
    """Return what the words of a relevance gave to the patches of its picture.

    Raises
    ------
    PlaceError
        When the rows are no tokens of a text, or the columns no patches.
    """
    if not isinstance(relevance, Relevance):
        batch = " (a batch gives a list: draw each)" if isinstance(relevance, list | tuple) else ""
        raise InputError(
            f"A {type(relevance).__name__} has no words and patches to link{batch}. Links are drawn of one relevance. "
            "Pass one whose rows are words and whose columns are patches."
        )
    relevance = of_words(of_picture(relevance))
    axis, grid = relevance.query_axis, relevance.axis
    if not isinstance(axis, Tokens) or not isinstance(grid, PatchGrid):
        raise PlaceError(
            f"This relevance has rows {axis!r} and columns {grid!r}. Between words and a picture, rows are tokens of a "
            "text (Tokens) and columns patches (PatchGrid). Use mmattn.overlay or mmattn.draw for this one."
        )
    words = tuple(axis.words())
    if not words:
        raise PlaceError(
            f"The text {axis.text!r} has no words: {axis!r}. Lines and overlays need at least one. Pass another text."
        )
    values = relevance.values.detach().cpu().double().numpy()
    outside = np.zeros(len(values)) if relevance.outside is None else relevance.outside.detach().cpu().double().numpy()
    mean = relevance.unit == "share"
    return WordRows(
        relevance=relevance,
        grid=grid,
        axis=axis,
        words=words,
        values=joined(values, words, mean=mean),
        outside=joined(np.maximum(outside, 0.0)[:, None], words, mean=mean)[:, 0],
    )


def joined(
    values: Float[np.ndarray, "token other"], words: Sequence[Word], *, mean: bool
) -> Float[np.ndarray, "word other"]:
    """Return rows of tokens as rows of words: the mean or the sum over a word's tokens.

    Examples
    --------
    >>> word = Word(text="cats", span=(0, 4), tokens=(0, 2))
    >>> joined(np.array([[1.0], [5.0], [3.0]]), [word], mean=True).tolist()
    [[2.0]]
    """
    rows = [values[list(word.tokens)].mean(axis=0) if mean else values[list(word.tokens)].sum(axis=0) for word in words]
    return np.stack(rows)


def of_word(rows: WordRows, word: int) -> Relevance:
    """Return the relevance of one word alone, for an overlay."""
    tokens = list(rows.words[word].tokens)
    one = rows.relevance
    mean = one.unit == "share"
    return replace(
        one,
        values=torch.as_tensor(rows.values[word][None]),
        query_axis=Slots.count(1),
        labels=(rows.labels[word],),
        uniform=None if one.uniform is None else _fused(one.uniform[tokens], mean=mean),
        outside=None if one.outside is None else _fused(one.outside[tokens][:, None], mean=mean)[:, 0],
        reach=None if one.reach is None else one.reach[tokens].any(dim=0, keepdim=True),
        query_tokens=None,
        query_places=None,
        query_media=None,
    )


def patches_at(grid: PatchGrid, place: Sequence[float]) -> tuple[Int[np.ndarray, " found"], str]:
    """Return the columns that a place of the picture asks about, and the phrase for it.

    A place is a point (x, y) or a box (x0, y0, x1, y1) in pixels of the original picture.
    """
    try:
        numbers = tuple(float(value) for value in place)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) == 2:
        return np.array([grid.token_at((numbers[0], numbers[1]))]), f"the patch at ({numbers[0]:g}, {numbers[1]:g})"
    if len(numbers) == 4:
        x0, y0, x1, y1 = numbers
        return grid.tokens_in((x0, y0, x1, y1)), f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    raise InputError(
        f"query={place!r} is no place in the picture. It is a point (x, y) or a box (x0, y0, x1, y1) in its pixels. "
        "Pass one of those; a word is asked for with focus=."
    )


def _fused(values: torch.Tensor, *, mean: bool) -> torch.Tensor:
    return values.mean(dim=0, keepdim=True) if mean else values.sum(dim=0, keepdim=True)


def _unworded(axis: Tokens) -> list[tuple[str, list[int]]]:
    """Return the tokens that are in no word, by role."""
    found: dict[str, list[int]] = {}
    for token in np.flatnonzero(axis.word_of < 0).tolist():
        found.setdefault(axis.roles[token], []).append(token)
    return list(found.items())


def _part(role: str, share: float, count: int) -> str:
    return f"{count} {role} {100 * share:.2g} %" if count > 1 else f"{role} {100 * share:.2g} %"


def columns_phrase(relevance: Relevance, *, row: int) -> str:
    """Return the tokens of a text's columns that are never drawn, with their part of a row, or an empty text."""
    assert isinstance(relevance.axis, Tokens)
    sizes = np.abs(relevance.row(row).detach().cpu().double().numpy())
    outside = 0.0 if relevance.outside is None else max(float(relevance.outside[row]), 0.0)
    whole = float(sizes.sum() + outside) or 1.0
    found = [_part(role, sizes[tokens].sum() / whole, len(tokens)) for role, tokens in _unworded(relevance.axis)]
    found += [_part("outside", outside / whole, 1)] if outside > 0.0005 * whole else []
    return f"never drawn: {', '.join(found)} of the weight" if found else ""


def numbered_phrase(texts: Sequence[str]) -> str:
    """Return what a picture must say where words stand in it by their number, or an empty text."""
    missing = [index for index, text in enumerate(texts) if not fonts.drawable(text)]
    if not missing:
        return ""
    some = f"[{missing[0]}]" if len(missing) == 1 else f"[{missing[0]}] to [{missing[-1]}]"
    return f"{some}: words by number, no font here has their letters (.svg keeps them as text)"

"""The axis whose tokens are pieces of a text: characters `[start, end)` of what the user wrote.

Cells may not overlap, and a tokenizer does not care. Decided here, once:

- several pieces of one character (byte-level BPE splits an emoji into four): the first owns the
  character, the others have the role `continuation`: no place of their own, but the same span, so
  that `words()` gives their weight to the word;
- pieces that share some characters: each character belongs to the first piece that has it;
- a piece without characters (the lone word mark of some tokenizers): role `blank`.
"""

import itertools
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
from jaxtyping import Int

from mmattn.errors import InputError, NotFoundError, PlaceError, nearest
from mmattn.schema.lattices import Lattice
from mmattn.schema.places import AxisBase

Span = tuple[int, int]

# Scripts that write no spaces between words: each character stands for itself.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = "\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u3099\u309a\ufe0f\u200d"
_WORD = re.compile(
    rf"[{_UNSPACED}][{_MARKS}]*|(?:(?![{_UNSPACED}])[\w{_MARKS}])+(?:['\u2019\-.](?:(?![{_UNSPACED}])\w)+)*|[^\w\s]"
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Word:
    """A word of the text: what it says, its characters `[start, end)`, and all tokens that carry it."""

    text: str
    span: Span
    tokens: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Word({self.text!r}, {self.span}, tokens {list(self.tokens)})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tokens(AxisBase):
    """Tokens that are pieces of a text.

    Parameters
    ----------
    text
        What the user wrote; spans count its characters (code points).
    pieces
        Each token as the tokenizer prints it.
    spans
        `[token, 2]`, start and end; -1 for tokens that stand for no character of the text.
    word_of
        For each token the number of its word, ascending along the text; -1 for none.

    Examples
    --------
    >>> axis = Tokens.of("A cat", pieces=["[CLS]", "a", "ca", "##t"], spans=[None, (0, 1), (2, 4), (4, 5)],
    ...                  roles=["cls", "content", "content", "content"])
    >>> axis.place(2), axis.token_at(4), axis.words()[1]
    ((2, 4), 3, Word('cat', (2, 5), tokens [2, 3]))

    """

    noun: ClassVar[str] = "the text"

    text: str
    pieces: tuple[str, ...]
    spans: Int[np.ndarray, "token 2"]
    word_of: Int[np.ndarray, " token"]

    def __post_init__(self) -> None:
        if not len(self.roles) == len(self.pieces) == len(self.spans) == len(self.word_of):
            raise InputError(
                f"{len(self.roles)} roles, {len(self.pieces)} pieces, {len(self.spans)} spans and "
                f"{len(self.word_of)} word numbers do not agree. There is one of each for a token. "
                "Build the axis with Tokens.of."
            )
        content = self.spans[self.content]
        if content.size and (content.min() < 0 or content.max() > len(self.text)):
            raise InputError(
                f"Spans run from {content.min()} to {content.max()} in a text of {len(self.text)} characters. "
                "They count characters of the user's own text. Check the tokenizer's offsets."
            )
        _ = self.lattice  # built now, so that overlapping spans are refused where they are made

    @classmethod
    def of(
        cls,
        text: str,
        *,
        pieces: Sequence[str],
        spans: Sequence[Span | None],
        roles: Sequence[str] | None = None,
        word_of: Sequence[int] | None = None,
    ) -> "Tokens":
        """Return the axis of a tokenized text; shared characters are settled as the module says.

        A span of None is a token that stands for no character; its default role is `special`, that
        of the others `content`. By default words are what is written between spaces, punctuation
        on its own, and each character of scripts without spaces.

        """
        given = [("special" if span is None else "content") for span in spans] if roles is None else list(roles)
        settled, cut = _settle(given, spans)
        if word_of is None:
            word_of = _words_of(text, cut)
        return cls(
            roles=tuple(settled),
            text=text,
            pieces=tuple(pieces),
            spans=np.asarray(cut, dtype=np.int64).reshape(-1, 2),
            word_of=np.asarray(word_of, dtype=np.int64),
        )

    @cached_property
    def lattice(self) -> Lattice:
        """The cells as intervals of characters."""
        content = self.content
        return Lattice(dims=("char",), intervals=(self.spans[content].astype(np.float64),), tokens=content)

    @cached_property
    def content(self) -> Int[np.ndarray, " content"]:
        """Indices of the tokens with a place, along the text."""
        tokens = np.flatnonzero(np.asarray(self.roles, dtype=object) == "content")
        return tokens[np.argsort(self.spans[tokens, 0], kind="stable")]

    def places(self) -> Int[np.ndarray, "content 2"]:
        """Return (start, end) of all content tokens, in the order of `content`."""
        return np.take(self.spans, self.content, axis=0)

    def place(self, token: SupportsIndex) -> Span:
        """Return (start, end): the characters of a token in the user's text."""
        start, end = self.spans[self._content_token(token)].tolist()
        return (start, end)

    def token_at(self, point: float) -> int:
        """Return the token that holds this character of the text."""
        token = self.lattice.token_at((point,))
        if token < 0:
            inside = 0 <= point < len(self.text)
            what = f"Character {point:g}" + (f" ({self.text[int(point)]!r})" if inside else "")
            raise PlaceError(
                f"{what} of {self.noun} is in no token: it has {len(self.text)} characters, and tokens do not hold "
                f"every space. {self._listing()}. Pass the offset of a letter, or a word."
            )
        return token

    def tokens_in(self, place: Span) -> Int[np.ndarray, " found"]:
        """Return the content tokens that share a character with `[start, end)`, in token order."""
        spans = self.places()
        found = np.sort(self.content[(spans[:, 0] < place[1]) & (spans[:, 1] > place[0])])
        return found if len(found) else np.array([self.token_at(place[0])])

    def words(self) -> list[Word]:
        """Return the words along the text, each with all its tokens, continuations among them."""
        members: dict[int, list[int]] = {}
        for token, word in enumerate(self.word_of.tolist()):
            if word >= 0:
                members.setdefault(word, []).append(token)
        words = []
        for _, tokens in sorted(members.items()):
            start, end = int(self.spans[tokens, 0].min()), int(self.spans[tokens, 1].max())
            stripped = self.text[start:end].strip()
            start += len(self.text[start:end]) - len(self.text[start:end].lstrip())
            words.append(Word(text=stripped, span=(start, start + len(stripped)), tokens=tuple(tokens)))
        return words

    def tokens_of_word(self, word: str, *, occurrence: SupportsIndex = 0) -> Int[np.ndarray, " found"]:
        """Return the tokens of a word, or of several words in a row, as the user would type it.

        Case matters only where both spellings are there. `occurrence` counts from 0; negative
        counts from the end. Raises NotFoundError that lists the words there are.
        """
        words = self.words()
        hits = _runs(word, words, fold=False) or _runs(word, words, fold=True)
        wanted = operator.index(occurrence)
        if not hits:
            raise NotFoundError(
                f"There is no word {word!r} in {self.noun}. Its words are: {nearest(word, [w.text for w in words])}. "
                "Pass one of those, or characters (start, end)."
            )
        if not -len(hits) <= wanted < len(hits):
            raise NotFoundError(
                f"The word {word!r} stands {len(hits)} time(s) in {self.noun}; there is no occurrence {wanted}. "
                f"Occurrences count from 0. Pass 0 to {len(hits) - 1}."
            )
        return np.array(hits[wanted], dtype=np.int64)

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return self._one_line(f"{len(self.content)} pieces of {shown!r}")


def split_words(text: str) -> list[Span]:
    """Return the words of a text as character spans: between spaces, punctuation on its own.

    Examples
    --------
    >>> split_words("Don't panic!")
    [(0, 5), (6, 11), (11, 12)]

    """
    return [match.span() for match in _WORD.finditer(text)]


def _settle(roles: list[str], spans: Sequence[Span | None]) -> tuple[list[str], list[Span]]:
    """Give each character to the first token that has it; name those left without one."""
    settled, cut, claimed = list(roles), [], _Claimed()
    for token, (role, span) in enumerate(zip(roles, spans, strict=True)):
        cut.append((-1, -1) if span is None else span)
        if role != "content":
            continue
        if span is None or span[0] >= span[1]:
            settled[token] = "blank"
            continue
        free = claimed.take(span)
        if free is None:
            settled[token] = "continuation"
        else:
            cut[token] = free
    return settled, cut


class _Claimed:
    """Characters that a token has already; tokens along the text meet only the last one."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self, span: Span) -> Span | None:
        free = [char for char in range(*span) if char not in self._taken]
        if not free:
            return None
        run = [char for char, n in zip(free, itertools.count(free[0]), strict=False) if char == n]
        self._taken.update(run)
        return (run[0], run[-1] + 1)


def _words_of(text: str, spans: Sequence[Span]) -> list[int]:
    """Return for each token the word with which its span shares a character first, -1 for none."""
    words = np.asarray(split_words(text), dtype=np.int64).reshape(-1, 2)
    numbers = []
    for start, end in spans:
        word = int(np.searchsorted(words[:, 1], start, side="right"))
        numbers.append(word if start < end and word < len(words) and words[word, 0] < end else -1)
    return numbers


def _runs(asked: str, words: Sequence[Word], *, fold: bool) -> list[list[int]]:
    """Return the tokens of every place where the asked words stand in a row."""
    wanted = [asked[start:end] for start, end in split_words(asked)]
    texts = [word.text for word in words]
    if fold:
        wanted, texts = [w.casefold() for w in wanted], [t.casefold() for t in texts]
    if not wanted:
        return []
    starts = [i for i in range(len(texts) - len(wanted) + 1) if texts[i : i + len(wanted)] == wanted]
    return [sorted({t for word in words[i : i + len(wanted)] for t in word.tokens}) for i in starts]

"""A picture held against several texts: what each scores, and which word goes with which patch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.schema.axes import Slots, Tokens
from mmattn.schema.results import Relevance
from mmattn.schema.tokens import Word

# A word as typed (or several in a row), its number along the text, or its characters [start, end).
Asked: TypeAlias = str | int | tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Match:
    """What a model makes of a picture and some texts.

    Parameters
    ----------
    texts
        As the user wrote them.
    scores
        What the model itself gives for the picture with each text.
    unit
        What scores are: a `logit`, the `probability of a match`, the `log-likelihood per token`.
    cosines
        The cosine of the features of two towers; None for models that have none to compare.
    relevances
        One a text: rows are the pieces of the text, columns the tokens of the picture.
    overall
        One a text: a single row for the text as a whole.
    method
        How words and patches were linked.

    Examples
    --------
    >>> import torch
    >>> from mmattn.schema.axes import PatchGrid
    >>> words = Tokens.of("a dog", pieces=["a", "dog"], spans=[(0, 1), (2, 5)])
    >>> grid = PatchGrid.plain(rows=1, cols=2, patch_px=(16, 16), size_px=(64, 32))
    >>> one = Relevance(values=torch.tensor([[0.0, 0.1], [0.9, 0.2]]), axis=grid, query_axis=words,
    ...                 labels=words.pieces, method="interaction")
    >>> whole = Relevance(values=torch.tensor([[0.9, 0.3]]), axis=grid, query_axis=Slots.count(1),
    ...                   labels=("a dog",), method="interaction")
    >>> match = Match(texts=("a dog",), scores=torch.tensor([21.0]), cosines=torch.tensor([0.21]),
    ...               relevances=(one,), overall=(whole,), method="interaction")
    >>> match.word("dog").peak()
    (0.0, 0.0, 32.0, 32.0)

    """

    texts: tuple[str, ...]
    scores: Float[Tensor, " text"]
    relevances: tuple[Relevance, ...]
    overall: tuple[Relevance, ...]
    method: str
    cosines: Float[Tensor, " text"] | None = None
    unit: str = "logit"

    def __post_init__(self) -> None:
        counts = {len(self.texts), len(self.scores), len(self.relevances), len(self.overall)}
        counts |= set() if self.cosines is None else {len(self.cosines)}
        if len(counts) > 1 or not self.texts:
            raise InputError(
                f"{len(self.texts)} texts, {len(self.scores)} scores, {len(self.relevances)} relevances and "
                f"{len(self.overall)} whole ones do not agree. There is one of each for a text, and at least one text."
            )

    @property
    def best(self) -> int:
        """The number of the text that scores highest."""
        return int(self.scores.argmax())

    def words(self, text: int | str = 0) -> list[Word]:
        """Return the words of a text, along it; `text` is its number, or the text itself."""
        axis = self.relevances[self._number(text)].query_axis
        assert isinstance(axis, Tokens)
        return axis.words()

    def word(self, word: Asked, *, text: int | str = 0) -> Relevance:
        """Return one row: where a word goes in the picture.

        Parameters
        ----------
        word
            As typed, several in a row too; its number along the text; or its characters (start, end). Rows of its
            pieces are added; shares are averaged, and stay shares.
        text
            Which text: its number, or the text itself.

        Raises
        ------
        NotFoundError
            A word or a text that is not there (those that are get listed), or a word that stands several times.
        InputError
            What names no word.
        """
        number = self._number(text)
        whole = self.relevances[number]
        tokens, label = self._tokens(word, number)
        rows, share = list(tokens), whole.unit == "share"
        return replace(
            whole,
            values=_as_one(whole.values[rows], share=share),
            uniform=None if whole.uniform is None else _as_one(whole.uniform[rows], share=share),
            outside=None if whole.outside is None else _as_one(whole.outside[rows], share=share),
            reach=None if whole.reach is None else whole.reach[rows].any(dim=0, keepdim=True),
            query_axis=Slots.count(1),
            labels=(f"‘{label}’ in ‘{_short(self.texts[number])}’",),
        )

    def contrast(self, one: int | str, other: int | str) -> Relevance:
        """Return what speaks for one text rather than another, by patch: their overall rows, one minus the other.

        Raises
        ------
        NotFoundError
            A text that is not there.
        """
        first, second = self._number(one), self._number(other)
        left, right = self.overall[first], self.overall[second]
        label = f"‘{_short(self.texts[first])}’ minus ‘{_short(self.texts[second])}’"
        return replace(
            left,
            values=left.values - right.values,
            unit="signed relevance",
            labels=(label,),
            uniform=None,
            outside=None,
            reach=None,
        )

    def named(self, *, weights: str) -> "Match":
        """Return the same with a name for the weights, for captions."""

        def one(relevance: Relevance) -> Relevance:
            return replace(relevance, source=replace(relevance.source, weights=weights))

        return replace(self, relevances=tuple(map(one, self.relevances)), overall=tuple(map(one, self.overall)))

    def _number(self, text: int | str) -> int:
        if isinstance(text, str):
            hits = [number for number, known in enumerate(self.texts) if known.strip() == text.strip()]
            if not hits:
                raise NotFoundError(
                    f"There is no text {text!r} in this match. Its texts are: {nearest(text, self.texts)}. "
                    "Pass one of those, or its number."
                )
            return hits[0]
        if isinstance(text, bool) or not isinstance(text, int) or not -len(self.texts) <= text < len(self.texts):
            raise NotFoundError(
                f"There is no text {text!r}: this match has {len(self.texts)}, 0 to {len(self.texts) - 1}. "
                "Pass a number in that range, or the text itself."
            )
        return text % len(self.texts)

    def _tokens(self, word: Asked, number: int) -> tuple[Sequence[int], str]:
        axis = self.relevances[number].query_axis
        assert isinstance(axis, Tokens)
        words = axis.words()
        if isinstance(word, str):
            return _spelled(axis, word), word
        if isinstance(word, int) and not isinstance(word, bool):
            if not -len(words) <= word < len(words):
                raise NotFoundError(
                    f"There is no word {word}: the text has {len(words)} words, {_listed(words)}. Pass one of their "
                    "numbers."
                )
            return words[word].tokens, words[word].text
        return _between(axis, word)

    def __repr__(self) -> str:
        lines = [f"Match: {len(self.texts)} text(s), words and patches linked by {self.method}"]
        for number, text in enumerate(self.texts[:8]):
            cosine = "" if self.cosines is None else f", cosine {float(self.cosines[number]):.4f}"
            lines.append(f"  {number}  {self.unit} {float(self.scores[number]):.4g}{cosine}  {_short(text)}")
        if len(self.texts) > 8:
            lines.append(f"  ... {len(self.texts) - 8} more")
        lines.append("  next: match.word(...), match.contrast(0, 1), mmattn.links(match.relevances[0])")
        return "\n".join(lines)


def _as_one(rows: Float[Tensor, "piece ..."], *, share: bool) -> Float[Tensor, "1 ..."]:
    return rows.mean(dim=0, keepdim=True) if share else rows.sum(dim=0, keepdim=True)


def _spelled(axis: Tokens, word: str) -> list[int]:
    tokens: list[int] = axis.tokens_of_word(word).tolist()
    try:
        axis.tokens_of_word(word, occurrence=1)
    except NotFoundError:
        return tokens
    at = [index for index, one in enumerate(axis.words()) if one.text.casefold() == word.casefold()]
    where = f" (words {', '.join(map(str, at))})" if at else ""
    raise NotFoundError(
        f"{word!r} stands several times in the text{where}. One of them must be meant. Pass its number along the "
        "text, or its characters (start, end)."
    )


def _between(axis: Tokens, span: object) -> tuple[list[int], str]:
    try:
        start, end = (int(value) for value in span)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(
            f"{span!r} names no word. It is a word, its number, or its characters (start, end). The words are: "
            f"{_listed(axis.words())}."
        ) from None
    found = [word for word in axis.words() if word.span[0] < end and word.span[1] > start]
    if not found:
        raise NotFoundError(
            f"No word stands in the characters {start} to {end}: the text has {len(axis.text)}. Its words are: "
            f"{_listed(axis.words())}. Pass characters of one of those."
        )
    return [token for word in found for token in word.tokens], axis.text[found[0].span[0] : found[-1].span[1]]


def _listed(words: Sequence[Word]) -> str:
    said = [f"{number} {word.text!r}" for number, word in enumerate(words[:24])]
    return ", ".join(said) + (f", ... ({len(words)} in all)" if len(words) > 24 else "")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."

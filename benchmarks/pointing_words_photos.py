"""Photographs and words: what a model of composed scenes makes of pictures, and of words, that it never saw.

A word that is not among those it learned is `<unknown>` to it, whichever it is: it lights the same patches for a fig
and for an astronaut. That stands in the table beside what it points at.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from assets.training.captions import phrase
from assets.training.clip_words import words
from assets.training.things import things
from benchmarks.pointing_links import Linking, Pairing
from benchmarks.pointing_phrases import photographs, tried
from benchmarks.pointing_scores import Score
from benchmarks.pointing_tables import CHANCE, markdown


@dataclass(frozen=True, kw_only=True)
class Worded:
    """What was found on the shipped photographs.

    Parameters
    ----------
    names, said
        The photographs, and what each was asked for.
    ranks
        Among the prompts of all things ("a dog"), the place of the right one for the photograph, from 1; None for a
        word that the model never saw.
    first
        The thing whose prompt is nearest to the photograph.
    scores
        For each way, one score a photograph.

    """

    names: tuple[str, ...]
    said: tuple[str, ...]
    ranks: tuple[int | None, ...]
    first: tuple[str, ...]
    scores: dict[str, tuple[Score, ...]]

    def table(self) -> str:
        """Return which peaks lie on the subject, as a Markdown table."""
        counts, chance = self.counts(), self.chance()
        rows = [
            ["photographs", *self.names, "words it knows / never saw"],
            ["asked for", *self.said, ""],
            ["rank among all things", *("never saw it" if each is None else str(each) for each in self.ranks), ""],
            ["nearest thing", *self.first, ""],
            [CHANCE, *(f"{score.chance:.2f}" for score in next(iter(self.scores.values()))), chance],
        ]
        for way, scores in self.scores.items():
            rows.append([way, *("in" if score.hit else "out" for score in scores), counts[way]])
        return markdown(rows)

    def counts(self) -> dict[str, str]:
        """Return for each way how many peaks lie on the subject, of words it knows and of others."""
        return {
            way: " / ".join(f"{sum(one.hit for one in part)} of {len(part)}" for part in self._parts(scores))
            for way, scores in self.scores.items()
        }

    def chance(self) -> str:
        """Return how many peaks chance would have on the subjects."""
        parts = self._parts(next(iter(self.scores.values())))
        return " / ".join(f"{sum(one.chance for one in part):.1f} of {len(part)}" for part in parts)

    def warning(self) -> str:
        """Return what a reader of the table must know."""
        right = sum(rank == 1 for rank in self.ranks)
        knows = sum(rank is not None for rank in self.ranks)
        return (
            f"The model learned {len(things())} things pasted into pictures, and no photographs of them: of {knows} "
            f"whose word it knows it takes {right} for what they are. Words that it never saw are one and the same to "
            "it. Where chance is near 1 the subject fills the picture."
        )

    def record(self) -> dict[str, object]:
        """Return everything for JSON."""
        return asdict(self) | {"warning": self.warning()}

    def _parts(self, scores: Sequence[Score]) -> tuple[list[Score], list[Score]]:
        known = [one for one, rank in zip(scores, self.ranks, strict=True) if rank is not None]
        return known, [one for one, rank in zip(scores, self.ranks, strict=True) if rank is None]


def worded(pairing: Pairing, ways: Sequence[Linking]) -> Worded:
    """Return what all ways find on the photographs, each asked for by its own phrase."""
    asked = photographs()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tokenizer does not know", UserWarning)  # the table says so
        found = tried(pairing, ways, list(asked.values()))
    scores = {way: tuple(each.prompt[0] for each in scenes) for way, scenes in found.items()}
    prompts = {phrase(thing, 1, color=False): thing.noun for thing in things()}
    near = pairing.cosines([each.picture for each in asked.values()], tuple(prompts)).tolist()
    nearness = [dict(zip(prompts.values(), row, strict=True)) for row in near]
    return Worded(
        names=tuple(asked),
        said=tuple(each.caption for each in asked.values()),
        ranks=tuple(_rank(each.caption, row) for each, row in zip(asked.values(), nearness, strict=True)),
        first=tuple(max(row, key=row.__getitem__) for row in nearness),
        scores=scores,
    )


def _rank(said: str, near: Mapping[str, float]) -> int | None:
    """Return the place of the thing that a phrase names; None where a word of it is not known."""
    if not set(said.split()) <= set(words()):
        return None
    noun = next(each.noun for each in things() if said.rsplit(maxsplit=1)[-1] in (each.noun, each.plural))
    return 1 + sum(value > near[noun] for value in near.values())

"""The row of real photographs: what the readings make of pictures that the scenes' model was never taught."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from assets.training.registries import backgrounds
from benchmarks.pointing_readings import OURS, Reading, Subject
from benchmarks.pointing_scores import Score
from benchmarks.pointing_tables import CHANCE, markdown
from benchmarks.pointing_trials import Trial, photographs, tried


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What was found on the shipped photographs.

    Parameters
    ----------
    subject
        Name of the model, and whether it was taught the things of the scenes.
    named
        For each photograph, the model's top class and its probability; empty without class logits.
    scores
        For each reading, one score a photograph, in the order of `names`.

    """

    subject: str
    taught_scenes: bool
    names: tuple[str, ...]
    named: tuple[str, ...]
    scores: dict[str, tuple[Score, ...]]

    def table(self) -> str:
        """Return which peaks lie on the subject, as a Markdown table."""
        rows = [["photographs", *self.names, "in all"]]
        if self.named:
            rows.append(["top class (probability)", *self.named, ""])
        rows.append([CHANCE, *(f"{chance:.2f}" for chance in self._chances()), self.chance()])
        counts = self.counts()
        for name, scores in self.scores.items():
            rows.append([name, *("in" if score.hit else "out" for score in scores), counts[name]])
        return markdown(rows)

    def counts(self) -> dict[str, str]:
        """Return for each reading how many peaks lie on the subject."""
        return {name: f"{sum(one.hit for one in scores)} of {len(scores)}" for name, scores in self.scores.items()}

    def chance(self) -> str:
        """Return how many peaks chance would have on the subject."""
        return f"{sum(self._chances()):.1f} of {len(self.names)}"

    def warning(self) -> str:
        """Return what a reader of the table must know."""
        if not self.taught_scenes:
            return f"{self.subject} is read toward no class here. Where chance is near 1 the subject fills the picture."
        seen = {each.name for each in backgrounds("train")} & set(self.names)
        ground = {each.name for each in backgrounds("held-out")} & set(self.names)
        return (
            f"{self.subject} knows nothing of photographs: it learned 96 things pasted into pictures, and the class "
            f"that it names here means nothing. Background in its training: {_listed(seen)}; "
            f"in the scenes above: {_listed(ground)}. Where chance is near 1 the subject fills the picture."
        )

    def record(self) -> dict[str, object]:
        """Return everything for JSON."""
        found = {name: [asdict(one) for one in scores] for name, scores in self.scores.items()}
        return {"names": self.names, "top_class": self.named, "scores": found, "said": self.warning()}

    def _chances(self) -> list[float]:
        return [score.chance for score in next(iter(self.scores.values()))]


def photographed(subject: Subject, chosen: Sequence[Reading]) -> Photographs:
    """Return what all readings find on the photographs; aimed ones toward the model's top class."""
    trials = photographs()
    found = tried(subject, chosen, list(trials.values()))
    return Photographs(
        subject=subject.name,
        taught_scenes=subject.names_things,
        names=tuple(trials),
        named=tuple(_top_class(subject, list(trials.values()))) if subject.names_things else (),
        scores={name: tuple(score for (score,) in scenes) for name, scenes in found.items()},
    )


def _top_class(subject: Subject, trials: Sequence[Trial]) -> list[str]:
    """Return the name and the probability of the top class; ours was taught each thing's presence by itself."""
    logits = subject.logits(subject.attend([trial.picture for trial in trials])).float()
    probability = logits.sigmoid() if subject.name == OURS else logits.softmax(dim=1)
    best = probability.max(dim=1)
    assert subject.labels is not None
    return [
        f"{subject.labels[index]} ({value:.2f})"
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "None"

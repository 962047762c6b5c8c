"""A training run, whatever is trained: steps, a log, evaluations and checkpoints; the same call resumes.

The folder gets `log.jsonl` (a line each 50 steps: loss, scenes, seconds; and what the averaged model knows of held-out
scenes, every tenth of the run), the weights, written at each evaluation, and checkpoints.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from assets.training import checkpoints
from assets.training.checkpoints import Checkpoint
from assets.training.model import Recipe
from mmattn.errors import MmattnError, OutputError

TUNING_SEED = 1000
"""Held-out scenes that a run is watched on. What is reported comes from other seeds."""

Batch = TypeVar("Batch")

_LOGGED = 50


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a run is watched, which changes nothing in its weights.

    Parameters
    ----------
    checkpoint_s
        Seconds between checkpoints.
    evaluations, scenes
        How often in a run the averaged model is evaluated, and on how many held-out scenes.
    stop_after
        Stop after that many steps, as an interruption would; None for the whole run.

    """

    checkpoint_s: float = 180.0
    evaluations: int = 10
    scenes: int = 512
    stop_after: int | None = None


class Learns(Protocol[Batch]):
    """What learns, step by step."""

    @property
    def recipe(self) -> Recipe:
        """All that its weights follow from."""

    def batch(self, step: int) -> Batch:
        """Return what a step learns from; called by another thread, while the step before is learned."""

    def step(self, number: int, scenes: Batch) -> float:
        """Learn from it; return the loss."""

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    def knows(self, *, seed: int, scenes: int) -> Mapping[str, object]:
        """Return what the averaged model knows of held-out scenes."""

    def save(self, folder: Path, *, step: int) -> Path:
        """Write the averaged model into a run's folder; return where."""


def run(begin: Callable[[], Learns[Batch]], folder: Path, *, recipe: Recipe, watch: Watch) -> None:
    """Train what `begin` gives by a recipe, going on from the last whole checkpoint in a folder.

    Raises
    ------
    FormatError
        There are checkpoints in the folder, and none is whole.
    InputError
        They are of another recipe.
    OutputError
        The folder cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _deterministic():
            before = checkpoints.latest(folder, recipe=recipe)
            _run(begin(), before, folder, watch=watch)
    except OSError as problem:
        if isinstance(problem, MmattnError):
            raise
        raise OutputError(
            f"{folder} cannot be written: {problem.strerror or problem}. Weights, log and checkpoints go there. "
            "Name another folder with --out."
        ) from problem


def _run(learner: Learns[Batch], before: Checkpoint | None, folder: Path, *, watch: Watch) -> None:
    recipe = learner.recipe
    first = 0
    if before is not None:
        learner.load(before.state)
        first = before.step
    every = max(1, recipe.steps // watch.evaluations)
    last = recipe.steps if watch.stop_after is None else min(recipe.steps, first + watch.stop_after)
    began = saved = time.monotonic()
    losses: list[float] = []
    for number, scenes in _ahead(learner, first, last):
        losses.append(learner.step(number, scenes))
        done = number + 1
        if done % _LOGGED == 0 or done == last:
            seconds = time.monotonic() - began
            rate = (done - first) * recipe.batch / seconds
            _log(folder, {"step": done, "loss": sum(losses) / len(losses), "scenes_per_s": rate, "seconds": seconds})
            losses.clear()
        if done % every == 0 or done == recipe.steps:
            learner.save(folder, step=done)
            _log(folder, {"step": done} | dict(learner.knows(seed=TUNING_SEED, scenes=watch.scenes)))
        if done == last or time.monotonic() - saved > watch.checkpoint_s:
            checkpoints.write(Checkpoint(step=done, recipe=recipe, state=learner.state()), folder)
            saved = time.monotonic()


def _ahead(learner: Learns[Batch], first: int, last: int) -> Iterator[tuple[int, Batch]]:
    """Give each step its scenes, composed by a thread while the step before is learned."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        coming = pool.submit(learner.batch, first) if first < last else None
        for number in range(first, last):
            assert coming is not None
            scenes = coming.result()
            coming = pool.submit(learner.batch, number + 1) if number + 1 < last else None
            yield number, scenes


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch only use kernels that give the same each time, each on one thread."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def _log(folder: Path, line: dict[str, object]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)

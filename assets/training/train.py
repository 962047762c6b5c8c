"""Train the model of our own: `python assets/training/train.py --out DIR`. The same command resumes.

`DIR` gets `vit` (a folder that timm opens: the averaged weights in float16, written at each evaluation), `log.jsonl` (a
line each 50 steps: loss, scenes, seconds; and what the averaged model knows of held-out scenes, every tenth of the run)
and checkpoints. While the learning rate has not begun to fall (`Recipe.falls_from`), a run may be resumed with other
`--steps`. `README.md` beside this file says what training took.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training import checkpoints
from assets.training.checkpoints import Checkpoint
from assets.training.compose import Composer, Scene
from assets.training.evaluate import evaluate
from assets.training.learning import Learner
from assets.training.model import Recipe, save_weights
from mmattn.errors import MmattnError, OutputError

TUNING_SEED = 1000
"""Held-out scenes that a run is watched on. What is reported comes from other seeds."""

_LOGGED = 50


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a run is watched, which changes nothing in its weights.

    Parameters
    ----------
    checkpoint_s
        Seconds between checkpoints.
    evaluations, scenes
        How often in a run the averaged model is evaluated, in bfloat16, and on how many held-out scenes.
    stop_after
        Stop after that many steps, as an interruption would; None for the whole run.

    """

    checkpoint_s: float = 180.0
    evaluations: int = 10
    scenes: int = 512
    stop_after: int | None = None


def train(recipe: Recipe, folder: Path, *, watch: Watch | None = None) -> Path:
    """Train by a recipe, going on from the last whole checkpoint in a folder; return the folder of the weights.

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
            return _train(recipe, folder, watch=watch or Watch())
    except OSError as problem:
        if isinstance(problem, MmattnError):
            raise
        raise OutputError(
            f"{folder} cannot be written: {problem.strerror or problem}. Weights, log and checkpoints go there. "
            "Name another folder with --out."
        ) from problem


def _train(recipe: Recipe, folder: Path, *, watch: Watch) -> Path:
    before = checkpoints.latest(folder, recipe=recipe)
    learner = Learner(recipe, Composer(recipe.split, clutter=recipe.clutter, size_px=recipe.size_px))
    first = 0
    if before is not None:
        learner.load(before.state)
        first = before.step
    held_out = Composer("held-out", size_px=recipe.size_px)
    every = max(1, recipe.steps // watch.evaluations)
    last = recipe.steps if watch.stop_after is None else min(recipe.steps, first + watch.stop_after)
    weights = folder / "vit"
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
            knows = evaluate(
                deepcopy(learner.average).to(torch.bfloat16), held_out, seed=TUNING_SEED, count=watch.scenes
            )
            save_weights(learner.average.state_dict(), weights, recipe=recipe, step=done)
            _log(folder, {"step": done} | asdict(knows))
        if done == last or time.monotonic() - saved > watch.checkpoint_s:
            checkpoints.write(Checkpoint(step=done, recipe=recipe, state=learner.state()), folder)
            saved = time.monotonic()
    return weights


def _ahead(learner: Learner, first: int, last: int) -> Iterator[tuple[int, list[Scene]]]:
    """Give each step its scenes, composed by a thread while the step before is learned."""
    with ThreadPoolExecutor(1) as pool:
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


def main() -> int:
    """Train as asked; a problem is one line on standard error and exit code 2."""
    plain = Recipe()
    parser = argparse.ArgumentParser(description="Train mmattn's own vision transformer; the same command resumes.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=plain.steps, help=f"of {plain.batch} scenes")
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument("--patch-dropout", type=float, default=plain.patch_dropout, help="share of patches left out")
    options = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        recipe = Recipe(
            steps=options.steps,
            seed=options.seed,
            patch_dropout=options.patch_dropout,
        )
        print(train(recipe, options.out))
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

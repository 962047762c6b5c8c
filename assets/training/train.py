"""Train the model of our own: `python assets/training/train.py --out DIR`. The same command resumes.

`DIR` gets `vit` (a folder that timm opens: the averaged weights in float16), `log.jsonl` and checkpoints (`runs.py`).
While the learning rate has not begun to fall (`Recipe.falls_from`), a run may be resumed with other `--steps`.
`README.md` beside this file says what training took.
"""

import argparse
import sys
import warnings
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.compose import Composer
from assets.training.learning import Learner
from assets.training.model import Recipe
from assets.training.runs import Watch, run
from mmattn.errors import MmattnError


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

    def begin() -> Learner:
        return Learner(recipe, Composer(recipe.split, clutter=recipe.clutter, size_px=recipe.size_px))

    run(begin, folder, recipe=recipe, watch=watch or Watch())
    return folder / "vit"


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

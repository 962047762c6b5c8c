"""Train our CLIP: `python assets/training/clip_train.py --tower run/vit --out DIR`. The same command resumes.

In two halves: what is where (`clip_seeing.py`, in `DIR/seeing`), for a tower that begins as the ViT of `train.py`; then
words for it. `DIR` gets `clip` (a folder that open_clip opens: the averaged weights in float16), `log.jsonl` and
checkpoints (`runs.py`). `README.md` says what training took.
"""

import argparse
import sys
import warnings
from pathlib import Path

from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training import checkpoints
from assets.training.clip_learning import ClipLearner
from assets.training.clip_model import ClipRecipe
from assets.training.clip_seeing import SeeingLearner
from assets.training.compose import Composer
from assets.training.runs import Watch, run
from mmattn.errors import MmattnError


def train_clip(recipe: ClipRecipe, folder: Path, *, tower: Path | None, watch: Watch | None = None) -> Path:
    """Train by a recipe, going on from the last whole checkpoint in a folder; return the folder of the weights.

    Parameters
    ----------
    recipe, folder
        What to train, and where it is kept.
    tower
        The folder of the ViT that the vision tower begins as; None for one at random. A resumed run does not read it.
    watch
        How the run is watched.

    Raises
    ------
    FormatError
        There are checkpoints in the folder, and none is whole; or the tower is none.
    InputError
        They are of another recipe.
    OutputError
        The folder cannot be written.

    """
    watch = watch or Watch(evaluations=4, scenes=256)
    composer = Composer(recipe.split, clutter=recipe.clutter, size_px=recipe.size_px)
    first = recipe.seeing()

    def seeing() -> SeeingLearner:
        return SeeingLearner(first, composer, tower=tower)

    def reading() -> ClipLearner:
        return ClipLearner(recipe, composer, first=seen_by(folder / "seeing", first))

    run(seeing, folder / "seeing", recipe=first, watch=watch)
    before = checkpoints.latest(folder / "seeing", recipe=first)
    if before is not None and before.step == first.steps:
        run(reading, folder, recipe=recipe, watch=watch)
    return folder / "clip"


def seen_by(folder: Path, recipe: ClipRecipe) -> dict[str, Tensor]:
    """Return the averaged weights at the end of the first half: the tower's and the table."""
    last = checkpoints.latest(folder, recipe=recipe)
    assert last is not None
    return {name.removeprefix("average."): each for name, each in last.state.items() if name.startswith("average.")}


def main() -> int:
    """Train as asked; a problem is one line on standard error and exit code 2."""
    plain = ClipRecipe()
    shipped = Path(__file__).resolve().parents[1] / "weights" / "vit"
    parser = argparse.ArgumentParser(description="Train mmattn's own CLIP; the same command resumes.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tower", type=Path, default=shipped, metavar="DIR", help="a ViT of train.py")
    parser.add_argument("--steps", type=int, default=plain.steps, help=f"of the second half, {plain.batch} scenes each")
    parser.add_argument("--seeing-steps", type=int, default=plain.seeing_steps, help="of the first half")
    parser.add_argument("--seed", type=int, default=plain.seed)
    options = parser.parse_args()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    recipe = ClipRecipe(steps=options.steps, seeing_steps=options.seeing_steps, seed=options.seed)
    try:
        print(train_clip(recipe, options.out, tower=options.tower))
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

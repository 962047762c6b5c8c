"""Scenes with their truth, as files: `python assets/training/scenes.py --seed 1 --count 20 --split held-out --out DIR`.

`DIR` gets PNG files and `scenes.json`, a list with one entry a scene, in order:

    {"file": "scene-00000.png", "size_px": [112, 112],
     "objects": [{"noun": "dog", "color": "brown", "box_px": [x0, y0, x1, y1], "in_caption": true}],
     "caption": "a brown dog"}

`color` is null where no single color names the thing; `caption` is null without `--captions`. The held-out split runs
with what lies in the repository; `train` fetches its backgrounds once (npm, apt-get, pip). Scene number i of a seed and
split is the same whatever else is asked for: the same pixels, with the same releases of OpenCV and numpy.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.captions import caption
from assets.training.compose import MOST, SIZE_PX, Composer, Scene
from assets.training.draws import Draws
from mmattn.errors import InputError, MmattnError, OutputError


def write_scenes(
    composer: Composer,
    folder: Path,
    *,
    seed: int,
    count: int,
    captions: bool = False,
    least: int = 1,
    most: int = MOST,
) -> Path:
    """Write scenes 0 to `count` - 1 of a seed into a folder; return the path of its `scenes.json`.

    Raises
    ------
    OutputError
        The folder cannot be written.

    """
    entries = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = composer.scene(index, seed=seed, least=least, most=most)
            name = f"scene-{index:05d}.png"
            Image.fromarray(scene.pixels).save(folder / name)
            entries.append(entry(scene, file=name, draws=words(composer, seed, index) if captions else None))
        return write_list(entries, folder)
    except OSError as problem:
        raise OutputError(
            f"{folder} cannot be written: {problem.strerror or problem}. Scenes are PNG files and a scenes.json. "
            "Name a folder that can be made, with --out."
        ) from problem


def write_list(entries: Sequence[dict[str, object]], folder: Path) -> Path:
    """Write `scenes.json`, last and in one step: a list that is there names files that are there."""
    beside = folder / ".scenes.json.part"
    lines = ",\n".join(json.dumps(each) for each in entries)
    beside.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return beside.replace(folder / "scenes.json")


def words(composer: Composer, seed: int, index: int) -> Draws:
    """Return the draws that a scene's caption follows from."""
    return Draws("caption", composer.split, seed, index)


def entry(scene: Scene, *, file: str, draws: Draws | None) -> dict[str, object]:
    """Return what `scenes.json` says of a scene; without draws it has no caption."""
    height, width = scene.pixels.shape[:2]
    said = caption(scene.objects, draws, size_px=width) if draws is not None else None
    return {
        "file": file,
        "size_px": [width, height],
        "objects": [
            {
                "noun": each.thing.noun,
                "color": each.thing.color,
                "box_px": list(each.box_px),
                "in_caption": said is not None and position in said.mentioned,
            }
            for position, each in enumerate(scene.objects)
        ],
        "caption": said.text if said is not None else None,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write scenes with their truth: PNG files and scenes.json.")
    parser.add_argument("--seed", type=int, required=True, help="other seeds, other scenes")
    parser.add_argument("--count", type=int, required=True, help="how many")
    parser.add_argument("--split", choices=["train", "held-out"], required=True, help="held-out needs no network")
    shapes = "shapes behind the things and in front of them"
    parser.add_argument("--clutter", action=argparse.BooleanOptionalAction, default=True, help=shapes)
    parser.add_argument("--captions", action="store_true", help="a true sentence with each")
    parser.add_argument("--least", type=int, default=1, help="things in a scene, at least")
    parser.add_argument("--most", type=int, default=MOST, help="things in a scene, at most")
    parser.add_argument("--size", type=int, default=SIZE_PX, help="both sides of a scene, in pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    return parser.parse_args()


def _write(options: argparse.Namespace) -> Path:
    if not 1 <= options.count <= 100_000:
        raise InputError(f"--count is {options.count}. It may be 1 to 100000. Pass a number within those.")
    composer = Composer(options.split, clutter=options.clutter, size_px=options.size)
    return write_scenes(
        composer,
        options.out,
        seed=options.seed,
        count=options.count,
        captions=options.captions,
        least=options.least,
        most=options.most,
    )


def main() -> int:
    """Write what was asked for; a problem is one line on standard error and exit code 2."""
    try:
        print(_write(_options()))
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

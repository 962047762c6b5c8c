"""The scenes that are shipped in `assets/scenes/`: `python assets/training/demo_scenes.py` writes them again.

Twelve held-out scenes, chosen by eye: single things, two and three, the same thing twice and thrice, with clutter and
without, on seven backgrounds that are free to ship. They are three times as large as what a model gets, so that they
look well on a page; `scenes.py --seed 7 --size 336` has the same pixels, as PNG.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.compose import Composer, Scene
from assets.training.scenes import entry, words, write_list

SEED = 7
SIZE_PX = 336
INDICES = (0, 8, 11, 19, 24, 30, 39, 52, 102, 126, 133, 137)


def scene_name(scene: Scene) -> str:
    """Return what a scene is called: its things, once each; the plural where there are several of one.

    Examples
    --------
    >>> scene_name(Composer("held-out").scene(30, seed=SEED))
    'camels'

    """
    kinds = [each.thing for each in scene.objects]
    said = [kind.plural if kinds.count(kind) > 1 and kind.plural else kind.noun for kind in dict.fromkeys(kinds)]
    return "-".join(said).replace(" ", "-")


def write_demo_scenes(folder: Path) -> Path:
    """Write the scenes, lossless, and return the path of their `scenes.json`."""
    composer = Composer("held-out", size_px=SIZE_PX)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in INDICES:
        scene = composer.scene(index, seed=SEED)
        file = f"{scene_name(scene)}.webp"
        Image.fromarray(scene.pixels).save(folder / file, lossless=True, method=6)
        entries.append(entry(scene, file=file, draws=words(composer, SEED, index)))
    return write_list(sorted(entries, key=lambda one: str(one["file"])), folder)


def main() -> None:
    """Write them where they are shipped from, or elsewhere."""
    parser = argparse.ArgumentParser(description="Write the scenes that are shipped with mmattn.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "scenes", metavar="DIR")
    print(write_demo_scenes(parser.parse_args().out))


if __name__ == "__main__":
    main()

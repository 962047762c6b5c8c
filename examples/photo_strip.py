"""Several photos beside one another, each whole at its own aspect: the picture at the top of the README.

python examples/photo_strip.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn
from mmattn import catalog
from mmattn.adapters.vit.timm import TimmOptions

PHOTOS = ("rocket", "coffee", "dandelions", "astronaut")


def main() -> Path:
    """Draw what the class token looked at in each photo."""
    options = read_options(photo=PHOTOS[0])
    drawings = []
    for name in PHOTOS:
        photo = catalog.photo_path(name)
        maps = mmattn.attend(options.model, image=photo, options=TimmOptions(keep_aspect=True))
        drawings.append(mmattn.overlay(mmattn.look(maps), title=""))
    return mmattn.side_by_side(drawings).save(options.picture("photo_strip"), width_px=1800)


if __name__ == "__main__":
    print(main())

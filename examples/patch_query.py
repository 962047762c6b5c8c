"""Point at a place in the photo and see what that patch looked at.

python examples/patch_query.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn

# Places in pixels of the photo: a dog's muzzle, and a box round the other dog's face.
POINT = (265, 330)
BOX = (330, 470, 390, 560)


def main() -> Path:
    """Draw the class token's, a patch's and a box's attention side by side."""
    options = read_options(photo="dogs")
    maps = mmattn.attend(options.model, image=options.photo)
    drawings = [mmattn.overlay(mmattn.look(maps, query=query)) for query in ("cls", POINT, BOX)]
    return mmattn.side_by_side(drawings).save(options.picture("patch_query"))


if __name__ == "__main__":
    print(main())

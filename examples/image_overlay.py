"""What a vision model looked at, on a photo: the shortest way from a picture to an overlay.

python examples/image_overlay.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn


def main() -> Path:
    """Draw the photo beside what the class token of the last layer looked at."""
    options = read_options(photo="dogs")
    maps = mmattn.attend(options.model, image=options.photo)
    seen = mmattn.look(maps)  # the last layer, mean over heads; mmattn.rollout(maps) passes all layers
    print(seen)  # where the peak is, in pixels of the photo

    drawing = mmattn.side_by_side([maps.media[0], mmattn.overlay(seen)], titles=["photo", "what the model looked at"])
    return drawing.save(options.picture("image_overlay"))


if __name__ == "__main__":
    print(main())

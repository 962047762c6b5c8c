"""What one patch can look at, in models that cut a picture differently.

The models have random weights: not the heat but its border is what this shows.

python examples/window_borders.py --out pictures
"""

from pathlib import Path

import timm
import torch
from options import read_options

import mmattn

# A name of timm's, the layer to look at, and what its attention is called.
MODELS = (
    ("swin_tiny_patch4_window7_224", 5, "Swin: shifted window"),
    ("maxvit_nano_rw_256", 5, "MaxViT: grid"),
    ("hiera_tiny_224", 2, "Hiera: mask unit"),
    ("halonet26t", 0, "HaloNet: block and halo"),
)
# In pixels of the photo: an eye of the cat.
POINT = (180.0, 108.0)


def main() -> Path:
    """Draw what the same place of a photo can look at in each model."""
    options = read_options(photo="chelsea")
    drawings = []
    for name, layer, _ in MODELS:
        torch.manual_seed(0)
        maps = mmattn.attend(timm.create_model(name).eval(), image=options.photo)
        drawings.append(mmattn.overlay(mmattn.look(maps, layer=layer, query=POINT)))
    return mmattn.side_by_side(drawings, titles=[title for _, _, title in MODELS]).save(
        options.picture("window_borders")
    )


if __name__ == "__main__":
    print(main())

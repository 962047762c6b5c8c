"""Attention of a module that no library knows: capture it, then say what its tokens are.

The module is written here, in a few lines, without weights: each patch of the photo looks at patches
of its own color. `mmattn.capture` sees the softmax meet its values; the grid says where tokens lie.

python examples/capture_any_module.py --out pictures
"""

from pathlib import Path

import torch
from options import read_options
from torch import nn

import mmattn
from mmattn.readers import read_photo
from mmattn.schema.axes import PatchGrid, Slots

PATCH_PX = 12


class ColorAttention(nn.Module):
    """Patches attend to patches whose mean color is near."""

    def forward(self, colors: torch.Tensor) -> torch.Tensor:
        """Return, for each patch, the mean of the colors that it looked at."""
        distance = torch.cdist(colors, colors)
        return torch.softmax(-distance / 0.04, dim=-1) @ colors


def main() -> Path:
    """Draw which patches one patch of the fig looks at."""
    options = read_options(photo="fig")
    photo = read_photo(options.photo)
    pixels = torch.from_numpy(photo.pixels).permute(2, 0, 1)[None] / 255
    patches = nn.functional.avg_pool2d(pixels, PATCH_PX)  # one mean color a patch
    rows, cols = patches.shape[-2:]

    model = ColorAttention()
    with mmattn.capture(model) as recording:
        model(patches.flatten(2).transpose(1, 2))
    layer = recording.maps[0]
    print(recording.maps)

    # A capture knows positions, not places: here the user says what they are.
    to_input = torch.eye(2, 3).double().numpy()  # model pixels are the photo's own
    grid = PatchGrid.plain(
        rows=rows, cols=cols, patch_px=(PATCH_PX, PATCH_PX), size_px=photo.size_px, to_input=to_input
    )
    token = grid.token_at((415, 240))
    seen = mmattn.Relevance(
        values=layer.weights(queries=[token])[0],
        axis=grid,
        query_axis=Slots.count(1),
        query_tokens=((token,),),
        labels=("a patch of the fig",),
        method="color attention",
        media=photo,
        source=recording.maps.source,
    )
    return mmattn.overlay(seen).save(options.picture("capture_any_module"))


if __name__ == "__main__":
    print(main())

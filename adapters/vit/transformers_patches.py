"""Pictures that reach a model cut into patches already, at their own aspect (SigLIP 2): there and back.

`pixel_values` is then `[sample, patch, values]`, `spatial_shapes` says how many rows and columns of
patches there are, and what is longer than they need is padding that a mask keeps out. Here a
picture is an image again, `[channel, row, col]`, so that everything else is as for all models; the
model runs on exactly its patches, and no padding is needed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmattn.errors import InputError

_CHANNELS = 3


def is_cut(encoded: Any) -> bool:
    """Whether an image processor returned patches instead of images."""
    return isinstance(encoded, Mapping) and "spatial_shapes" in encoded


def images_of(encoded: Mapping[str, Any]) -> Float[Tensor, "sample channel row col"]:
    """Return the images that patches were cut from.

    Raises
    ------
    InputError
        Pictures of several shapes, or patches that do not fill them.
    """
    values, shapes = encoded["pixel_values"], torch.as_tensor(encoded["spatial_shapes"]).tolist()
    if len({tuple(shape) for shape in shapes}) != 1 or not isinstance(values, Tensor) or values.ndim != 3:
        raise InputError(
            f"The patches have the shapes {shapes}. A batch would have one shape, and pixel_values "
            "[sample, patch, values]. Attend the pictures one by one."
        )
    rows, cols = shapes[0]
    side = round((values.shape[2] / _CHANNELS) ** 0.5)
    if rows * cols > values.shape[1] or side * side * _CHANNELS != values.shape[2]:
        raise InputError(
            f"pixel_values is {list(values.shape)} for {rows} x {cols} patches. It would have that many or more, "
            "with three channels each. Pass what the image processor returned."
        )
    cut = values[:, : rows * cols].float().reshape(len(values), rows, cols, side, side, _CHANNELS)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(values), _CHANNELS, rows * side, cols * side)


def patches_of(images: Float[Tensor, "sample channel row col"], *, patch_px: int) -> dict[str, Tensor]:
    """Return images cut into patches row by row, as the model takes them; the inverse of `images_of`.

    Examples
    --------
    >>> images = torch.rand(1, 3, 32, 48)
    >>> bool((images_of(patches_of(images, patch_px=16)) == images).all())
    True
    """
    samples, channels, height, width = images.shape
    rows, cols = height // patch_px, width // patch_px
    cut = images[:, :, : rows * patch_px, : cols * patch_px].reshape(samples, channels, rows, patch_px, cols, patch_px)
    values = cut.permute(0, 2, 4, 3, 5, 1).reshape(samples, rows * cols, patch_px * patch_px * channels)
    device = images.device
    return {
        "pixel_values": values,
        "pixel_attention_mask": torch.ones(samples, rows * cols, dtype=torch.int32, device=device),
        "spatial_shapes": torch.tensor([[rows, cols]] * samples, device=device),
    }

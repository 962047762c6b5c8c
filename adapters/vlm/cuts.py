"""How views are taken out of what a processor of pictures and texts returned for its first picture.

one       pixel_values [1, channel, row, col]             the picture
several   pixel_values [view, channel, row, col]          tiles and the picture, in the tower's order
nested    pixel_values [1, view, channel, row, col]       likewise
sized     pixel_values padded, image_sizes                the picture without padding
packed    pixel_values [patch, values], image_grid_thw    the picture, put together of its patches
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def several(encoded: Mapping[str, Any], settings: Any) -> list[np.ndarray]:
    """Return the views of a picture, of which there may be one."""
    return list(encoded["pixel_values"].float().numpy())


def nested(encoded: Mapping[str, Any], settings: Any) -> list[np.ndarray]:
    """Return the views of the first picture."""
    return list(encoded["pixel_values"][0].float().numpy())


def sized(encoded: Mapping[str, Any], settings: Any) -> list[np.ndarray]:
    """Return the first picture without what pads it to the size of others."""
    rows, cols = np.asarray(encoded["image_sizes"])[0].tolist()
    return [encoded["pixel_values"][0].float().numpy()[:, :rows, :cols]]


def packed(encoded: Mapping[str, Any], settings: Any) -> list[np.ndarray]:
    """Return the only view of a picture that was cut into patches, those of one token together."""
    merge, patch, depth = settings.spatial_merge_size, settings.patch_size, settings.temporal_patch_size
    _, rows, cols = np.asarray(encoded["image_grid_thw"])[0].tolist()
    values = encoded["pixel_values"].float().numpy()[: rows * cols]
    cut = values.reshape(rows // merge, cols // merge, merge, merge, -1, depth, patch, patch)[:, :, :, :, :, 0]
    return [cut.transpose(4, 0, 2, 5, 1, 3, 6).reshape(-1, rows * patch, cols * patch)]

"""Pictures that reach timm's NaFlexViT cut into patches already, packed into sequences of one length: there and back.

`patches` is `[sample, patch, values]` (or `[sample, patch, row, col, channel]`), `patch_coord` says at which row and
column of patches each stands, and `patch_valid` which are real: the rest pads the sequence. Here a picture is an
image again, so that everything else is as for all models; the model runs on its patches in their own order, padding
and all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmattn.errors import InputError

_NAMES = ("patches", "patch_coord", "patch_valid")


def is_packed(inputs: Any) -> bool:
    """Whether inputs are what timm's NaFlex collator makes."""
    return isinstance(inputs, Mapping) and "patches" in inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """How images are cut and packed.

    Parameters
    ----------
    coord, valid
        Row and column of each patch of the sequence, and whether it is one.
    patch_px
        Rows and columns of pixels of a patch.
    is_flat
        Whether patches are given as one row of values.
    channels_last
        Whether a patch's values are `[row, col, channel]`; else `[channel, row, col]`.

    """

    coord: Int[Tensor, "patch 2"]
    valid: Bool[Tensor, " patch"]
    patch_px: tuple[int, int]
    is_flat: bool
    channels_last: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, cols = (self.coord[self.valid].amax(dim=0) + 1).tolist()
        return rows, cols

    @property
    def form(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Which patch stands where in the sequence, to tell packings apart."""
        return tuple(self.coord.flatten().tolist()), tuple(self.valid.tolist())

    def __call__(self, model: nn.Module, images: Float[Tensor, "sample channel row col"]) -> Any:
        """Call the model with images, cut and packed."""
        return model(self.packed(images))

    def packed(self, images: Float[Tensor, "sample channel row col"]) -> dict[str, Tensor]:
        """Return images cut and packed as the model takes them."""
        samples, channels = images.shape[:2]
        (rows, cols), (high, wide) = self.shape, self.patch_px
        cut = images.reshape(samples, channels, rows, high, cols, wide).permute(0, 2, 4, *self.order)
        cut = functional.pad(cut.reshape(samples, rows * cols, high * wide * channels), (0, 0, 0, 1))
        index = torch.where(self.valid, self.coord @ torch.tensor([cols, 1]), rows * cols)  # padding: the added one
        patches = cut[:, index]
        if not self.is_flat:
            sizes = {3: high, 5: wide, 1: channels}
            patches = patches.reshape(samples, len(index), *(sizes[place] for place in self.order))
        device = images.device
        return {
            "patches": patches,
            "patch_coord": self.coord.to(device).expand(samples, -1, -1),
            "patch_valid": self.valid.to(device).expand(samples, -1),
        }

    @property
    def order(self) -> tuple[int, int, int]:
        """Where the rows, columns and channels of a patch's values come from, in `[sample, c, row, y, col, x]`."""
        return (3, 5, 1) if self.channels_last else (1, 3, 5)


def unpacked(
    inputs: Mapping[str, Any], *, patch_px: tuple[int, int], channels_last: bool = True
) -> tuple[Float[Tensor, "sample channel row col"], Packing]:
    """Return the images that patches were cut from, and how.

    Parameters
    ----------
    inputs
        `patches`, `patch_coord` and `patch_valid`, as timm's NaFlex collator makes them.
    patch_px
        Rows and columns of pixels of a patch; patches that are not flat say it themselves.
    channels_last
        How the model cuts: `[row, col, channel]`, or `[channel, row, col]`.

    Raises
    ------
    InputError
        Something is missing or does not fit, or samples are packed differently.

    """
    missing = [name for name in _NAMES if not isinstance(inputs.get(name), Tensor)]
    if missing:
        raise InputError(
            f"inputs= lacks {', '.join(missing)}. Packed patches are {', '.join(_NAMES)}, as timm's NaFlex collator "
            "makes them. Pass all three, or a tensor [sample, 3, row, col]."
        )
    patches, coord, valid = (inputs[name].detach() for name in _NAMES)
    is_flat = patches.ndim == 3
    high, wide = patch_px
    if patches.ndim == 5:
        high, wide = patches.shape[2:4] if channels_last else patches.shape[3:5]
    flat = patches.flatten(2)
    fits = patches.ndim in (3, 5) and coord.shape == (*patches.shape[:2], 2) and valid.shape == patches.shape[:2]
    if not fits or flat.shape[2] % (high * wide) or not bool(valid.any(dim=1).all()):
        raise InputError(
            f"patches is {list(patches.shape)}, patch_coord {list(coord.shape)}, patch_valid {list(valid.shape)}. They "
            f"would be [sample, patch, {high * wide} x channels], [sample, patch, 2] and [sample, patch], each sample "
            "with a valid patch. Pass what timm's NaFlex collator made."
        )
    if bool((coord != coord[:1])[valid].any()) or bool((valid != valid[:1]).any()):
        raise InputError(
            f"The {len(patches)} samples have patches in different places: pictures of several aspects. A batch here "
            "has one. Attend them one by one."
        )
    packing = Packing(
        coord=coord[0].long().cpu(),
        valid=valid[0].bool().cpu(),
        patch_px=(high, wide),
        is_flat=is_flat,
        channels_last=channels_last,
    )
    (rows, cols), channels = packing.shape, flat.shape[2] // (high * wide)
    images = flat.new_zeros(len(flat), rows, cols, high * wide * channels)
    at = packing.coord[packing.valid].to(flat.device)
    images[:, at[:, 0], at[:, 1]] = flat[:, packing.valid.to(flat.device)]
    sizes = {3: high, 5: wide, 1: channels}
    images = images.reshape(len(flat), rows, cols, *(sizes[place] for place in packing.order))
    back = [0, 0, 0, 0, 0, 0]
    for place, dim in enumerate((0, 2, 4, *packing.order)):
        back[dim] = place
    return images.permute(back).reshape(len(flat), channels, rows * high, cols * wide), packing

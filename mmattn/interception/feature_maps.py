"""Feature maps: what an adapter may say of a picture model beside its attention.

A network of convolutions has no attention, and yet its last feature map is a vector for each place of the picture, and
what the model answers is made of those. Where they stand, gradients can be drawn.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from mmattn.interception.protocol import Prepared
from mmattn.schema.axes import PatchGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMap:
    """The last feature map of a picture model, behind which its places are pooled.

    Parameters
    ----------
    module
        Path of the module that gives it.
    channels
        The dimension of its channels; the others are samples, rows and columns.
    axes
        Its places row by row, one axis a sample, or one for all.
    """

    module: str
    channels: int
    axes: tuple[PatchGrid, ...]


@runtime_checkable
class MapsFeatures(Protocol):
    """What an adapter of pictures may have beside `Adapter`."""

    def feature_map(self, model: nn.Module, prepared: Prepared) -> FeatureMap | None:
        """Return the last feature map; None where patches are tokens to the end, or a place cannot be told."""
        ...

"""What resize, crop, pad and tiles did to a picture, and the way back.

Preprocessing is a sequence of steps. Each maps a point of its input to a point of its output by a
scale and a shift, in continuous pixel coordinates: the pixel in column c covers c to c + 1, so
resizing maps edge to edge, as Pillow and torch (`align_corners=False`) do.

    original --Resize--> --Crop--> model          to_input goes from right to left

A crop may reach outside (then it pads), and a tile is a crop, so one composition serves all.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mmattn.errors import InputError

Size = tuple[int, int]  # width, height


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Scaled to `size_px` (width, height), edges on edges."""

    size_px: Size

    def result_px(self, size_px: Size) -> Size:
        """Return the size of the output for an input of this size."""
        return self.size_px

    def matrix(self, size_px: Size) -> Float[np.ndarray, "2 3"]:
        """Return input to output pixels, `[2, 3]`, for an input of this size."""
        (w, h), (width, height) = self.size_px, size_px
        return np.array([[w / width, 0.0, 0.0], [0.0, h / height, 0.0]])

    def __str__(self) -> str:
        return f"resized to {self.size_px[0]} x {self.size_px[1]} px"


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Cut out `size_px` from (`left`, `top`); where it reaches outside, it pads. A tile is a crop."""

    left: float
    top: float
    size_px: Size

    def result_px(self, size_px: Size) -> Size:
        """Return the size of the output for an input of this size."""
        return self.size_px

    def matrix(self, size_px: Size) -> Float[np.ndarray, "2 3"]:
        """Return input to output pixels, `[2, 3]`, for an input of this size."""
        return np.array([[1.0, 0.0, -self.left], [0.0, 1.0, -self.top]])

    def __str__(self) -> str:
        return f"cropped to {self.size_px[0]} x {self.size_px[1]} px"


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Widened by some pixels on each side; negative numbers cut."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def result_px(self, size_px: Size) -> Size:
        """Return the size of the output for an input of this size."""
        return size_px[0] + self.left + self.right, size_px[1] + self.top + self.bottom

    def matrix(self, size_px: Size) -> Float[np.ndarray, "2 3"]:
        """Return input to output pixels, `[2, 3]`, for an input of this size."""
        return np.array([[1.0, 0.0, self.left], [0.0, 1.0, self.top]])

    def __str__(self) -> str:
        return f"padded by {self.left}, {self.top}, {self.right}, {self.bottom} px (left, top, right, bottom)"


Step = Resize | Crop | Pad


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The steps that took a picture of `size_px` to what the model gets.

    Examples
    --------
    >>> resized = Geometry(size_px=(640, 480)).then(Resize(size_px=(298, 224)))
    >>> seen = resized.then(Crop(left=37, top=0, size_px=(224, 224)))
    >>> seen.model_px, (seen.to_input.round(3) + 0.0).tolist()
    ((224, 224), [[2.148, 0.0, 79.463], [0.0, 2.143, 0.0]])

    """

    size_px: Size
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> "Geometry":
        """Return the geometry with one more step at its end."""
        result = step.result_px(self.model_px)
        if min(result) < 1:
            raise InputError(
                f"A picture of {self.model_px[0]} x {self.model_px[1]} px, {step}, is {result[0]} x {result[1]} px. "
                "A step leaves at least one pixel. Pass a picture that is less thin, or another transform."
            )
        return replace(self, steps=(*self.steps, step))

    @property
    def model_px(self) -> Size:
        """Width and height of what comes out at the end."""
        size = self.size_px
        for step in self.steps:
            size = step.result_px(size)
        return size

    @property
    def to_model(self) -> Float[np.ndarray, "2 3"]:
        """Return `[2, 3]`: pixels of the original (x, y, 1) to model pixels."""
        size, matrix = self.size_px, np.eye(3)
        for step in self.steps:
            matrix = np.vstack([step.matrix(size), [0.0, 0.0, 1.0]]) @ matrix
            size = step.result_px(size)
        return np.asarray(matrix[:2])

    @property
    def to_input(self) -> Float[np.ndarray, "2 3"]:
        """Return `[2, 3]`: model pixels (x, y, 1) to pixels of the original, the inverse of `to_model`."""
        (x_scale, _, x_shift), (_, y_scale, y_shift) = self.to_model.tolist()
        return np.array([[1 / x_scale, 0.0, -x_shift / x_scale], [0.0, 1 / y_scale, -y_shift / y_scale]])

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps)) or "as it was"

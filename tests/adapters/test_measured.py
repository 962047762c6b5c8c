"""Where a processor puts pixels is measured with coordinates; steps that are written down here are the slow twin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from mmattn.adapters.measured import measured_geometry
from mmattn.adapters.pixels import Crop, Geometry, Pad, Resize
from mmattn.errors import InputError


def done_by(geometry, *, mode=tv.InterpolationMode.BICUBIC):
    """A processor that does exactly the steps of a geometry."""

    def run(pixels):
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        for step in geometry.steps:
            match step:
                case Resize():
                    image = tv.resize(image, [step.size_px[1], step.size_px[0]], interpolation=mode, antialias=True)
                case Crop():
                    image = tv.crop(image, int(step.top), int(step.left), step.size_px[1], step.size_px[0])
                case Pad():
                    image = tv.pad(image, [step.left, step.top, step.right, step.bottom])
        return image.float().numpy()

    return run


def apart_px(one, other):
    """How far two geometries put a pixel of the model from one another, at most, in pixels of the model."""
    assert one.model_px == other.model_px
    width, height = one.model_px
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=float).T
    there = np.vstack([one.to_input @ corners, np.ones(4)])
    return float(np.abs(other.to_model @ there - corners[:2]).max())


def steps(size, resized, *, left=0, top=0, cut=None):
    geometry = Geometry(size_px=size).then(Resize(size_px=resized))
    return geometry if cut is None else geometry.then(Crop(left=left, top=top, size_px=cut))


CASES = {
    "smaller": steps((640, 480), (224, 224)),
    "smaller and cut": steps((640, 480), (341, 256), left=58, top=16, cut=(224, 224)),
    "much smaller": steps((4000, 3000), (298, 224), left=37, cut=(224, 224)),
    "larger": steps((57, 40), (224, 224)),
    "much larger": steps((16, 11), (512, 384)),
    "larger than the levels": steps((250, 300), (800, 960)),
    "cut alone": Geometry(size_px=(300, 200)).then(Crop(left=31, top=17, size_px=(128, 160))),
    "cut far out": steps((900, 900), (600, 600), left=376, top=0, cut=(224, 224)),
    "padded": steps((500, 375), (256, 192)).then(Pad(bottom=64)),
    "padded around": steps((200, 300), (160, 240)).then(Pad(left=48, top=8, right=48, bottom=8)),
    "as it was": Geometry(size_px=(320, 240)),
    "one side smaller, one larger": steps((1000, 30), (128, 128)),
}


@pytest.mark.parametrize("mode", [tv.InterpolationMode.BILINEAR, tv.InterpolationMode.BICUBIC])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_found_from_what_they_do(name, mode):
    expected = CASES[name]
    found = measured_geometry(done_by(expected, mode=mode), size_px=expected.size_px, named="steps")
    assert apart_px(found, expected) < 1e-6
    assert str(found) == str(expected)


@given(
    size=st.tuples(st.integers(24, 400), st.integers(24, 400)),
    resized=st.tuples(st.integers(32, 300), st.integers(32, 300)),
    data=st.data(),
)
def test_any_resize_and_cut_is_found_to_within_a_pixel(size, resized, data):
    cut = tuple(data.draw(st.integers((side + 1) // 2, side)) for side in resized)
    left, top = (data.draw(st.integers(0, side - kept)) for side, kept in zip(resized, cut, strict=True))
    expected = steps(size, resized, left=left, top=top, cut=cut)
    found = measured_geometry(done_by(expected), size_px=size, named="steps")
    assert apart_px(found, expected) <= 0.75


def test_swapped_channels_do_not_matter():
    expected = CASES["smaller and cut"]
    swapped = lambda pixels: done_by(expected)(pixels)[::-1].copy()  # noqa: E731
    assert apart_px(measured_geometry(swapped, size_px=expected.size_px, named="swapped"), expected) < 1e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.transpose(Image.Transpose.ROTATE_180),
        lambda image: image.rotate(20, Image.Resampling.BILINEAR),
    ],
)
def test_what_is_no_resize_and_cut_is_refused(change):
    run = lambda pixels: np.asarray(change(Image.fromarray(pixels))).transpose(2, 0, 1).astype(float)  # noqa: E731
    with pytest.raises(InputError, match="a strange one does more to a picture than resize, crop and pad it"):
        measured_geometry(run, size_px=(120, 90), named="a strange one")


def test_borders_that_repeat_the_picture_are_refused():
    def run(pixels):
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return tv.pad(image, [20, 20, 20, 20], padding_mode="reflect").float().numpy()

    with pytest.raises(InputError, match="more to a picture than resize, crop and pad"):
        measured_geometry(run, size_px=(120, 90), named="reflecting")


def test_a_picture_too_thin_to_be_measured_is_refused():
    with pytest.raises(InputError, match="3 x 90 px, too few"):
        measured_geometry(done_by(CASES["smaller"]), size_px=(3, 90), named="steps")

"""A window of a resized picture equals Pillow's whole one, cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmattn.adapters.elongated import resize_window
from mmattn.adapters.pixels import Crop
from mmattn.errors import InputError

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
sides = st.integers(1, 60)


@settings(max_examples=200, deadline=None)
@given(
    old=st.tuples(sides, sides),
    new=st.tuples(sides, sides),
    corner=st.tuples(st.integers(-9, 40), st.integers(-9, 40)),
    interpolation=st.sampled_from(sorted(FILTERS)),
)
def test_window_equals_pillows_result_cut(old, new, corner, interpolation):
    pixels = np.random.default_rng(sum(old)).integers(0, 256, (old[1], old[0], 3), dtype=np.uint8)
    left, top = min(corner[0], new[0] - 1), min(corner[1], new[1] - 1)
    image, crop = Image.fromarray(pixels), Crop(left=left, top=top, size_px=(12, 10))
    whole = image.resize(new, FILTERS[interpolation]).crop((left, top, left + 12, top + 10))
    window = resize_window(image, size_px=new, crop=crop, interpolation=interpolation)
    assert np.array_equal(np.asarray(window), np.asarray(whole))


def test_gray_stays_gray():
    image = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    window = resize_window(image, size_px=(37, 21), crop=Crop(left=5, top=4, size_px=(9, 8)), interpolation="bicubic")
    assert np.array_equal(np.asarray(window), np.asarray(image.resize((37, 21), Image.Resampling.BICUBIC))[4:12, 5:14])


def test_unknown_interpolation_is_refused():
    with pytest.raises(InputError, match="nearest"):
        resize_window(
            Image.new("RGB", (4, 4)), size_px=(8, 8), crop=Crop(left=0, top=0, size_px=(2, 2)), interpolation="nearest"
        )

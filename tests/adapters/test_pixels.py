"""Steps compose, and the way back is the inverse of the way there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmattn.adapters.pixels import Crop, Geometry, Pad, Resize
from mmattn.errors import InputError

sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)
steps = st.one_of(
    st.builds(Resize, size_px=sizes),
    st.builds(Crop, left=st.integers(-50, 50), top=st.integers(-50, 50), size_px=sizes),
    st.builds(
        Pad, left=st.integers(0, 30), top=st.integers(0, 30), right=st.integers(0, 30), bottom=st.integers(0, 30)
    ),
)
points = st.tuples(st.floats(-100, 3000), st.floats(-100, 3000))


def composed(size_px, chain):
    geometry = Geometry(size_px=size_px)
    for step in chain:
        geometry = geometry.then(step)
    return geometry


def moved(affine, point):
    return affine @ np.array([*point, 1.0])


@given(sizes, st.lists(steps, max_size=5), points)
def test_there_and_back_is_the_identity(size_px, chain, point):
    geometry = composed(size_px, chain)
    there = moved(geometry.to_model, point)
    back = moved(geometry.to_input, there)
    scale = np.abs(geometry.to_input).max() * (1 + np.abs(there).max())
    assert np.allclose(back, point, rtol=1e-9, atol=1e-11 * max(1.0, scale))


@given(sizes, st.lists(steps, min_size=1, max_size=5), points)
def test_the_whole_is_its_steps_one_after_the_other(size_px, chain, point):
    at, size = np.array(point), size_px
    for step in chain:
        if isinstance(step, Resize):
            at = at * (np.array(step.size_px) / np.array(size))
        elif isinstance(step, Crop):
            at = at - (step.left, step.top)
        else:
            at = at - (-step.left, -step.top)
        size = step.result_px(size)
    geometry = composed(size_px, chain)
    assert geometry.model_px == size
    assert np.allclose(moved(geometry.to_model, point), at, rtol=1e-9, atol=1e-6)


def test_resize_maps_edges_on_edges():
    geometry = Geometry(size_px=(640, 480)).then(Resize(size_px=(320, 120)))
    assert moved(geometry.to_input, (320, 120)).tolist() == [640, 480]
    assert moved(geometry.to_input, (0, 0)).tolist() == [0, 0]


def test_a_step_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="at least one pixel"):
        Geometry(size_px=(10, 10)).then(Pad(left=-6, right=-4))

"""Regions of a detector: boxes that may overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmattn
from mmattn.errors import InputError, PlaceError
from mmattn.schema.axes import Joined, Regions, Slots
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense

NESTED = Regions.of(np.array([[0.0, 0, 80, 60], [10, 10, 30, 30], [20, 20, 24, 24]]), size_px=(80, 60))


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=8))
def test_the_center_of_a_region_belongs_to_it_or_to_a_smaller_one(boxes):
    axis = Regions.of(np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=float), size_px=(80, 80))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in axis.places()]
    for token, (x0, y0, x1, y1) in enumerate(axis.places()):
        found = axis.token_at(((x0 + x1) / 2, (y0 + y1) / 2))
        assert areas[found] <= areas[token]
        assert token in axis.tokens_in(axis.place(token))


def test_a_point_belongs_to_the_smallest_region_that_holds_it():
    assert [NESTED.token_at(point) for point in ((1.0, 1.0), (10.0, 10.0), (23.9, 20.0), (24.0, 20.0))] == [0, 1, 2, 1]
    assert NESTED.tokens_in((0, 0, 25, 25)).tolist() == [1, 2]
    assert NESTED.tokens_in((70, 50, 80, 60)).tolist() == [0]
    with pytest.raises(PlaceError, match=r"No region of the picture holds the point \(80, 5\)"):
        NESTED.token_at((80.0, 5.0))
    with pytest.raises(PlaceError, match="lies in the box"):
        NESTED.tokens_in((90, 90, 95, 95))


def test_a_box_has_an_extent_and_each_region_one():
    with pytest.raises(InputError, match="without an extent"):
        Regions.of(np.array([[0.0, 0, 0, 60]]), size_px=(80, 60))
    with pytest.raises(InputError, match="2 boxes for 1 regions"):
        Regions(roles=("content",), boxes=np.ones((2, 4)), size_px=(80, 60))


def test_regions_are_saved_and_stand_in_a_sequence(tmp_path):
    both = Joined.of({"image": NESTED, "slots": Slots.count(1)}, tokens=[[1, 2, 3], [0]])
    assert (both.place(2), both.token_at((12.0, 12.0))) == ((10, 10, 30, 30), 2)
    layer = AttentionLayer(
        name="a",
        query=(both,),
        key=(NESTED,),
        heads=1,
        kind="cross",
        stream="cross",
        storage=(Blocks(source=Dense(weights=torch.full((1, 1, 4, 3), 1 / 3))),),
    )
    AttentionMaps(layers=(layer,)).save(tmp_path / "maps.safetensors")
    loaded = mmattn.load(tmp_path / "maps.safetensors")
    assert loaded[0].key_axis == NESTED
    assert loaded[0].query_axis == both

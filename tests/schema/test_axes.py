"""Every axis: place and token_at are an inverse pair, and what has no place says so."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from axis_strategies import AXES, PLACED, nodes, patch_grids, tubelet_grids

from mmattn.errors import InputError, NotFoundError, PlaceError
from mmattn.schema.axes import Axis, Joined, Nodes, PatchGrid, Tokens

# beartype looks at a random item of a list; hypothesis would rather we did not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
quick = settings(max_examples=150, deadline=None)


def center(axis: Axis, token: int):
    """The centre of a token's place, written out for each axis; a point of `token_at`."""
    place = axis.place(token)
    if isinstance(place, int):
        return place
    if len(place) == 2:
        return (place[0] + place[1]) / 2
    if type(axis).__name__ == "SpectrogramGrid":
        return ((place[0] + place[1]) / 2, (place[2] + place[3]) / 2)
    middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    return middle if len(place) == 4 else (*middle, (place[4] + place[5]) / 2)


def corner(axis: Axis, token: int):
    place = axis.place(token)
    if len(place) == 2:
        return place[0]
    if type(axis).__name__ == "SpectrogramGrid":
        return (place[0], place[2])
    return place[:2] if len(place) == 4 else (*place[:2], place[4])


@quick
@given(AXES)
def test_the_centre_of_every_content_token_leads_back_to_it(axis):
    for token in axis.content.tolist():
        if isinstance(axis, Joined):
            part = axis.part_of(token)
            inner, where = axis.part(part)
            at = int(np.flatnonzero(where == token)[0])
            assert axis.token_at(center(inner, at), part=part) == token
        else:
            assert axis.token_at(center(axis, token)) == token


@quick
@given(PLACED)
def test_the_lower_corner_of_a_cell_belongs_to_it_exactly(axis):
    for token in axis.content.tolist():
        assert axis.token_at(corner(axis, token)) == token


@quick
@given(PLACED)
def test_a_place_holds_its_own_token_alone(axis):
    for token in axis.content.tolist():
        assert axis.tokens_in(axis.place(token)).tolist() == [token]


@quick
@given(PLACED)
def test_cells_never_overlap(axis):
    bounds = axis.lattice.bounds(axis.content)
    low, high = bounds[:, None, :, 0], bounds[:, None, :, 1]
    shared = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
    overlap = (shared > 0).all(axis=-1)
    np.fill_diagonal(overlap, False)
    assert not overlap.any()


@quick
@given(AXES)
def test_places_are_those_of_the_content_tokens_in_order(axis):
    places = axis.places()
    flat = [p for part in places for p in part] if isinstance(axis, Joined) else places
    one_by_one = [np.asarray(axis.place(token)) for token in axis.content]
    assert len(flat) == len(one_by_one)
    assert all(np.array_equal(a, b) for a, b in zip(flat, one_by_one, strict=True))


@quick
@given(AXES)
def test_special_tokens_have_no_place_and_say_which_do(axis):
    assert sorted([*axis.content.tolist(), *(t for ts in axis.special().values() for t in ts)]) == list(
        range(len(axis))
    )
    for role, found in axis.special().items():
        with pytest.raises(PlaceError, match=f"Token {found[0]} has no place .*its role is {role}"):
            axis.place(found[0])
    for wrong in (-1, len(axis)):
        with pytest.raises(NotFoundError, match=f"There is no token {wrong}: this axis has {len(axis)} tokens"):
            axis.place(wrong)


@quick
@given(AXES)
def test_an_axis_equals_its_copy_and_is_hashed_alike(axis):
    other = copy.deepcopy(axis)
    assert axis == other
    assert hash(axis) == hash(other)
    assert "\n" not in repr(axis)


@quick
@given(st.lists(AXES, min_size=2, max_size=2))
def test_axes_that_place_a_token_elsewhere_are_not_equal(pair):
    one, two = pair
    if one == two:
        assert type(one) is type(two)
        assert [one.place(t) for t in one.content] == [two.place(t) for t in two.content]


@quick
@given(patch_grids(), st.integers(0, 2**32 - 1))
def test_a_patch_grid_scatters_values_to_rows_and_columns(axis, seed):
    values = np.random.default_rng(seed).normal(size=len(axis))
    grid = axis.grid(values)
    for token in range(len(axis)):
        if axis.cells[token] >= 0:
            assert grid[axis.cells[token] // axis.cols, axis.cells[token] % axis.cols] == values[token]
    assert np.isfinite(grid).sum() == len(axis.content)


@quick
@given(patch_grids())
def test_a_patch_is_the_image_of_its_model_pixels_under_the_affine(axis):
    for token in axis.content.tolist():
        row, col = divmod(int(axis.cells[token]), axis.cols)
        width, height = axis.patch_px
        x0, y0, x1, y1 = axis.limits_px or (0, 0, axis.cols * width, axis.rows * height)
        left, right = (x0 if col == 0 else col * width), (x1 if col == axis.cols - 1 else (col + 1) * width)
        top, bottom = (y0 if row == 0 else row * height), (y1 if row == axis.rows - 1 else (row + 1) * height)
        corners = np.array([[x, y, 1.0] for x in (left, right) for y in (top, bottom)])
        points = corners @ axis.to_input.T
        np.testing.assert_allclose(axis.place(token), [*points.min(axis=0), *points.max(axis=0)], atol=1e-8)


@quick
@given(tubelet_grids(), st.data())
def test_a_frame_between_two_samples_belongs_to_the_tubelet_before_it(axis, data):
    at = data.draw(st.floats(float(axis.times_s[0]), axis.end_s, exclude_max=True))
    x0, y0, *_ = axis.place(int(axis.content[0]))
    step = int(np.searchsorted(axis.times_s[:: axis.depth], at, side="right")) - 1
    token = axis.token_at((x0, y0, at))
    assert axis.cells[token] // (axis.rows * axis.cols) == step
    assert len(axis.frames_of(step)) == axis.depth


@quick
@given(nodes())
def test_nodes_are_found_by_id_by_label_and_by_their_id_in_the_full_graph(axis):
    for token in axis.content.tolist():
        if axis.labels:
            assert axis.token_of_label(axis.labels[token]) == token
        full = axis.ids if axis.full_ids is None else axis.full_ids
        assert axis.token_of_full_id(full[token]) == token
    with pytest.raises(PlaceError, match="There is no node 1001 in the graph"):
        axis.token_at(1001)
    with pytest.raises(NotFoundError, match="is called 'nobody'"):
        axis.token_of_label("nobody")


def test_a_point_that_the_crop_cut_off_was_not_seen():
    crop = np.array([[2.0, 0.0, 100.0], [0.0, 2.0, 50.0]])
    grid = PatchGrid.plain(rows=14, cols=14, patch_px=(16, 16), size_px=(700, 500), to_input=crop)
    assert grid.seen_box() == (100.0, 50.0, 548.0, 498.0)
    assert grid.token_at((100.0, 50.0)) == 0
    for point in ((99.9, 50.0), (548.0, 60.0), (float("nan"), 60.0)):
        with pytest.raises(PlaceError, match=r"did not see the point .* It saw x from 100.0 to 548.0"):
            grid.token_at(point)


def test_an_affine_that_turns_by_ten_degrees_has_no_boxes():
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    with pytest.raises(InputError, match="turn by right angles"):
        PatchGrid.plain(
            rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16), to_input=np.array([[c, -s, 0.0], [s, c, 0.0]])
        )


def test_a_cell_that_stands_twice_is_refused():
    with pytest.raises(InputError, match="each at most once"):
        PatchGrid(
            roles=("content", "content"),
            rows=1,
            cols=2,
            patch_px=(8, 8),
            size_px=(16, 8),
            to_input=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            cells=np.array([1, 1]),
        )


def test_the_edges_of_a_resized_picture_are_the_numbers_that_a_person_types():
    grid = PatchGrid.plain(rows=37, cols=37, patch_px=(14, 14), size_px=(1110, 37))
    assert [grid.token_at((30.0 * i, 0.0)) for i in range(37)] == list(range(37))
    assert [grid.token_at((0.0, float(i))) for i in range(37)] == [37 * i for i in range(37)]


def test_a_joined_point_needs_its_part_where_two_fit():
    tile = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16))
    text = Tokens.of("a cat", pieces=["a", "cat"], spans=[(0, 1), (2, 5)])
    axis = Joined.of(
        {"whole": tile, "tile": tile, "text": text}, tokens=[[0, 1, 2, 3], [4, 5, 7, 8], [9, 10]], rest={6: "newline"}
    )
    assert axis.roles[6] == "newline"
    assert axis.token_at((9.0, 9.0), part="tile") == 8
    assert axis.token_at(3) == 10
    assert axis.tokens_in((0, 5)).tolist() == [9, 10]
    assert axis.part_of(6) is None
    with pytest.raises(PlaceError, match=r"is in 2 of the parts .* Pass part= one of: whole, tile"):
        axis.token_at((9.0, 9.0))
    with pytest.raises(NotFoundError, match=r"There is no part 'tiles'. The parts are: tile"):
        axis.token_at((9.0, 9.0), part="tiles")
    with pytest.raises(PlaceError, match="did not see"):
        axis.token_at((99.0, 9.0), part="tile")


def test_a_joined_axis_whose_parts_claim_one_token_is_refused():
    text = Tokens.of("a b", pieces=["a", "b"], spans=[(0, 1), (2, 3)])
    with pytest.raises(InputError, match="at most one token"):
        Joined.of({"one": text, "two": text}, tokens=[[0, 1], [1, 2]])


def test_nodes_with_positions_do_not_equal_nodes_without():
    bare, laid = Nodes.count(2), Nodes.count(2, positions=np.zeros((2, 2)))
    assert bare != laid
    assert laid != bare
    assert laid == Nodes.count(2, positions=np.zeros((2, 2)))


def test_a_box_without_a_center_in_it_means_the_patches_that_it_overlaps():
    affine = np.array([[1.0, 0.0, 60.0], [0.0, 1.0, 0.0]])
    grid = PatchGrid.plain(rows=2, cols=2, patch_px=(16, 16), size_px=(200, 32), to_input=affine)
    assert grid.tokens_in((40.0, 0.0, 62.0, 32.0)).tolist() == [0, 2]  # begins where the model saw nothing
    assert grid.tokens_in((61.0, 1.0, 63.0, 2.0)).tolist() == [0]
    with pytest.raises(PlaceError, match=r"saw nothing of the box \(0, 0, 20, 20\) px. It saw x from 60"):
        grid.tokens_in((0.0, 0.0, 20.0, 20.0))

"""Transfer equals the overlap of places written out pair by pair, and keeps the mass that has a place to go."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from axis_strategies import AXES, patch_grids, spectrogram_grids, timelines, tokens, tubelet_grids

from mmattn.errors import InputError
from mmattn.schema.axes import (
    Joined,
    Nodes,
    PatchGrid,
    Positions,
    Slots,
    SpectrogramGrid,
    Timeline,
    Tokens,
    TubeletGrid,
)
from mmattn.schema.transfer import transfer

# beartype looks at a random item of a list; hypothesis would rather we did not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
quick = settings(max_examples=50, deadline=None)


def bounds(axis, token) -> dict[str, tuple[float, float]]:
    """A token's place as one interval a dimension, from `place` alone."""
    p = axis.place(token)
    if isinstance(axis, PatchGrid | TubeletGrid):
        return {"x": (p[0], p[2]), "y": (p[1], p[3])} | ({"t": p[4:]} if len(p) == 6 else {})
    if isinstance(axis, SpectrogramGrid):
        return {"t": p[:2], "hz": p[2:]}
    return {"t" if isinstance(axis, Timeline) else "char": p}


def by_pairs(one, two) -> np.ndarray:
    """Every pair of content tokens, in float64: the plain twin for axes with the same dimensions."""
    matrix = np.zeros((len(one), len(two)))
    for i, j in itertools.product(one.content.tolist(), two.content.tolist()):
        share = 1.0
        for dim, (start, end) in bounds(one, i).items():
            other = bounds(two, j).get(dim)
            if other is not None:
                share *= max(0.0, min(end, other[1]) - max(start, other[0])) / (end - start)
        matrix[i, j] = share
    return matrix


def on_content(result) -> np.ndarray:
    dense = result.matrix().to_dense().numpy().copy()
    content = np.zeros_like(dense, dtype=bool)
    content[np.ix_(result.from_axis.content, result.to_axis.content)] = True
    assert not (
        dense[~content]
        * np.outer(*[np.isin(range(len(a)), a.content) for a in (result.from_axis, result.to_axis)])[~content]
    ).any()
    return np.where(content, dense, 0.0)


def same_picture(grid: PatchGrid) -> PatchGrid:
    return PatchGrid(
        rows=grid.rows,
        cols=grid.cols,
        patch_px=grid.patch_px,
        size_px=(900, 900),
        to_input=grid.to_input * 0.05,
        cells=grid.cells,
        roles=grid.roles,
    )


@quick
@given(st.tuples(patch_grids().map(same_picture), patch_grids().map(same_picture)))
def test_patches_to_patches_equals_every_pair(pair):
    if pair[0] != pair[1]:
        np.testing.assert_allclose(on_content(transfer(*pair)), by_pairs(*pair), atol=2e-9)


@quick
@given(
    st.tuples(timelines(), timelines())
    | st.tuples(spectrogram_grids(), spectrogram_grids())
    | st.tuples(spectrogram_grids(), timelines())
)
def test_times_and_bands_equal_every_pair(pair):
    if pair[0] != pair[1]:
        np.testing.assert_allclose(on_content(transfer(*pair)), by_pairs(*pair), atol=2e-9)


@quick
@given(tubelet_grids(), patch_grids())
def test_tubelets_to_patches_sums_over_time(one, two):
    two = PatchGrid.plain(rows=two.rows, cols=two.cols, patch_px=two.patch_px, size_px=one.size_px, special=("cls",))
    np.testing.assert_allclose(on_content(transfer(one, two)), by_pairs(one, two), atol=2e-9)


@quick
@given(tokens(), st.data())
def test_pieces_to_other_pieces_of_the_text_equals_every_pair(one, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(one.text) - 1)), max_size=4)) | {0, len(one.text)})
    spans = list(itertools.pairwise(cuts))
    two = Tokens.of(one.text, pieces=["?"] * len(spans), spans=spans)
    if one != two:
        np.testing.assert_allclose(on_content(transfer(one, two)), by_pairs(one, two), atol=2e-9)
        row = torch.rand(len(one), dtype=torch.float64)
        content = torch.as_tensor(one.content)
        assert transfer(one, two).move(row).sum() == pytest.approx(float(row[content].sum()))


@quick
@given(AXES)
def test_an_axis_moves_to_itself_unchanged(axis):
    row = torch.rand(3, len(axis), dtype=torch.float64)
    result = transfer(axis, axis)
    assert torch.equal(result.move(row), row)
    assert torch.equal(row @ result.matrix().to_dense(), row)
    assert result.note == ""


@quick
@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(0, 3), st.integers(0, 3))
def test_mass_is_kept_where_both_grids_cover_the_picture(sides, registers, others):
    rows, cols, other_rows, other_cols = sides
    one = PatchGrid.plain(
        rows=rows, cols=cols, patch_px=(16, 16), size_px=(640, 480), special=("cls",) + ("register",) * registers
    )
    two = PatchGrid.plain(
        rows=other_rows,
        cols=other_cols,
        patch_px=(16, 16),
        size_px=(640, 480),
        special=("register",) * others + ("cls",),
    )
    row = torch.rand(2, len(one), dtype=torch.float64)
    result = transfer(one, two)
    moved = result.move(row)
    lost = row[:, 1 : 1 + registers].sum(dim=1) if registers and not others else torch.zeros(2)
    torch.testing.assert_close(moved.sum(dim=1) + lost, row.sum(dim=1))
    torch.testing.assert_close(moved[:, others], row[:, 0])
    torch.testing.assert_close(moved, row @ result.matrix().to_dense())


def test_a_merged_patch_gives_a_quarter_to_each_of_its_four():
    fine = PatchGrid.plain(rows=4, cols=4, patch_px=(4, 4), size_px=(300, 200))
    merged = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(300, 200))
    row = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert transfer(merged, fine).move(row).reshape(4, 4).tolist() == [
        [0, 0, 0.25, 0.25],
        [0, 0, 0.25, 0.25],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert transfer(fine, merged).move(transfer(merged, fine).move(row)).tolist() == row.tolist()


def test_token_orders_are_translated():
    plain = {"rows": 2, "cols": 3, "patch_px": (8, 8), "size_px": (24, 16), "frames": [0, 1], "times_s": [0.0, 1.0]}
    one, two = (TubeletGrid.plain(**plain, depth=1, order=order, special=("cls",)) for order in ("t h w", "h w t"))
    row = torch.arange(13.0)
    moved = transfer(one, two).move(row)
    assert np.array_equal(one.grid(row.double().numpy()), two.grid(moved.double().numpy()))
    assert moved[0] == row[0]


def test_patches_without_a_time_are_spread_over_the_tubelets():
    patches = PatchGrid.plain(rows=1, cols=1, patch_px=(8, 8), size_px=(8, 8))
    tubes = TubeletGrid.plain(
        rows=1,
        cols=1,
        patch_px=(8, 8),
        size_px=(8, 8),
        frames=[0, 1],
        times_s=[0.0, 1.0],
        depth=1,
        order="t h w",
        frame_s=3.0,
    )
    assert transfer(patches, tubes).move(torch.ones(1)).tolist() == [0.25, 0.75]


def test_a_class_token_that_joins_late_is_lost_and_said():
    with_class = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16), special=("cls",))
    without = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16))
    result = transfer(with_class, without)
    assert result.move(torch.full((5,), 0.2)).tolist() == pytest.approx([0.2] * 4)
    assert result.lost.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert result.note == "not passed on (whole or in part): 1 cls token(s)"
    assert transfer(without, with_class).move(torch.ones(4)).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_gradients_flow_through_a_transfer():
    one = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16))
    two = PatchGrid.plain(rows=3, cols=3, patch_px=(8, 8), size_px=(16, 16))
    row = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transfer(one, two).move, row)


def test_nodes_go_by_their_id():
    one, two = Nodes.count(4), Nodes(roles=("content",) * 2, ids=np.array([3, 1]))
    assert transfer(one, two).move(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [4.0, 2.0]


def test_the_image_part_of_a_prompt_goes_to_the_image():
    image = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16))
    coarse = PatchGrid.plain(rows=1, cols=1, patch_px=(16, 16), size_px=(16, 16))
    text = Tokens.of("a b", pieces=["a", "b"], spans=[(0, 1), (2, 3)])
    prompt = Joined.of({"text": text, "image": image}, tokens=[[0, 5], [1, 2, 3, 4]], length=7, rest="newline")
    shorter = Joined.of({"image": coarse, "text": text}, tokens=[[0], [1, 2]], length=4, rest="newline")
    row = torch.arange(7.0)
    assert transfer(prompt, coarse).move(row).tolist() == [10.0]
    assert transfer(coarse, prompt).move(torch.ones(1)).tolist() == [0, 0.25, 0.25, 0.25, 0.25, 0, 0]
    assert transfer(prompt, shorter).move(row).tolist() == [10.0, 0.0, 5.0, 6.0]


@pytest.mark.parametrize(
    "other",
    [Slots.count(4), Positions.count(4), Timeline.plain(count=4, hop_s=1.0, stride=1, audio_s=4.0), Nodes.count(4)],
)
def test_places_that_do_not_compare_are_refused(other):
    patches = PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=(16, 16))
    for pair in ((patches, other), (other, patches)):
        with pytest.raises(InputError, match=r"cannot be moved to .* their places do not compare"):
            transfer(*pair)


def test_two_pictures_are_refused():
    one, two = (PatchGrid.plain(rows=2, cols=2, patch_px=(8, 8), size_px=size) for size in ((16, 16), (32, 16)))
    with pytest.raises(InputError, match=r"different pictures: '\(16, 16\)' and '\(32, 16\)'"):
        transfer(one, two)


def test_a_hundred_thousand_patches_move_without_a_matrix():
    fine = PatchGrid.plain(rows=320, cols=320, patch_px=(4, 4), size_px=(1280, 1280))
    merged = PatchGrid.plain(rows=213, cols=213, patch_px=(6, 6), size_px=(1280, 1280))
    result = transfer(merged, fine)
    assert len(result.shares) < 10 * len(fine)
    assert result.move(torch.ones(len(merged), dtype=torch.float64)).sum() == pytest.approx(len(merged))

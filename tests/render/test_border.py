"""The border of a window: where attention could not reach is dark and outlined, and not called unseen."""

import numpy as np
import pytest
import torch
from drawn import grid, one_hot, relevance

from mmattn.render import overlay, sheet
from mmattn.render.marks import Lines, Raster, Unseen
from mmattn.schema.axes import PatchGrid


def marks(drawing, kind, name=""):
    return [
        mark for mark in drawing.panels[0].marks if isinstance(mark, kind) and getattr(mark, "name", "") in ("", name)
    ]


def reach_of(axis, cells):
    reach = torch.zeros(1, len(axis), dtype=torch.bool)
    for row, col in cells:
        reach[0, np.flatnonzero(axis.cells == row * axis.cols + col)[0]] = True
    return reach


def sides(drawing):
    (line,) = marks(drawing, Lines, "reach")
    return sorted((tuple(map(float, a)), tuple(map(float, b))) for a, b in line.paths)


def plain(rows=4, cols=4):
    return PatchGrid.plain(rows=rows, cols=cols, patch_px=(4, 4), size_px=(cols * 10, rows * 10))


def test_a_window_has_four_sides_at_its_patches_and_the_legend_says_what_they_are():
    axis = plain()
    window = [(row, col) for row in (1, 2) for col in (0, 1, 2)]
    drawing = overlay(relevance(np.full(16, 0.1), axis, reach=reach_of(axis, window)))
    assert sides(drawing) == [
        ((0.0, 10.0), (0.0, 30.0)),
        ((0.0, 10.0), (30.0, 10.0)),
        ((0.0, 30.0), (30.0, 30.0)),
        ((30.0, 10.0), (30.0, 30.0)),
    ]
    assert [key.word for key in drawing.panels[0].keys] == ["as far as attention could reach"]
    assert not marks(drawing, Unseen)
    values = drawing.panels[0].heat.values
    assert np.isnan(values).sum() == 10
    assert not np.isnan(values[1:3, :3]).any()


def test_a_window_that_wraps_around_the_picture_is_four_parts():
    axis = plain()
    drawing = overlay(relevance(np.full(16, 0.1), axis, reach=reach_of(axis, [(0, 0), (0, 3), (3, 0), (3, 3)])))
    assert len(sides(drawing)) == 16
    assert ((30.0, 0.0), (40.0, 0.0)) in sides(drawing)


@pytest.mark.parametrize("layout", ["crop", "quarter turn", "mirror", "not square patches"])
def test_the_border_lies_round_the_very_boxes_of_the_patches_and_only_they_keep_their_light(layout):
    axis = grid(layout, special=())
    reach = reach_of(axis, [(1, 2), (1, 3), (2, 2), (2, 3)])
    drawing = overlay(one_hot(axis, reach=reach), saturation=1.0)
    boxes = np.array([axis.place(token) for token in np.flatnonzero(reach[0].numpy())])
    x0, y0, x1, y1 = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    (line,) = marks(drawing, Lines, "reach")
    found = line.paths.reshape(-1, 2)
    assert found.min(axis=0) == pytest.approx([x0, y0])
    assert found.max(axis=0) == pytest.approx([x1, y1])
    pixels = drawing.panels[0].marks[0]
    assert isinstance(pixels, Raster)
    light = pixels.pixels[:, :, 0]
    inner = light[int(y0) + 1 : int(y1) - 1, int(x0) + 1 : int(x1) - 1]
    assert (inner == 128).all()
    sx0, sy0, sx1, sy1 = (round(v) for v in axis.seen_box())
    seen = np.zeros(light.shape, dtype=bool)
    seen[sy0 + 1 : sy1 - 1, sx0 + 1 : sx1 - 1] = True
    seen[int(y0) - 1 : int(y1) + 2, int(x0) - 1 : int(x1) + 2] = False
    assert (light[seen] == 64).all()


def test_reach_over_everything_draws_no_border():
    axis = grid("squash")
    drawing = overlay(one_hot(axis, reach=torch.ones(1, len(axis), dtype=torch.bool)))
    assert not marks(drawing, Lines, "reach")
    assert not drawing.panels[0].keys


def test_the_uniform_share_is_that_of_the_patches_in_reach():
    axis = plain()
    reach = reach_of(axis, [(0, 0), (0, 1)])
    uniform = torch.where(reach, 0.5, 0.0)
    values = np.zeros(16)
    values[:2] = 0.2, 0.8
    assert overlay(relevance(values, axis, reach=reach, uniform=uniform)).panels[0].bar.ticks == ((0.5, "uniform"),)


def test_a_sheet_draws_the_border_of_every_tile_and_says_so_once():
    axis = plain()
    one, other = (relevance(np.full(16, 0.1), axis, reach=reach_of(axis, cells)) for cells in ([(0, 0)], [(2, 2)]))
    drawing = sheet([one, other], rows=1, cols=2)
    assert [len(line.paths) for panel in drawing.panels for line in panel.marks if isinstance(line, Lines)] == [4, 4]
    assert [key.word for key in drawing.keys] == ["as far as attention could reach"]


def test_patches_of_another_stage_that_ask_are_marked_by_their_places():
    values = np.full(16, 0.1)
    left, right, below = (0.0, 0.0, 20.0, 20.0), (20.0, 0.0, 40.0, 20.0), (20.0, 20.0, 40.0, 40.0)
    whole = overlay(relevance(values, plain(), query_places=((left, right),)))
    assert whole.panels[0].boxes("query") == [(0.0, 0.0, 40.0, 20.0)]
    assert whole.panels[0].keys[-1].word == "the patches that ask"
    apart = overlay(relevance(values, plain(), query_places=((left, below),)))
    assert apart.panels[0].boxes("query") == [left, below]


def test_the_border_ends_where_the_sight_of_the_model_ends():
    axis = PatchGrid(
        roles=("content",) * 16, rows=4, cols=4, patch_px=(4.0, 4.0), size_px=(40, 40), cells=np.arange(16),
        to_input=np.array([[2.5, 0, -5.0], [0, 2.5, -5.0]]), limits_px=(2.0, 2.0, 18.0, 18.0),
    )  # fmt: skip
    window = [(row, col) for row in range(4) for col in (0, 1)]
    drawing = overlay(one_hot(axis, reach=reach_of(axis, window)), saturation=1.0)
    assert sides(drawing) == [
        ((0.0, 0.0), (0.0, 40.0)),
        ((0.0, 0.0), (15.0, 0.0)),
        ((0.0, 40.0), (15.0, 40.0)),
        ((15.0, 0.0), (15.0, 40.0)),
    ]
    light = drawing.panels[0].marks[0].pixels[:, :, 0]
    assert (light[:, :15] == 128).all()
    assert (light[:, 15:] == 64).all()


def test_scattered_patches_have_a_thin_border_that_leaves_their_heat_visible():
    axis = plain(16, 16)
    grid_attention = [(row, col) for row in range(0, 16, 4) for col in range(0, 16, 4)]
    values = np.full(256, 0.1)
    (thin,) = marks(overlay(relevance(values, axis, reach=reach_of(axis, grid_attention))), Lines, "reach")
    (strong,) = marks(overlay(relevance(values, axis, reach=reach_of(axis, [(0, 0), (0, 1)]))), Lines, "reach")
    assert thin.width_px < strong.width_px
    assert strong.halo
    assert not thin.halo

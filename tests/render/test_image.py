"""What an overlay says: not seen, who asked, contour, caption, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import grid, hot_token, one_hot, relevance
from PIL import Image

from mmattn.errors import InputError, PlaceError
from mmattn.render import Scale, overlay, sheet, side_by_side
from mmattn.render import color as colors
from mmattn.render.marks import Heat, Lines, Raster, Unseen
from mmattn.schema.axes import PatchGrid, Positions, Slots
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance


def marks(drawing: object, kind: type) -> list:
    return [mark for mark in drawing.panels[0].marks if isinstance(mark, kind)]


def test_what_the_crop_cut_off_is_drawn_as_not_seen() -> None:
    drawing = overlay(one_hot(grid("crop")))
    (veil,) = marks(drawing, Unseen)
    assert sorted(veil.boxes.tolist()) == [[0.0, 0.0, 120.0, 400.0], [520.0, 0.0, 640.0, 400.0]]
    assert drawing.panels[0].boxes("seen") == [(120.0, 0.0, 520.0, 400.0)]
    assert [key.word for key in drawing.panels[0].keys] == ["not seen by the model"]


def test_a_grid_over_the_whole_picture_has_nothing_unseen() -> None:
    assert not marks(overlay(one_hot(grid("squash"))), Unseen)


def test_unseen_pixels_are_dark_and_unlike_a_weak_heat() -> None:
    pixels = np.asarray(overlay(one_hot(grid("crop"))).image()).astype(int)
    cut, kept = pixels[100:300, 30:90], pixels[300:400, 200:300]
    assert cut.mean() < kept.mean() - 30
    assert cut.std() > 5, "it is hatched"


def test_dropped_patches_are_drawn_as_not_seen() -> None:
    axis = PatchGrid(
        roles=("content",) * 3, rows=2, cols=2, patch_px=(16, 16), size_px=(32, 32),
        to_input=np.array([[1.0, 0, 0], [0, 1, 0]]), cells=np.array([0, 1, 3]),
    )  # fmt: skip
    drawing = overlay(relevance(np.array([0.1, 0.2, 0.7]), axis))
    assert marks(drawing, Unseen)[0].boxes.tolist() == [[0.0, 16.0, 16.0, 32.0]]
    assert np.isnan(drawing.panels[0].heat.values[1, 0])


def test_the_patch_that_asks_is_marked() -> None:
    axis = grid("crop")
    drawing = overlay(one_hot(axis, query_tokens=((5,),)))
    assert drawing.panels[0].boxes("query") == [pytest.approx(axis.place(5))]
    assert "the patch that asks" in [key.word for key in drawing.panels[0].keys]


def test_a_box_of_patches_that_ask_is_marked_as_one() -> None:
    axis = grid("squash", special=())
    drawing = overlay(one_hot(axis, query_tokens=((0, 1, 14, 15),)))
    x0, y0, _, _ = axis.place(0)
    _, _, x1, y1 = axis.place(15)
    assert drawing.panels[0].boxes("query") == [pytest.approx((x0, y0, x1, y1))]


def test_patches_that_form_no_box_are_outlined() -> None:
    drawing = overlay(one_hot(grid("squash", special=()), query_tokens=((0, 15),)))
    assert [mark.name for mark in marks(drawing, Lines)] == ["query"]


def test_a_class_token_marks_nothing() -> None:
    drawing = overlay(one_hot(grid("squash"), query_tokens=((),)))
    assert drawing.panels[0].boxes("query") == []


@pytest.mark.parametrize("smooth", [True, False])
def test_the_contour_goes_round_the_smallest_set_that_holds_the_mass(smooth: bool) -> None:
    axis = grid("squash", special=())
    values = np.full(len(axis), 0.001)
    values[[40, 41, 54]] = [0.5, 0.3, 0.2]
    (line,) = marks(overlay(relevance(values, axis), contour=0.6, smooth=smooth), Lines)
    cell = np.array([640 / 14, 400 / 14])
    low, high = line.paths.reshape(-1, 2).min(axis=0) / cell, line.paths.reshape(-1, 2).max(axis=0) / cell
    # Patches 40 and 41 stand in row 2, columns 12 and 13, at the right edge.
    assert low == pytest.approx([12, 2], abs=0.5 if smooth else 1e-9)
    assert high == pytest.approx([14, 3], abs=0.5 if smooth else 1e-9)


def test_the_caption_says_method_query_model_and_scale() -> None:
    axis = grid("squash")
    drawing = overlay(one_hot(axis, parameters={"layer": 11, "head": None}), contour=0.6)
    for word in ("look (layer 11)", "question 0", "timm VisionTransformer, random", "percentile 99", "photo.png"):
        assert word in drawing.caption
    assert "head" not in drawing.caption
    assert "Heat 14 x 14, hottest box" in repr(drawing)


def test_a_flat_map_says_that_it_is_flat() -> None:
    axis = grid("squash")
    values = 1 / 197 * (1 + 0.05 * np.random.default_rng(0).normal(size=len(axis)))
    assert "nearly flat map" in overlay(relevance(values, axis)).caption
    assert "flat" not in overlay(one_hot(axis)).caption


def test_the_color_bar_has_the_unit_and_the_uniform_share() -> None:
    axis = grid("squash")
    drawing = overlay(one_hot(axis, uniform=torch.full((1, len(axis)), 1 / 197)))
    bar = drawing.panels[0].bar
    assert bar.label == "share of attention"
    assert bar.ticks == ((pytest.approx(1 / 197), "uniform"),)


def test_signed_relevance_has_a_diverging_scale_about_zero() -> None:
    axis = grid("squash")
    values = np.zeros(len(axis))
    values[[3, 9]] = [1.0, -2.0]
    drawing = overlay(relevance(values, axis, unit="signed relevance"))
    heat = drawing.panels[0].heat
    assert (heat.scale.kind, heat.paint.color_map) == ("diverging", colors.DIVERGING)
    assert heat.peak_box() == pytest.approx(axis.place(9)), "the strongest, whatever its sign"


def test_another_row_is_another_picture() -> None:
    axis = grid("squash", special=())
    drawing = overlay(relevance(np.eye(len(axis))[[7, 30]], axis), row=1)
    assert drawing.panels[0].heat.peak_box() == pytest.approx(axis.place(30))
    assert drawing.title == "question 1"


def test_without_a_photo_there_is_a_plain_ground() -> None:
    drawing = overlay(one_hot(grid("squash"), photo=False))
    assert not marks(drawing, Raster)
    assert drawing.image().size[0] >= 640


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pil_pictures_of_every_mode_can_be_drawn_on(mode: str) -> None:
    (ground,) = marks(overlay(one_hot(grid("squash")), on=Image.new(mode, (640, 400))), Raster)
    assert ground.pixels.shape == (400, 640, 3)


def test_arrays_can_be_drawn_on() -> None:
    gray = np.linspace(0, 1, 400 * 640).reshape(400, 640)
    (ground,) = marks(overlay(one_hot(grid("squash")), on=gray), Raster)
    assert ground.pixels.max() == 255


def test_a_picture_of_another_shape_is_refused_and_never_stretched() -> None:
    with pytest.raises(InputError, match=r"500 x 400 px.*640 x 400 px.*that aspect \(1.6\).*on="):
        overlay(one_hot(grid("squash")), on=np.zeros((400, 500, 3), np.uint8))
    with pytest.raises(InputError, match="on= is an array of shape"):
        overlay(one_hot(grid("squash")), on=np.zeros((4, 5, 6, 7)))


def test_an_axis_without_places_says_what_to_use() -> None:
    nowhere = Relevance(
        values=torch.ones(1, 4), axis=Positions.count(4), query_axis=Slots.count(1), labels=("cls",), method="look"
    )
    with pytest.raises(PlaceError, match=r"Positions\(4\).*mmattn.attend\(model, image=...\)"):
        overlay(nowhere)


def test_a_contour_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(InputError, match="contour=60"):
        overlay(one_hot(grid("squash")), contour=60)


def test_a_sheet_has_one_scale_and_one_bar() -> None:
    axis = grid("squash")
    weak, strong = one_hot(axis), relevance(np.full(len(axis), 0.5), axis)
    drawing = sheet([weak, strong, None, weak], rows=2, cols=2, row_labels=["a", "b"], col_labels=["x", "y"])
    scales = {heat.scale for panel in drawing.panels for heat in panel.marks if isinstance(heat, Heat)}
    assert len(scales) == 1
    assert drawing.bar is not None
    assert all(panel.bar is None for panel in drawing.panels)
    assert drawing.panels[2].marks == ()


def test_tiles_with_their_own_scales_say_so() -> None:
    axis = grid("squash")
    drawing = sheet([one_hot(axis), relevance(np.arange(len(axis)) / 1e3, axis)], rows=1, cols=2, scale="panel")
    assert drawing.panels[0].heat.scale != drawing.panels[1].heat.scale
    assert "cannot be compared" in drawing.caption
    assert drawing.bar is None


def test_a_given_scale_is_used() -> None:
    given = Scale(vmin=0.0, vmax=0.5)
    assert overlay(one_hot(grid("squash")), scale=given).panels[0].heat.scale is given
    assert sheet([one_hot(grid("squash"))], rows=1, cols=1, scale=given).panels[0].heat.scale is given


def test_a_sheet_that_does_not_fill_its_tiles_is_refused() -> None:
    with pytest.raises(InputError, match="3 rows x 2 columns"):
        sheet([one_hot(grid("squash"))], rows=3, cols=2)
    with pytest.raises(InputError, match="scale='each'"):
        sheet([one_hot(grid("squash"))], rows=1, cols=1, scale="each")
    with pytest.raises(InputError, match="different sizes"):
        sheet([one_hot(grid("squash")), one_hot(grid("shrunk"))], rows=1, cols=2)


def test_side_by_side_shares_what_is_the_same() -> None:
    axis = grid("squash")
    photo = Photo(pixels=np.zeros((400, 640, 3), np.uint8))
    one, two = overlay(one_hot(axis)), overlay(one_hot(axis), smooth=False)
    drawing = side_by_side([photo, one, two], titles=["photo", "smooth", "blocks"])
    assert drawing.caption == one.caption
    assert drawing.bar == one.panels[0].bar
    assert [panel.title for panel in drawing.panels] == ["photo", "smooth", "blocks"]
    with pytest.raises(InputError, match="2 titles"):
        side_by_side([one], titles=["a", "b"])
    with pytest.raises(InputError, match="2 panels"):
        side_by_side([sheet([one_hot(axis)] * 2, rows=1, cols=2)])


def test_the_peak_of_the_relevance_and_of_the_drawing_are_one_place() -> None:
    axis = grid("mirror")
    one = one_hot(axis)
    assert overlay(one).panels[0].heat.peak_box() == pytest.approx(one.peak())
    assert hot_token(axis) == axis.token_at((0.62 * 640, 0.36 * 400))


def test_the_picture_is_muted_so_that_its_colors_are_not_taken_for_heat():
    photo = np.zeros((400, 640, 3), np.uint8)
    photo[..., 0] = 200  # a red wall
    relevance = one_hot(grid("squash"))
    for saturation in (0.0, 0.3, 1.0):
        drawing = overlay(relevance, on=photo, saturation=saturation)
        ground = next(mark for mark in drawing.panels[0].marks if isinstance(mark, Raster))
        red, green = (int(v) for v in ground.pixels[5, 5, :2])
        assert red - green == pytest.approx(200 * saturation, abs=2)
    with pytest.raises(InputError, match="saturation=2"):
        overlay(relevance, on=photo, saturation=2.0)


def test_drawings_that_are_compared_can_share_one_scale():
    weak, strong = one_hot(grid("squash")), one_hot(grid("squash"))
    weak = replace(weak, values=weak.values * 0.1)
    alone = overlay(weak).panels[0].heat.scale
    shared = overlay(weak, scale=[weak, strong]).panels[0].heat.scale
    assert shared == overlay(strong, scale=[weak, strong]).panels[0].heat.scale
    assert shared.vmax > alone.vmax
    assert "scale: shared" in overlay(weak, scale=[weak, strong]).caption
    with pytest.raises(InputError, match="names no relevance"):
        overlay(weak, scale=[])


def test_what_all_captions_share_is_said_once_under_drawings_side_by_side():
    one = overlay(one_hot(grid("squash")), caption="look · model · a.jpg")
    two = overlay(one_hot(grid("squash")), caption="look · model · b.jpg")
    both = side_by_side([one, two, Photo(pixels=np.zeros((8, 8, 3), np.uint8))])
    assert both.caption == "look · model"
    assert [panel.caption for panel in both.panels] == ["a.jpg", "b.jpg", ""]

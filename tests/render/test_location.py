"""One hot patch lights its own pixels, in the Drawing and in every writer, whatever the affine."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from drawn import LAYOUTS, assert_lit, grid, hot_token, one_hot, panel_box
from matplotlib.figure import Figure
from PIL import Image

from mmattn.render import overlay, sheet, side_by_side
from mmattn.render.layout import arrange

NAMES = list(LAYOUTS)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", NAMES)
def test_the_hottest_box_of_the_drawing_is_the_place_of_the_token(name: str) -> None:
    axis = grid(name)
    assert overlay(one_hot(axis)).panels[0].heat.peak_box() == pytest.approx(axis.place(hot_token(axis)))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_raster_pixels_lie_on_the_patch(name: str, smooth: bool) -> None:
    drawing = overlay(one_hot(grid(name)), smooth=smooth)
    assert_lit(np.asarray(drawing.image()), grid(name), box=panel_box(drawing))


@pytest.mark.parametrize("width_px", [240, 1777])
def test_raster_pixels_lie_on_the_patch_at_any_size(width_px: int) -> None:
    drawing = overlay(one_hot(grid("crop")))
    box = panel_box(drawing, width_px=width_px)
    assert_lit(np.asarray(drawing.image(width_px=width_px)), grid("crop"), box=box)


@pytest.mark.parametrize("name", ["crop", "quarter turn"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_picture_files_lie_on_the_patch(suffix: str, name: str, tmp_path: Path) -> None:
    drawing = overlay(one_hot(grid(name)))
    path = drawing.save(tmp_path / f"hot.{suffix}")
    assert_lit(pixels_of(path.read_bytes()), grid(name), box=panel_box(drawing))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_lies_on_the_patch(name: str, smooth: bool) -> None:
    drawing = overlay(one_hot(grid(name)), smooth=smooth)
    target = io.BytesIO()
    drawing.figure().savefig(target, format="png", dpi=96)
    assert_lit(pixels_of(target.getvalue()), grid(name), box=panel_box(drawing))


@pytest.mark.parametrize("name", ["crop", "quarter turn", "between pixels"])
def test_the_picture_inside_an_svg_lies_on_the_patch(name: str, tmp_path: Path) -> None:
    drawing = overlay(one_hot(grid(name)))
    root = ElementTree.parse(drawing.save(tmp_path / "hot.svg")).getroot()
    picture = next(node for node in root.iter() if node.tag.endswith("image"))
    href = next(value for key, value in picture.attrib.items() if key.endswith("href"))
    # matplotlib stores a picture upside down and turns it: "scale(1 -1) translate(0 -height)", y = -top.
    assert picture.attrib["transform"].startswith("scale(1 -1)")
    pixels = pixels_of(base64.b64decode(href.split(",", 1)[1]))[::-1]
    left, top = float(picture.attrib["x"]), -float(picture.attrib["y"])
    zoom_x = pixels.shape[1] / float(picture.attrib["width"])
    zoom_y = pixels.shape[0] / float(picture.attrib["height"])
    x0, y0, x1, y1 = (value * 0.75 for value in panel_box(drawing))  # a pixel of the layout is 3/4 point
    box = ((x0 - left) * zoom_x, (y0 - top) * zoom_y, (x1 - left) * zoom_x, (y1 - top) * zoom_y)
    assert_lit(pixels, grid(name), box=box)


@pytest.mark.parametrize("name", ["crop", "quarter turn"])
def test_the_picture_inside_a_page_lies_on_the_patch(name: str, tmp_path: Path) -> None:
    drawing = overlay(one_hot(grid(name)))
    page = drawing.save(tmp_path / "hot.html").read_text("utf-8")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert data is not None
    box = panel_box(replace(drawing, title="", caption=""))  # those are words of the page
    assert_lit(pixels_of(base64.b64decode(data[1])), grid(name), box=box)


def test_a_pdf_has_the_size_of_the_layout(tmp_path: Path) -> None:
    drawing = overlay(one_hot(grid("crop")))
    data = drawing.save(tmp_path / "hot.pdf").read_bytes()
    x0, _, x1, _ = panel_box(drawing)
    width = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", data)
    assert data.startswith(b"%PDF")
    assert width is not None
    assert float(width[1]) == pytest.approx((x1 + x0) * 0.75, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_users_own_axes_are_in_original_pixels(name: str) -> None:
    axis = grid(name)
    figure = Figure(figsize=(6, 4), dpi=100)
    ax = figure.add_subplot()
    assert overlay(one_hot(axis)).figure(ax) is ax
    x0, y0, x1, y1 = axis.place(hot_token(axis))
    target = io.BytesIO()
    figure.savefig(target, format="png")
    pixels = pixels_of(target.getvalue())
    x, y = ax.transData.transform(((x0 + x1) / 2, (y0 + y1) / 2))
    red, _, blue = pixels[pixels.shape[0] - 1 - int(y), int(x)].astype(int)
    assert red - blue > 40
    assert ax.get_xlim() == (0.0, axis.size_px[0])
    assert ax.get_ylim() == (axis.size_px[1], 0.0)


def test_a_tile_of_a_sheet_lies_on_the_patch() -> None:
    axis = grid("crop")
    drawing = sheet([one_hot(axis)] * 6, rows=2, cols=3, tile_px=160)
    pixels = np.asarray(drawing.image())
    for x, y, width, height in arrange(drawing).panels:
        assert_lit(pixels, axis, box=(x, y, x + width, y + height))


def test_drawings_side_by_side_keep_their_places() -> None:
    names = ["crop", "quarter turn"]
    drawing = side_by_side([overlay(one_hot(grid(name))) for name in names])
    pixels = np.asarray(drawing.image())
    rects = arrange(drawing).panels
    assert rects[0][3] == rects[1][3], "their heights are aligned"
    for name, (x, y, width, height) in zip(names, rects, strict=True):
        assert_lit(pixels, grid(name), box=(x, y, x + width, y + height))


def test_a_picture_of_twice_the_size_is_drawn_at_the_same_place() -> None:
    axis = grid("crop")
    twice = np.full((2 * axis.size_px[1], 2 * axis.size_px[0], 3), 128, np.uint8)
    drawing = overlay(one_hot(axis), on=twice)
    box = panel_box(drawing)
    assert box[2] - box[0] == 2 * axis.size_px[0], "it keeps its own pixels"
    assert_lit(np.asarray(drawing.image()), axis, box=box)

"""Writers: fast ways against slow twins, files whole or not at all, hostile text, any size."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import grid, one_hot, panel_box
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmattn.errors import InputError, OutputError
from mmattn.render import Drawing, Paint, Panel, Scale, color, field, fonts, overlay, raster
from mmattn.render.layout import Text, arrange
from mmattn.render.marks import Boxes, Dots, Heat, Key, Labels, Lines, Raster, Unseen

PAINTS = [Paint(), Paint(opacity=0.5, by_value=False), Paint(color_map="viridis", opacity=1.0)]


@pytest.mark.parametrize("paint", PAINTS)
def test_the_blend_equals_the_written_out_formula(paint: Paint) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    index = rng.integers(0, 256, (50, 70), dtype=np.uint8)
    table = color.lookup(paint).astype(float)
    alpha = table[index][:, :, 3:] / 255
    plain = pixels * (1 - alpha) + table[index][:, :, :3] * alpha
    fast = raster.blend_heat(pixels, index, lookup=color.lookup(paint))
    assert np.abs(fast - plain).max() <= 1.5
    raster.blend_heat(pixels, index, lookup=color.lookup(paint), out=pixels)
    assert (pixels == fast).all(), "in place it is the same"


def written_out(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Bilinear between centers, one point at a time."""
    found = np.empty(len(rows))
    for i, (row, col) in enumerate(zip(rows - 0.5, cols - 0.5, strict=True)):
        r, c = np.clip(row, 0, values.shape[0] - 1), np.clip(col, 0, values.shape[1] - 1)
        r0, c0 = int(r), int(c)
        r1, c1 = min(r0 + 1, values.shape[0] - 1), min(c0 + 1, values.shape[1] - 1)
        top = values[r0, c0] * (1 - c + c0) + values[r0, c1] * (c - c0)
        low = values[r1, c0] * (1 - c + c0) + values[r1, c1] * (c - c0)
        found[i] = top * (1 - r + r0) + low * (r - r0)
    return found


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("name", ["crop", "quarter turn", "half turn", "mirror", "padded", "between pixels"])
def test_resizing_equals_sampling_every_pixel(name: str, smooth: bool) -> None:
    axis = grid(name)
    values = np.random.default_rng(1).random((axis.rows, axis.cols))
    heat = replace(overlay(one_hot(axis), smooth=smooth).panels[0].heat, values=values, scale=Scale(vmin=0, vmax=1))
    width, height = axis.size_px
    as_is = np.array([[1.0, 0, 0], [0, 1, 0]])
    index, there, (x, y, across, down) = raster.heat_index(heat, to_output=as_is, width=width, height=height)
    slow, inside = field.sample(heat, to_output=as_is, width=width, height=height)
    difference = np.abs(index.astype(int) - slow[y : y + down, x : x + across])
    assert there is None
    assert np.quantile(difference, 0.95) <= (12 if smooth else 0), "they differ by the half pixel of rounding at most"
    assert inside[y : y + down, x : x + across].mean() > 0.99


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_refining_keeps_centers_bounds_and_means_near(rows: int, cols: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((rows, cols))
    fine = field.refine(values)
    assert fine.shape == (8 * rows, 8 * cols)
    assert fine.min() >= values.min() - 1e-6
    assert fine.max() <= values.max() + 1e-6
    centers = fine.reshape(rows, 8, cols, 8)[:, 3:5, :, 3:5].mean(axis=(1, 3))
    assert np.abs(centers - values).max() <= 0.12
    points = (np.arange(8 * rows) + 0.5) / 8, (np.arange(8 * cols) + 0.5) / 8
    row, col = (axis.ravel() for axis in np.meshgrid(*points, indexing="ij"))
    assert np.abs(fine.ravel() - written_out(values, row, col)).max() <= 0.3, "cubic stays near linear"


def test_a_default_picture_keeps_the_photos_own_pixels() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (400, 640, 3), dtype=np.uint8)
    drawing = overlay(one_hot(grid("squash")), on=photo, opacity=0.0, saturation=1.0)
    x0, y0, x1, y1 = panel_box(drawing)
    assert (np.asarray(drawing.image())[y0:y1, x0:x1] == photo).all()


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 3000), (33, 20), (5000, 3000)])
def test_pictures_of_odd_sizes_are_drawn(size: tuple[int, int]) -> None:
    space = (0.0, 0.0, float(size[0]), float(size[1]))
    panel = Panel(space=space, marks=(Raster(pixels=np.zeros((size[1], size[0], 3), np.uint8), box=space),))
    width, height = Drawing(panels=(panel,), caption="a caption").image().size
    assert width >= 240
    assert height >= size[1]


@pytest.mark.parametrize("width_px", [64, 300, 3840])
def test_the_width_is_the_one_asked_for(width_px: int) -> None:
    assert overlay(one_hot(grid("crop"))).image(width_px=width_px).size[0] == width_px


@pytest.mark.parametrize("width_px", [200, 300, 640, 3840])
def test_no_text_reaches_over_the_edge_or_over_other_text(width_px: int) -> None:
    drawing = overlay(one_hot(grid("crop"), query_tokens=((9,),)), contour=0.6, title="word " * 40)
    layout = arrange(drawing, width_px=width_px)
    boxes = []
    for piece in layout.pieces:
        if isinstance(piece, Text):
            wide = fonts.width(piece.text, size_px=piece.size_px, bold=piece.bold)
            left = piece.x - {"left": 0, "center": wide / 2, "right": wide}[piece.anchor]
            assert left >= 0
            assert left + wide <= width_px + 1
            boxes.append((left, piece.y - 0.5 * piece.size_px, left + wide, piece.y + 0.5 * piece.size_px))
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, f"{one} lies on {other} at {width_px} px"


def every_mark() -> Drawing:
    """One of each mark, so that no writer forgets one."""
    space = (0.0, 0.0, 200.0, 150.0)
    to_panel = np.array([[30.0, 8.0, 5.0], [-6.0, 30.0, 30.0]])
    values = np.arange(12.0).reshape(3, 4)
    values[1, 1] = np.nan
    marks = (
        Raster(pixels=np.full((75, 100, 3), 200, np.uint8), box=space),
        Heat(values=values, to_panel=to_panel, scale=Scale(vmin=0, vmax=11)),
        Unseen(boxes=np.array([[150.0, 0.0, 200.0, 150.0]])),
        Lines(paths=np.array([[[10.0, 10.0], [90.0, 100.0], [140.0, 20.0]]]), arrow=True),
        Boxes(boxes=np.array([[20.0, 20.0, 60.0, 50.0], [-50.0, -50.0, 500.0, 20.0]])),
        Dots(points=np.array([[100.0, 100.0]])),
        Labels(points=np.array([[100.0, 130.0]]), texts=("päiväkahvi λ → Ж",)),
    )
    keys = tuple(Key(kind=kind, word=kind) for kind in ("unseen", "box", "line", "dot"))
    return Drawing(panels=(Panel(space=space, marks=marks, keys=keys),), title="every mark", caption="$x^2$ & <b>")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "svg", "pdf", "html"])
def test_every_writer_draws_every_mark(suffix: str, tmp_path: Path) -> None:
    path = every_mark().save(tmp_path / "new" / "folder" / f"all.{suffix.upper()}")
    assert path.stat().st_size > 2000
    assert os.listdir(path.parent) == [path.name], "nothing is left beside it"


def test_every_mark_changes_pixels() -> None:
    whole = every_mark()
    pixels = np.asarray(whole.image())
    for index, mark in enumerate(whole.panels[0].marks):
        marks = tuple(other for i, other in enumerate(whole.panels[0].marks) if i != index)
        without = replace(whole, panels=(replace(whole.panels[0], marks=marks),))
        assert (np.asarray(without.image(width_px=pixels.shape[1])) != pixels).any(), type(mark).__name__


def test_svg_text_is_text_and_safe(tmp_path: Path) -> None:
    text = every_mark().save(tmp_path / "all.svg").read_text("utf-8")
    assert "$x^2$ &amp; &lt;b&gt;" in text, "no formula is made of it and nothing is left unescaped"
    assert every_mark().save(tmp_path / "two.svg").read_text("utf-8") == text, "the same bytes every time"


def test_a_page_escapes_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    evil = '</title><script>alert(1)</script>" onload="x'
    drawing = replace(every_mark(), title=evil, caption=evil)
    page = drawing.save(tmp_path / "evil.html").read_text("utf-8")
    assert "<script" not in page
    assert 'onload="x' not in page
    assert "&lt;script&gt;" in page
    outside = re.findall(r'(?:src|href)="(?!data:)', page) + re.findall(r"https?://|url\(|@import", page)
    assert outside == []


def test_a_notebook_shows_a_picture() -> None:
    drawing = every_mark()
    assert drawing._repr_png_().startswith(b"\x89PNG")
    assert drawing._repr_html_().startswith('<img src="data:image/')


def test_text_without_end_is_cut_and_control_characters_vanish() -> None:
    lines = fonts.wrap("a" * 100_000, size_px=12, width_px=200, most=3)
    assert len(lines) == 3
    assert lines[-1].endswith(fonts.ELLIPSIS)
    assert fonts.clean("a\x00b\u202ec\n d\ud800") == "abc d"


def test_a_character_that_no_font_has_is_named() -> None:
    with pytest.warns(UserWarning, match="No font here has the character"):
        fonts.runs("\U0001f9ff\U00012345", size_px=14)
    assert len(fonts.runs("Ж λ é →", size_px=14)) == 1, "one font for all of these"


def test_no_line_of_a_caption_begins_with_the_dot_between_its_parts() -> None:
    text = "look (layer 9 of 12) · query: patch at (150, 110) px · timm VisionTransformer · photo.png"
    for width_px in range(60, 400, 7):
        lines = fonts.wrap(text, size_px=13, width_px=width_px, most=99)
        assert not [line for line in lines if line.startswith("·")]
        assert " ".join(lines) == text or width_px < 150


@pytest.mark.filterwarnings("ignore:No font here")
def test_every_line_that_is_wrapped_fits() -> None:
    text = "Überschrift über 注意力の可視化 and an_extremely_long_identifier_without_any_blank_in_it " * 3
    for line in fonts.wrap(text, size_px=14, width_px=150, most=99):
        assert fonts.width(line, size_px=14) <= 150


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.bmp' is none.*\.png, \.jpg"):
        every_mark().save(tmp_path / "x.bmp")


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(OutputError, match="Cannot write"):
        every_mark().save(tmp_path / "file" / "x.png")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OutputError, match="is a folder, not a file"):
        every_mark().save(tmp_path / "x.png")
    assert sorted(os.listdir(tmp_path)) == ["file", "x.png"]


def test_sizes_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="width_px=3"):
        every_mark().image(width_px=3)
    with pytest.raises(InputError, match="million pixels"):
        every_mark().image(width_px=100_000)
    with pytest.raises(InputError, match="at most 16383 px"):
        Drawing(panels=(Panel(space=(0.0, 0.0, 17_000.0, 9.0), marks=()),)).save(tmp_path / "x.webp")
    with pytest.raises(InputError, match="dpi=0"):
        every_mark().save(tmp_path / "x.pdf", dpi=0)


def test_saved_png_holds_the_same_pixels_as_the_image(tmp_path: Path) -> None:
    drawing = overlay(one_hot(grid("crop")))
    assert (np.asarray(Image.open(drawing.save(tmp_path / "a.png"))) == np.asarray(drawing.image())).all()


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_text("old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    every_mark().save(tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_spreads_what_lies_beyond_the_scale_no_further_than_the_raster_does() -> None:
    axis = grid("squash")
    one = one_hot(axis)  # one patch far above the end of this scale
    drawing = overlay(one, scale=Scale(vmin=0.0, vmax=0.05))
    heat = np.asarray(drawing.figure().axes[0].images[-1].get_array())
    assert (heat > 0.05 - 1e-6).sum() <= field.REFINE**2  # no more than the patch itself

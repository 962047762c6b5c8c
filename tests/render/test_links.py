"""Lines between words and patches: which, where they end, how strong, what is said and what is refused."""

import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import PEAKS, captioned
from hypothesis import given, settings
from hypothesis import strategies as st
from linked import lines, of
from PIL import Image

import mmattn
from mmattn.errors import InputError, NotFoundError, PlaceError
from mmattn.render import columns, fonts, links
from mmattn.render.color import contrast
from mmattn.render.layout import arrange
from mmattn.render.links import COLORS, word_color
from mmattn.render.marks import Boxes, Dots, Fills, Labels, Raster, Strokes, Unseen
from mmattn.render.worded import word_rows
from mmattn.schema.axes import PatchGrid, Slots, Tokens


def keys(drawing: object) -> str:
    return " | ".join(key.word for key in drawing.panels[0].keys)


def test_each_word_is_linked_to_the_middle_of_its_strongest_patch() -> None:
    one = captioned()
    drawing = links(one)
    for word, point in PEAKS.items():
        x0, y0, x1, y1 = one.axis.place(one.axis.token_at(point))
        label = one.query_axis.words()[word].text
        assert drawing.panels[0].boxes(label) == [pytest.approx((x0, y0, x1, y1))]
        ends = lines(drawing).paths[:, -1]
        assert np.isclose(ends, [(x0 + x1) / 2, (y0 + y1) / 2]).all(axis=1).any()
    assert len(lines(drawing).paths) == 6, "one line for each word"


def test_a_strong_line_is_wider_and_more_opaque_and_painted_last() -> None:
    strokes = lines(links(captioned(peaks={1: (60.0, 50.0)})))
    assert (np.diff(strokes.widths_px) >= 0).all()
    assert (np.diff(strokes.opacities) >= 0).all()
    assert strokes.widths_px[-1] > 3 * strokes.widths_px[0]
    assert strokes.colors[-1].tolist() == list(word_color(1))


def test_width_grows_with_the_weight() -> None:
    one = captioned()
    values = one.values.clone()
    tokens = list(one.query_axis.words()[5].tokens)
    values[tokens] = values[tokens] * 0.5
    strokes = lines(links(replace(one, values=values)))
    strongest, weaker = strokes.widths_px[-1], strokes.widths_px[-2]
    assert (weaker - 1.2) / (strongest - 1.2) == pytest.approx(0.5, abs=1e-6)


def test_a_flat_row_gets_the_thinnest_line_and_is_named() -> None:
    drawing = links(captioned(peaks={}))
    assert set(lines(drawing).widths_px) == {1.2}
    assert "thinnest: no patch stands out (a [0], dog, next, to, a [4], watermelon)" in keys(drawing)
    assert "a [0]" in keys(links(captioned())), "beside words that stand out too"


def test_a_flat_row_that_is_strong_does_not_look_sharp() -> None:
    one = captioned(unit="relevance", peaks={1: (60.0, 50.0)})
    values = one.values.clone()
    values[1] = 9.0  # the first word: much everywhere
    found = dict(zip(map(tuple, lines(links(replace(one, values=values))).colors.tolist()), range(9), strict=False))
    widths = lines(links(replace(one, values=values))).widths_px
    assert widths[found[word_color(0)]] == pytest.approx(1.2)


@pytest.mark.parametrize("focus", ["dog", "Dog", 1, -5, (2, 5), (3, 4)])
def test_a_word_is_found_by_spelling_number_and_characters(focus: object) -> None:
    drawing = links(captioned(), focus=focus)
    assert drawing.title == "‘dog’"
    assert len(lines(drawing).paths) == 5
    assert of(drawing, Labels, "words")[0].texts == ("dog",)
    assert "the word's 5 strongest patches" in keys(drawing)


def test_a_word_that_gives_nothing_has_no_line_and_no_color_and_is_said() -> None:
    one = captioned()
    values = one.values.clone()
    values[3] = 0.0
    drawing = links(replace(one, values=values))
    assert "none: next (nothing above zero)" in keys(drawing)
    colored, plain = of(drawing, Labels, "words")
    assert plain.texts == ("next",)
    assert "next" not in colored.texts
    assert len(lines(drawing).paths) == 5


def test_several_words_in_a_row_are_in_focus_together() -> None:
    assert len(lines(links(captioned(), focus="dog next", k=2)).paths) == 4


def test_a_word_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"no word 'cat'.*0 'a', 1 'dog', 2 'next'.*characters"):
        links(captioned(), focus="cat")
    with pytest.raises(NotFoundError, match=r"no word 6: the text has 6 words.*5 'watermelon'"):
        links(captioned(), focus=6)
    with pytest.raises(NotFoundError, match=r"No word stands in the characters 90 to 99"):
        links(captioned(), focus=(90, 99))


def test_words_of_one_spelling_are_told_apart_by_number() -> None:
    with pytest.raises(NotFoundError, match=r"'a' stands 2 times.*as word 0, 4.*Pass its number"):
        links(captioned(), focus="a")
    assert links(captioned(), focus=4).title == "‘a [4]’"
    (labels,) = of(links(captioned()), Labels, "words")
    assert labels.texts == ("a [0]", "dog", "next", "to", "a [4]", "watermelon")


def test_a_place_is_linked_to_the_words_for_which_it_weighs_most() -> None:
    drawing = links(captioned(), query=PEAKS[5], k=2)
    assert lines(drawing).colors[-1].tolist() == list(word_color(5))
    assert drawing.panels[0].boxes("query") == [pytest.approx((280.0, 200.0, 320.0, 240.0))]
    assert drawing.title == "the patch at (300, 200)"
    boxed = links(captioned(), query=(280, 160, 360, 240), k=1)
    assert boxed.panels[0].boxes("query") == [pytest.approx((280.0, 160.0, 360.0, 240.0))]
    assert "what the words give it" in keys(boxed)


def test_what_is_not_drawn_adds_up() -> None:
    one = captioned(peaks={1: (60.0, 50.0)})
    drawn = 10 / 80 + 5 * 1 / 71
    assert f"{100 * (1 - drawn / 6):.3g} % of the words' weight is not drawn" in keys(links(one))
    assert f"{100 * (1 - 10 / 80):.3g} % of its weight is not drawn" in keys(links(one, focus="dog", k=1))
    assert "0 % of its weight is not drawn" not in keys(links(one, focus="dog", k=70)), "the class token has some"


def test_special_tokens_are_listed_with_their_share_and_never_drawn() -> None:
    drawing = links(captioned())
    assert "never drawn: text bos 8.3 %, eos 8.3 %, 3 pad 25 % of all weight; picture cls 1.4 %" in drawing.caption
    assert not {"<s>", "</s>", "<pad>"} & set(of(drawing, Labels, "words")[0].texts)


def test_pieces_of_a_word_ask_as_one() -> None:
    one = captioned()
    values = one.values.clone()
    first, second = one.query_axis.words()[5].tokens
    values[second] = 0.0
    rows = word_rows(replace(one, values=values))
    assert rows.values[5] == pytest.approx(values[first].numpy() / 2), "shares are averaged"
    rows = word_rows(replace(one, values=values, unit="relevance"))
    assert rows.values[5] == pytest.approx(values[first].numpy()), "relevance is added"


def test_a_words_line_goes_to_what_speaks_most_for_it_and_focus_shows_what_speaks_against() -> None:
    one = captioned(unit="signed relevance")
    values = one.values.clone()
    foe = one.axis.token_at((300.0, 50.0))
    values[2, foe] = -30.0  # the dog's strongest patch by size
    one = replace(one, values=values)
    plain = links(one)
    assert not lines(plain).dashed.any()
    assert plain.panels[0].boxes("dog") == [pytest.approx(one.axis.place(one.axis.token_at(PEAKS[1])))]
    assert "each word's strongest patch for it (against: in focus)" in keys(plain)
    focused = links(one, focus="dog", k=2)
    assert sorted(lines(focused).dashed.tolist()) == [False, True]
    assert pytest.approx(one.axis.place(foe)) in focused.panels[0].boxes("dog")
    assert "against" in keys(focused)


def test_a_word_that_everything_speaks_against_has_no_line_and_is_named() -> None:
    one = captioned(unit="signed relevance", sign=-1.0)
    assert not of(links(one), Strokes, "links")
    assert "none: a [0], dog, next, to, a [4], watermelon (nothing above zero)" in keys(links(one))
    assert lines(links(one, focus="dog")).dashed.all()
    assert len(lines(links(one, focus="dog")).paths) == 1, "a zero is no link"


def test_a_signed_word_in_focus_has_colors_that_diverge_about_zero() -> None:
    one = captioned(unit="signed relevance")
    values = one.values.clone()
    values[2, one.axis.token_at((300.0, 50.0))] = -10.0
    drawing = links(replace(one, values=values), focus="dog", k=2)
    red, blue = sorted(lines(drawing).colors.astype(int).tolist(), reverse=True)
    assert red[0] > red[2] + 60
    assert blue[2] > blue[0] + 60
    scale = drawing.panels[0].bar.scale
    assert (scale.kind, scale.vmin) == ("diverging", -scale.vmax)


@settings(max_examples=40)
@given(st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=40), st.integers(1, 9))
def test_no_word_covers_another_and_no_curve_runs_over_a_word(words: list[str], aspect: int) -> None:
    high = 1600 // aspect
    column = columns.beside((1600, high), words)
    x0, y0, x1, y1 = column.space
    ends = np.random.default_rng(0).uniform(0, [1600, high], (len(words), 2))
    paths = columns.curves(column.anchors, ends)
    for side, boxes in ((-1, column.boxes[: column.left_count]), (1, column.boxes[column.left_count :])):
        assert (boxes[1:, 1] >= boxes[:-1, 3]).all(), "in reading order, apart from one another"
        assert (boxes[:, 0] > 1600 if side > 0 else boxes[:, 2] < 0).all(), "beside the picture"
        assert (boxes[:, :2] >= [x0, y0]).all()
        assert (boxes[:, 2:] <= [x1, y1 + 1e-6]).all()
    left, right = paths[: column.left_count], paths[column.left_count :]
    assert (np.diff(left[:, :, 0], axis=1) >= -1e-9).all(), "toward the picture all the way"
    assert (np.diff(right[:, :, 0], axis=1) <= 1e-9).all()


def test_a_long_text_begins_to_the_left_of_the_picture() -> None:
    text = " ".join(f"w{number}" for number in range(40))
    drawing = links(captioned(text, peaks={0: (60.0, 50.0), 39: (300.0, 200.0)}))
    points = {
        word: x for mark in of(drawing, Labels) for word, (x, _) in zip(mark.texts, mark.points.tolist(), strict=True)
    }
    assert points["w0"] < 0
    assert points["w39"] > 400
    assert drawing.panels[0].space[0] < 0
    starts = lines(drawing).paths[-2:, 0, 0]
    assert starts.min() < 0
    assert starts.max() > 400


@pytest.mark.parametrize("text", ["a dog", "a b c d e f g h i j k l m n o p q r s t u v w x y z"])
def test_at_its_own_size_the_picture_is_drawn_as_it_is(text: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (280, 400, 3), dtype=np.uint8)
    drawing = links(captioned(text, photo=noise, peaks={}), saturation=1.0)
    (ground,) = of(drawing, Raster)
    bare = replace(drawing, panels=(replace(drawing.panels[0], marks=(ground,)),))
    x, y, _, _ = arrange(bare).panels[0]
    left, top = (at - round(edge) for at, edge in zip((x, y), drawing.panels[0].space, strict=False))
    assert (np.asarray(bare.image())[top : top + 280, left : left + 400] == ground.pixels).all()


def test_lines_of_one_word_begin_apart_and_do_not_cross_there() -> None:
    paths = lines(links(captioned(), focus="dog", k=6)).paths
    starts, ends = paths[:, 0, 1], paths[:, -1, 1]
    assert len(set(starts.tolist())) == 6
    order = np.argsort(ends, kind="stable")
    assert (np.diff(starts[order]) > 0).all()


def test_outlines_of_words_that_share_a_patch_stand_one_inside_the_other() -> None:
    drawing = links(captioned(peaks={1: (60.0, 50.0), 5: (60.0, 50.0)}))
    (outer,), (inner,) = drawing.panels[0].boxes("dog"), drawing.panels[0].boxes("watermelon")
    assert outer[0] < inner[0]
    assert outer[3] > inner[3]
    assert np.isclose(lines(drawing).paths[-2:, -1], [60.0, 60.0]).all(), "both end in its middle"


def test_colors_can_be_read_under_letters_and_inside_their_rim_on_anything() -> None:
    ground = np.array(COLORS, np.uint8)
    assert contrast(ground, (0, 0, 0)).min() >= 7.0
    assert contrast(ground, (16, 16, 20)).min() >= 4.5
    assert all(word_color(word) != word_color(word + 1) for word in range(30))


def test_colors_are_told_apart_without_red_or_green() -> None:
    # Machado, Oliveira and Fernandes (2009), whole protanopia and deuteranopia, on linear light.
    kinds = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
    linear = (np.array(COLORS) / 255.0) ** 2.2
    for kind in kinds:
        seen = np.clip(linear @ np.array(kind).T, 0, 1) ** (1 / 2.2) * 255
        assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 30


def test_what_the_crop_cut_off_is_not_seen_and_has_no_grid() -> None:
    to_input = np.array([[1.5, 0.0, 80.0], [0.0, 1.5, 56.0]])
    drawing = links(captioned(to_input=to_input, peaks={1: (200.0, 140.0)}))
    assert of(drawing, Unseen)
    assert "not seen by the model" in keys(drawing)
    (grid,) = of(drawing, Strokes, "grid")
    assert grid.paths[:, :, 0].min() == pytest.approx(80.0)
    with pytest.raises(PlaceError, match="did not see the point"):
        links(captioned(to_input=to_input, peaks={}), query=(10, 10))


def test_a_picture_can_be_left_out_or_replaced_and_is_never_stretched() -> None:
    one = replace(captioned(), media=None)
    assert not of(links(one), Raster)
    assert of(links(one), Fills, "no picture")
    assert of(links(one, on=Image.new("RGB", (200, 140))), Raster)
    with pytest.raises(InputError, match="nothing is stretched"):
        links(one, on=Image.new("RGB", (200, 200)))


def test_wrong_questions_are_refused_in_one_line() -> None:
    one = captioned()
    with pytest.raises(InputError, match="given together"):
        links(one, focus="dog", query=(3, 3))
    with pytest.raises(InputError, match="k=0 is no number of lines"):
        links(one, k=0)
    with pytest.raises(InputError, match=r"no place in the picture"):
        links(one, query=(1, 2, 3))
    with pytest.raises(PlaceError, match=r"Use mmattn.overlay or mmattn.draw"):
        links(
            mmattn.Relevance(
                values=torch.ones(1, 71), axis=one.axis, query_axis=Slots.count(1), labels=("cls",), method="x"
            )
        )


@pytest.mark.parametrize("options", [{}, {"focus": 1}, {"query": (60.0, 50.0)}, {"heat": True}])
def test_a_relevance_of_nothing_is_drawn_without_a_line(options: dict, tmp_path: Path) -> None:
    one = captioned(unit="relevance", peaks={})
    drawing = links(replace(one, values=one.values * 0), **options)
    assert not of(drawing, Strokes, "links")
    assert drawing.image(width_px=400).size[0] == 400
    assert drawing.save(tmp_path / "nothing.svg").stat().st_size > 1000


def test_a_single_word_and_a_single_patch_are_enough() -> None:
    grid = PatchGrid.plain(rows=1, cols=1, patch_px=(16, 16), size_px=(64, 48))
    text = Tokens.of("dog", pieces=["dog"], spans=[(0, 3)])
    one = mmattn.Relevance(values=torch.ones(1, 1), axis=grid, query_axis=text, labels=("dog",), method="cross")
    assert links(one).panels[0].boxes("dog") == [(0.0, 0.0, 64.0, 48.0)]
    assert links(one, heat=True).image().size[0] > 64


def test_draw_links_words_and_patches() -> None:
    assert of(mmattn.draw(captioned()), Strokes, "links")
    assert mmattn.draw(captioned()).caption == mmattn.links(captioned()).caption


@pytest.mark.parametrize("width", [320, 640, 3840])
def test_pictures_of_every_size_are_drawn_without_a_warning(width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(links(captioned()).image(width_px=width))
    assert pixels.shape[1] == width
    inked = np.abs(pixels.astype(int) - word_color(5)).max(axis=2) < 12
    assert inked.sum() > (width / 40) ** 2, "the word's color is there"


def test_text_in_svg_is_text(tmp_path: Path) -> None:
    svg = links(captioned()).save(tmp_path / "links.svg").read_text(encoding="utf-8")
    for word in ("a [0]", "dog", "next", "watermelon"):
        assert f">{word}</text>" in svg
    assert links(captioned()).save(tmp_path / "links.pdf").read_bytes().startswith(b"%PDF")


def test_letters_that_no_font_has_are_said_and_not_shown_as_boxes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fonts, "drawable", lambda text: text.isascii())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = links(captioned("一只狗", peaks={2: (60.0, 50.0)}))
        numbered = np.asarray(drawing.image(width_px=640))
    assert "[0] to [2]: words by number, no font here has their letters" in drawing.caption
    english = np.asarray(links(captioned("x y z", peaks={2: (60.0, 50.0)})).image(width_px=640))
    assert numbered.shape[1] == english.shape[1]
    assert ">狗</text>" in drawing.save(tmp_path / "links.svg").read_text(encoding="utf-8")


def test_the_drawing_goes_into_the_users_axes() -> None:
    from matplotlib.figure import Figure

    ax = Figure(figsize=(8, 4)).add_subplot()
    assert links(captioned()).figure(ax) is ax
    assert "watermelon" in [text.get_text() for text in ax.texts]
    sizes = {text.get_fontsize() for text in ax.texts}
    assert len(sizes) == 1
    assert 4 < sizes.pop() < 30
    assert of(links(captioned()), Dots)
    assert of(links(captioned()), Boxes)

"""A text with its words on colors: weights, contrast, lines, directions, and what is refused."""

import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import captioned, over_text
from hypothesis import given, settings
from hypothesis import strategies as st

import mmattn
from mmattn.errors import InputError
from mmattn.render import Scale, color, fonts, overlay, side_by_side
from mmattn.render.color import contrast
from mmattn.render.marks import Fills, Labels
from mmattn.render.paragraph import settled, typeset, visual
from mmattn.render.text import UNREAD
from mmattn.schema.tokens import split_words

TEXT = "the quick fox, a dog"
VALUES = [0.1, 0.05, 0.3, 0.25, 0.0, 0.05, 0.2, 0.05]  # bos, the, quick, fox, comma, a, dog, eos


def of(drawing: object, kind: type) -> list:
    return [mark for mark in drawing.panels[0].marks if isinstance(mark, kind)]


def placed(drawing: object) -> dict[str, np.ndarray]:
    return {text: point for mark in of(drawing, Labels) for text, point in zip(mark.texts, mark.points, strict=True)}


def test_the_heaviest_word_is_the_darkest() -> None:
    drawing = overlay(over_text(TEXT, VALUES))
    (fills,) = of(drawing, Fills)
    light = contrast(fills.colors, (0, 0, 0))
    assert int(light.argmin()) == 1, "quick"
    assert int(light.argmax()) == 3, "the comma"
    assert drawing.panels[0].bar.label == "share of attention"


@settings(max_examples=60)
@given(st.sampled_from(["OrRd", "coolwarm", "viridis", "inferno", "magma", "cividis"]), st.integers(0, 999))
def test_letters_have_a_contrast_of_four_and_a_half_on_every_color(color_map: str, seed: int) -> None:
    values = np.random.default_rng(seed).random(8)
    drawing = overlay(over_text(TEXT, values.tolist()), color_map=color_map)
    (fills,) = of(drawing, Fills)
    ground = dict(zip(("the", "quick", "fox", ",", "a", "dog"), fills.colors, strict=True))
    for mark in of(drawing, Labels):
        for text in mark.texts:
            assert contrast(ground[text][None], mark.color)[0] >= 4.5


def test_what_was_not_read_is_gray_readable_and_said() -> None:
    drawing = overlay(over_text(TEXT, [0.1, 0.3, 0.3, 0.1, 0.2], cut=3))
    unread = next(mark for mark in of(drawing, Labels) if mark.name == "unread")
    assert unread.texts == (",", "a", "dog")
    assert "gray: in no token" in drawing.caption
    assert contrast(np.full((1, 3), 255, np.uint8), UNREAD)[0] >= 4.5


def test_pieces_of_a_word_give_it_their_weight_together() -> None:
    drawing = overlay(over_text("a watermelon", [0.0, 0.2, 0.4, 0.4, 0.0]), scale=Scale(vmin=0.0, vmax=0.8))
    (fills,) = of(drawing, Fills)
    assert fills.colors[1].tolist() == color.table("OrRd")[255].tolist()


def test_special_tokens_are_told_with_their_share() -> None:
    caption = overlay(over_text(TEXT, VALUES)).caption
    assert "never drawn: bos 10 %, eos 5 % of the weight" in caption
    assert "query: class token" in caption


def test_signed_weights_diverge_about_zero() -> None:
    drawing = overlay(over_text(TEXT, [0, 0, 1, -1, 0, 0, 0, 0], unit="signed relevance"))
    red, blue = of(drawing, Fills)[0].colors[[1, 2]].astype(int)
    assert red[0] > red[2] + 60
    assert blue[2] > blue[0] + 60
    scale = drawing.panels[0].bar.scale
    assert scale.vmin == -scale.vmax


def test_a_flat_row_does_not_look_sharp() -> None:
    values = [0.125 * (1 + 0.04 * (-1) ** i) for i in range(8)]
    drawing = overlay(over_text(TEXT, values))
    assert "nearly flat map" in drawing.caption
    colors = of(drawing, Fills)[0].colors.astype(int)
    assert np.abs(colors - colors.mean(axis=0)).max() < 40


def test_texts_that_are_compared_share_a_scale() -> None:
    weak, strong = over_text(TEXT, [v / 10 for v in VALUES]), over_text(TEXT, VALUES)
    shared = overlay(weak, scale=[weak, strong])
    assert shared.panels[0].bar.scale == overlay(strong, scale=[weak, strong]).panels[0].bar.scale
    assert "scale: shared" in shared.caption


def test_options_of_a_picture_are_refused_for_a_text() -> None:
    with pytest.raises(InputError, match=r"smooth=, contour= belongs to a picture"):
        overlay(over_text(TEXT, VALUES), smooth=False, contour=0.5)
    with pytest.raises(InputError, match=r"scale=\[\] is no scale"):
        overlay(over_text(TEXT, VALUES), scale=[])


def test_the_door_draws_a_text_for_columns_that_are_words() -> None:
    one = over_text(TEXT, VALUES)
    assert mmattn.draw(one).caption == mmattn.overlay(one).caption


def test_lines_are_no_longer_than_asked_and_keep_closing_signs() -> None:
    text = "one two three four, five six seven eight."
    words = split_words(text)
    set_in = typeset(text, words, most_wide=8.0)
    assert set_in.lines == 3
    assert set_in.width < 9.0
    line = {text[slice(*span)]: row for span, row in zip(set_in.spans, set_in.line, strict=True)}
    assert line[","] == line["four"]
    assert line["."] == line["eight"]


def test_a_new_line_in_the_text_is_one_in_the_picture() -> None:
    points = placed(overlay(over_text("one\ntwo", [0.1, 0.4, 0.4, 0.1])))
    assert points["two"][1] > points["one"][1]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["dog", "שלום", "قهوة", "12", ",", "狗", "x\n"]), min_size=1, max_size=25))
def test_no_word_covers_another(words: list[str]) -> None:
    text = " ".join(words)
    spans = split_words(text)
    set_in = typeset(text, spans, most_wide=9.0)
    assert len(set_in.spans) >= len(spans)
    for row in range(set_in.lines):
        here = np.flatnonzero(set_in.line == row)
        here = here[np.argsort(set_in.x0[here])]
        assert (set_in.x0[here][1:] >= set_in.x1[here][:-1]).all()
    assert set_in.x0.min() >= -1e-9
    assert set_in.x1.max() <= set_in.width + 1e-6


def test_a_text_from_right_to_left_begins_at_the_right() -> None:
    points = placed(overlay(over_text("قهوة على طاولة", [0.1, 0.5, 0.2, 0.1, 0.1])))
    assert points["قهوة"][0] > points["على"][0] > points["طاولة"][0]


def test_words_of_the_other_direction_keep_their_own_order() -> None:
    points = placed(overlay(over_text("say שלום עולם now", [0.0, 0.1, 0.4, 0.2, 0.3, 0.0])))
    assert points["say"][0] < points["עולם"][0] < points["שלום"][0] < points["now"][0]
    assert visual(settled(["R", "", "R", "L"], leftward=False), leftward=False) == [2, 1, 0, 3]
    assert visual(settled(["R", "L", "", "L"], leftward=True), leftward=True) == [1, 2, 3, 0]


def test_a_sign_at_the_end_of_a_line_stays_with_its_neighbors_of_the_other_direction() -> None:
    text = "say שלום, עולם now"
    set_in = typeset(text, split_words(text), most_wide=4.8)
    at = {text[slice(*span)]: (row, x) for span, row, x in zip(set_in.spans, set_in.line, set_in.x0, strict=True)}
    assert at[","][0] == at["שלום"][0] < at["עולם"][0], "a line ends between the two"
    assert at[","][1] < at["שלום"][1], "as in the whole paragraph"


@pytest.mark.skipif(not fonts.raqm(), reason="this Pillow joins no letters")
def test_arabic_letters_are_joined_and_set_from_the_right() -> None:
    from PIL import Image, ImageDraw

    def drawn(text: str) -> np.ndarray:
        picture = Image.new("L", (300, 60))
        (piece, font), *more = fonts.runs(text, size_px=32)
        assert not more
        ImageDraw.Draw(picture).text((4, 40), piece, fill=255, font=font, anchor="ls")
        return np.asarray(picture)

    word = "باب"
    shaped = "".join(unicodedata.lookup(f"ARABIC LETTER {name} FORM") for name in ("BEH INITIAL", "ALEF FINAL")) + (
        unicodedata.lookup("ARABIC LETTER BEH ISOLATED FORM")
    )
    assert np.abs(drawn(word).astype(int) - drawn(shaped)).mean() < 1.0
    apart = "\u200c".join(word)
    assert np.abs(drawn(word).astype(int) - drawn(apart)).mean() > 1.5


def test_without_shaping_arabic_is_said_and_not_drawn_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "raqm", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = overlay(over_text("قهوة على", [0.1, 0.5, 0.2, 0.2]))
        drawing.image()
    assert "[0] to [1]: words by number" in drawing.caption


def test_words_no_font_has_keep_apart_by_their_numbers(tmp_path: Path) -> None:
    text = "".join(chr(0x1F00 + 0x10000 + i) for i in range(3)) + " 狗 猫"
    one = over_text(text, [1.0] * (len(split_words(text)) + 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = overlay(one)
        pixels = np.asarray(drawing.image(width_px=640))
    assert pixels.shape[1] == 640
    assert ">狗</text>" in drawing.save(tmp_path / "text.svg").read_text(encoding="utf-8")


def test_both_sides_stand_side_by_side() -> None:
    both = side_by_side([overlay(captioned(), row=2), overlay(over_text(TEXT, VALUES))])
    assert len(both.panels) == 2
    assert np.asarray(both.image(width_px=900)).shape[1] == 900


def test_a_text_too_long_to_draw_says_so() -> None:
    long = over_text("a", [0.1, 0.8, 0.1])
    with pytest.raises(InputError, match="20001 characters"):
        overlay(replace(long, axis=replace(long.axis, text="a" * 20001)))
    assert torch.isfinite(long.values).all()

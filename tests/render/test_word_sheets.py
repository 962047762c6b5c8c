"""One overlay for each word: the same numbers as an overlay of that word's row, one scale, its name over it."""

from dataclasses import replace

import numpy as np
import pytest
from captioned import captioned

import mmattn
from mmattn.errors import InputError, NotFoundError
from mmattn.render import overlay, word_grid
from mmattn.render.marks import Heat


def heats(drawing: object) -> list[Heat]:
    return [mark for panel in drawing.panels for mark in panel.marks if isinstance(mark, Heat)]


def test_every_word_has_its_tile_in_reading_order() -> None:
    drawing = word_grid(captioned())
    assert [panel.title for panel in drawing.panels] == ["a [0]", "dog", "next", "to", "a [4]", "watermelon"]
    assert len({heat.scale for heat in heats(drawing)}) == 1
    assert drawing.bar is not None


def test_a_tile_shows_what_the_overlay_of_its_row_shows() -> None:
    one = captioned()
    (tile,) = heats(word_grid(one, words=["dog"]))
    (token,) = one.query_axis.words()[1].tokens
    alone = overlay(one, row=token).panels[0].heat
    assert np.allclose(tile.values, alone.values)
    assert tile.peak_box() == pytest.approx(alone.peak_box())


def test_only_the_words_that_are_asked_for() -> None:
    drawing = word_grid(captioned(), words=[5, "dog", (6, 10), 5])
    assert [panel.title for panel in drawing.panels] == ["watermelon", "dog", "next"]
    with pytest.raises(NotFoundError, match="no word 'cat'"):
        word_grid(captioned(), words=["cat"])
    with pytest.raises(InputError, match=r"words='dog' is no list.*words=\['dog'\]"):
        word_grid(captioned(), words="dog")
    with pytest.raises(InputError, match="cols=0"):
        word_grid(captioned(), cols=0)
    with pytest.raises(InputError, match="0 words are to be drawn"):
        word_grid(captioned(), words=[])


def test_tiles_of_their_own_scale_say_so() -> None:
    drawing = word_grid(captioned(), scale="panel")
    assert "strengths cannot be compared" in drawing.caption
    assert drawing.bar is None


def test_uniform_shares_and_reach_of_a_word_are_those_of_its_pieces() -> None:
    one = captioned()
    uniform = one.values * 0 + 1 / 71
    reach = one.values > -1
    reach[:, 30:] = False
    drawing = word_grid(replace(one, uniform=uniform, reach=reach), words=["watermelon"])
    (heat,) = heats(drawing)
    assert np.isnan(heat.values).sum() == 41
    assert drawing.bar.ticks[0][0] == pytest.approx(1 / 71)


def test_the_door_and_its_caption() -> None:
    drawing = mmattn.word_grid(captioned(), cols=4)
    assert (drawing.rows, drawing.cols) == (2, 4)
    assert "scale: shared" in drawing.caption
    assert "never drawn: text bos" in drawing.caption
    assert drawing.image(width_px=640).size[0] == 640

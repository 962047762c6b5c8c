"""Heat beside lines: on the picture and on the words, and what it is of when a word or a place is asked."""

import numpy as np
import pytest
from captioned import PEAKS, captioned
from linked import lines, of

from mmattn.render.color import contrast
from mmattn.render.links import links
from mmattn.render.marks import Dots, Fills, Heat, Labels, Strokes
from mmattn.render.worded import word_rows


def test_heat_lies_on_both_sides_under_the_lines() -> None:
    one = captioned(unit="relevance", peaks={1: (60.0, 50.0)})
    drawing = links(one, heat=True)
    assert drawing.panels[0].heat.peak_box() == pytest.approx(one.axis.place(one.axis.token_at((60.0, 50.0))))
    rows = word_rows(one)
    assert np.nansum(drawing.panels[0].heat.values) == pytest.approx(rows.patches.sum())
    (chips,) = of(drawing, Fills, "words")
    given = rows.patches.sum(axis=1)
    light = contrast(chips.colors, (0, 0, 0))
    assert np.argsort(light, kind="stable")[:2].tolist() == np.argsort(-given, kind="stable")[:2].tolist()
    assert (drawing.panels[0].bar.label, drawing.bar.label) == (
        "picture: relevance",
        "words, to the picture: relevance",
    )
    kinds = [type(mark) for mark in drawing.panels[0].marks]
    assert kinds.index(Heat) < kinds.index(Strokes)
    ends = [tuple(point) for mark in of(drawing, Dots, "word") for point in mark.points.tolist()]
    assert sorted(ends) == sorted(map(tuple, lines(drawing).paths[:, 0].tolist())), "the line's color, at its word"


def test_heat_of_a_word_is_its_row_and_of_a_place_what_each_word_gives_it() -> None:
    one = captioned()
    focused = links(one, focus="dog", heat=True).panels[0].heat
    assert np.nanmax(focused.values) == pytest.approx(10 / 80)
    (chips,) = of(links(one, query=PEAKS[5], heat=True), Fills, "words")
    assert contrast(chips.colors, (0, 0, 0)).argmin() == 5
    for mark in of(links(one, heat=True), Labels, "words"):
        assert mark.color in ((0, 0, 0), (255, 255, 255))

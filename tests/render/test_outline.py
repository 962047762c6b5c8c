"""Known boxes over a picture: where they are given, in the legend, and refused where they are none."""

import numpy as np
import pytest

from mmattn.errors import InputError
from mmattn.render import outlined, side_by_side
from mmattn.render.drawing import Drawing
from mmattn.schema.media import Photo

BOX, OTHER = (8.0, 8.0, 24.0, 40.0), (30.0, 10.0, 60.0, 20.0)


@pytest.fixture
def photo() -> Photo:
    return Photo(pixels=np.full((48, 64, 3), 90, np.uint8))


def test_boxes_lie_where_they_were_given_and_the_legend_says_what_they_are(photo: Photo) -> None:
    drawing = outlined(photo, [BOX, OTHER])
    assert drawing.panels[0].boxes("truth") == [BOX, OTHER]
    assert [key.word for key in drawing.panels[0].keys] == ["the true boxes"]
    assert [key.word for key in outlined(photo, [BOX], word="a guess").panels[0].keys] == ["a guess"]


def test_title_and_marks_of_a_drawing_stay(photo: Photo) -> None:
    drawing = side_by_side([photo], titles=["scene"])
    boxed = outlined(drawing, [BOX])
    assert boxed.panels[0].title == "scene"
    assert boxed.panels[0].marks[:-1] == drawing.panels[0].marks
    assert drawing.panels[0].boxes("truth") == [], "the drawing that was given is left as it is"


@pytest.mark.parametrize("boxes", [[], [(24, 8, 8, 40)], [(8, 8, 8, 40)], [(0, 0, float("nan"), 4)]])
def test_what_is_no_box_is_refused(photo: Photo, boxes: list[tuple[float, float, float, float]]) -> None:
    with pytest.raises(InputError, match=r"are no boxes\. Each is x0, y0, x1, y1"):
        outlined(photo, boxes)


def test_a_sheet_is_refused(photo: Photo) -> None:
    sheet: Drawing = side_by_side([photo, photo])
    with pytest.raises(InputError, match="2 panels"):
        outlined(sheet, [BOX])

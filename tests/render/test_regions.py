"""Regions of a detector are outlined on their picture, the strongest on top."""

import numpy as np
import pytest
import torch

import mmattn
from mmattn.errors import InputError, PlaceError
from mmattn.render.marks import Boxes, Raster
from mmattn.render.regions import region_overlay
from mmattn.schema.axes import Regions, Slots
from mmattn.schema.media import Photo
from mmattn.schema.results import Relevance

PHOTO = Photo(pixels=np.full((60, 80, 3), 128, dtype=np.uint8))
BOXES = np.array([[10.0, 10, 30, 30], [0, 0, 80, 60], [40, 20, 70, 50]])


def relevance(values=(0.7, 0.1, 0.2), *, size_px=(80, 60), boxes=BOXES, **given):
    axis = Regions.of(boxes, size_px=size_px)
    given = {"labels": ("cat",), "method": "look", "media": PHOTO, **given}
    return Relevance(values=torch.tensor([values]), axis=axis, query_axis=Slots.count(1), **given)


def test_each_region_has_its_box_and_the_strongest_is_the_thickest_and_last():
    panel = mmattn.overlay(relevance()).panels[0]
    ground, *outlines = panel.marks
    assert isinstance(ground, Raster)
    assert all(isinstance(mark, Boxes) for mark in outlines)
    assert [mark.boxes[0].tolist() for mark in outlines] == [BOXES[n].tolist() for n in (1, 2, 0)]
    widths = [mark.width_px for mark in outlines]
    assert widths == sorted(widths)
    assert outlines[-1].color != outlines[0].color
    assert panel.bar.scale.vmax == pytest.approx(0.7, abs=0.05)


def test_what_speaks_against_is_as_strong_as_what_speaks_for():
    outlines = mmattn.overlay(relevance((-0.8, 0.1, 0.4), unit="signed relevance")).panels[0].marks[1:]
    assert outlines[-1].boxes[0].tolist() == BOXES[0].tolist()


def test_boxes_in_shares_are_laid_on_the_picture_that_is_given():
    shares = relevance(size_px=(1, 1), boxes=BOXES / [80, 60, 80, 60], media=None)
    drawn = mmattn.overlay(shares, on=PHOTO).panels[0]
    assert np.allclose(drawn.marks[-1].boxes, BOXES[0])
    assert drawn.space == (0, 0, 80, 60)


def test_pictures_are_written(tmp_path):
    for suffix in (".png", ".svg"):
        assert mmattn.overlay(relevance()).save(tmp_path / f"regions{suffix}").stat().st_size > 500


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match="belong to patches"):
        mmattn.overlay(relevance(), contour=0.6)
    with pytest.raises(InputError, match=r"The picture is 80 x 60 px, and the regions are boxes in one of 90 x 60 px"):
        mmattn.overlay(relevance(size_px=(90, 60)))
    with pytest.raises(InputError, match="belong to patches"):
        mmattn.overlay(relevance(), scale=[relevance()])
    slots = Relevance(
        values=torch.ones(1, 2), axis=Slots.count(2), query_axis=Slots.count(1), labels=("a",), method="look"
    )
    with pytest.raises(PlaceError, match="no regions"):
        region_overlay(slots)

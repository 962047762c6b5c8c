"""A part of a relevance over a sequence that words and patches share: what is kept, and what is said of the rest."""

import pytest
import torch

from mmattn.errors import InputError, NotFoundError
from mmattn.schema.axes import Joined, PatchGrid, Slots, Tokens
from mmattn.schema.media import Words
from mmattn.schema.results import Relevance

TEXT = Tokens.of("a cat", pieces=["<s>", "a", "cat"], spans=[None, (0, 1), (2, 5)])
IMAGE = PatchGrid.plain(rows=1, cols=3, patch_px=(10, 10), size_px=(30, 10))
AXIS = Joined.of({"text": TEXT, "image": IMAGE}, tokens=[[0, 5, 6], [1, 2, 3]], rest="newline")


def whole(**changed):
    torch.manual_seed(0)
    values = torch.softmax(torch.randn(7, 7), dim=1) * 0.9
    given = {"values": values, "axis": AXIS, "query_axis": AXIS, "labels": tuple("0123456"), "method": "look"}
    return Relevance(**{**given, "outside": 1 - values.sum(1), "query_tokens": ((1, 5),) * 7, **changed})


def test_rows_and_columns_are_those_of_the_parts_and_nothing_is_lost():
    one = whole(uniform=torch.rand(7, 7), reach=torch.rand(7, 7) > 0.3)
    found = one.part("image", rows="text")
    rows, columns = torch.tensor([0, 5, 6]), torch.tensor([1, 2, 3])
    assert found.axis is IMAGE
    assert found.query_axis is TEXT
    assert found.labels == ("0", "5", "6")
    for name in ("values", "uniform", "reach"):
        assert torch.equal(getattr(found, name), getattr(one, name)[rows][:, columns])
    assert torch.allclose(found.values.sum(1) + found.outside, torch.ones(3))
    assert found.query_tokens == ((0,),) * 3  # token 1 of the sequence is patch 0; token 5 is a word
    assert found.query_media == Words(text="a cat")
    assert found.peak(row=1) == IMAGE.place(int(found.values[1].argmax()))


def test_what_lies_on_the_other_tokens_is_said():
    values = torch.tensor([[0.1, 0.05, 0.1, 0.1, 0.25, 0.1, 0.2]])
    one = whole(values=values, query_axis=Slots.count(1), labels=("cat",), outside=None, query_tokens=None)
    assert one.part("image").parameters["part"] == "image (text 44 %, other tokens 28 % of the weight)"
    assert one.part("text").parameters["part"] == "text (image 28 %, other tokens 28 % of the weight)"
    assert float(one.part("image").outside) == pytest.approx(0.65)
    signed = one.__class__(**{**vars(one), "values": -values, "unit": "signed relevance"})
    assert float(signed.part("image").outside) == pytest.approx(0.65)


def test_a_part_that_is_not_there_lists_those_that_are():
    with pytest.raises(NotFoundError, match="text, image"):
        whole().part("tile")
    with pytest.raises(InputError, match="one axis, without parts"):
        whole().part("image", rows="text").part("image")
    with pytest.raises(NotFoundError, match=r"None of the parts .* are Slots.*text \(Tokens\), image \(PatchGrid\)"):
        AXIS.only(Slots)
    assert AXIS.only(Tokens) == "text"


def test_of_a_picture_and_its_tiles_the_whole_one_is_meant_and_of_two_pictures_none():
    fine = PatchGrid.plain(rows=2, cols=4, patch_px=(16, 16), size_px=IMAGE.size_px)
    other = PatchGrid.plain(rows=2, cols=4, patch_px=(16, 16), size_px=(64, 32))
    count = len(IMAGE)
    where = [range(count), range(count, count + 8)]
    assert Joined.of({"image": IMAGE, "tiles": fine}, tokens=where).only(PatchGrid) == "image"
    for parts in ({"image": IMAGE, "other": other}, {"image 1": IMAGE, "image 2": fine}):
        with pytest.raises(NotFoundError, match="2 of the parts of this sequence are PatchGrid"):
            Joined.of(parts, tokens=where).only(PatchGrid)

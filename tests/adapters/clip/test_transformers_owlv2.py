"""OWLv2's processor pads a picture to a square, blurs, and resizes: places are those of its source, held to light."""

import numpy as np
import pytest
import torch
from small_towers import processor, towers
from transformers import Owlv2ImageProcessor

import mmattn
from mmattn.adapters.clip.transformers import TransformersOptions

WIDE = np.zeros((300, 400, 3), dtype=np.uint8)


def axis_of(picture, **given):
    maps = mmattn.attend(towers("OWLv2"), image=picture, text="a cat", processor=processor("OWLv2"), **given)
    return maps.select(stream="vision")[0].key_axis


def test_a_patch_has_its_box_in_the_picture_and_padding_lies_beyond():
    axis = axis_of(WIDE)  # 400 x 400 px, then 64 x 64: four patches of 100 px a side
    assert (axis.rows, axis.cols, axis.roles[0]) == (4, 4, "cls")
    assert axis.place(1) == pytest.approx((0, 0, 100, 100))
    assert axis.place(7) == pytest.approx((200, 100, 300, 200))
    assert axis.place(13)[1] == pytest.approx(300)  # the last row is padding alone
    turned = axis_of(WIDE.transpose(1, 0, 2))
    assert turned.place(4)[0] == pytest.approx(300)
    assert turned.place(13) == pytest.approx((0, 300, 100, 400))


@pytest.mark.parametrize("box", [(100, 100, 200, 200), (0, 200, 100, 300), (300, 0, 400, 100)])
def test_light_at_a_patchs_place_arrives_at_that_patch(box):
    left, top, right, bottom = box
    lit = WIDE.copy()
    lit[top:bottom, left:right] = 255
    images = processor("OWLv2").image_processor
    pixels = images(images=lit, return_tensors="pt", do_normalize=False)["pixel_values"][0, 0]
    rows, cols = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    inner = left > 0 and top > 0 and right < 400 and bottom < 300  # elsewhere the blur is folded at the edge
    axis = axis_of(lit)
    token = axis.token_at(((left + right) / 2, (top + bottom) / 2))
    row, col = divmod(int(axis.cells[token]), 4)
    patch = pixels.unfold(0, 16, 16).unfold(1, 16, 16).mean(dim=(2, 3))
    assert int(patch.argmax()) == row * 4 + col
    if inner:
        middle = [(pixels * side).sum() / pixels.sum() for side in (cols, rows)]
        assert middle == pytest.approx([(col + 0.5) * 16, (row + 0.5) * 16], abs=0.05)


def test_the_whole_picture_without_padding_and_another_size():
    squeezed = axis_of(WIDE, options=TransformersOptions(crop=False))
    assert squeezed.place(16) == pytest.approx((300, 225, 400, 300))
    plain = Owlv2ImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    maps = mmattn.attend(towers("OWLv2"), image=WIDE, processor=plain)
    assert maps[0].key_axis.place(16) == pytest.approx((300, 225, 400, 300))

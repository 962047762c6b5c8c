"""Models with sides of their own write behind their prompt: the maps are those of one eager pass over all of it."""

import numpy as np
import pytest
import torch
from small_sides import SIDED, sided, sided_processor
from written_out import SoftmaxLog

import mmattn
from mmattn.errors import InputError
from mmattn.schema.axes import Joined, Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
WRITERS = ("BLIP-2", "InstructBLIP", "Idefics", "GIT", "Mllama", "Idefics2")


def looked(name, **given):
    said = SIDED[name].texts(["the cat"])[0]
    return mmattn.attend(sided(name), image=PHOTO, text=said, processor=sided_processor(name), **given)


def wrote(name):
    return looked(name, generate=3)


@pytest.mark.parametrize("name", WRITERS)
def test_maps_of_what_was_written_are_those_of_one_eager_pass_over_all(name):
    maps = wrote(name)
    call = maps.prepared.facts.call
    with torch.no_grad(), SoftmaxLog() as log:
        sided(name, eager=True)(**call)
    layers = [one for one in maps.select(stream="decoder") if one.kind == "self"]
    length = len(layers[0].query_axis)
    expected = [one for one in log.results if one.shape[-1] == one.shape[-2] == length and one.dim() == 4]
    assert len(layers) <= len(expected)
    for layer, theirs in zip(layers, expected[-len(layers) :], strict=True):
        assert torch.allclose(layer.weights(), theirs[0], atol=1e-5)
    axis = layers[0].query_axis
    assert isinstance(axis, Joined)
    answer, where = axis.part("answer")
    assert isinstance(answer, Tokens)
    assert 1 <= len(answer) <= 3
    assert where.tolist() == list(range(length - len(answer), length))
    alone = [one for one in looked(name).select(stream="decoder") if one.kind == "self"]
    count = len(alone[0].query_axis)
    assert torch.allclose(layers[0].weights()[:, :count, :count], alone[0].weights(), atol=1e-5)


def test_what_looks_at_the_picture_across_is_read_for_written_words():
    maps = wrote("Mllama")
    found = [one for one in maps.select(stream="decoder") if one.kind == "cross"]
    assert found
    assert isinstance(found[0].query_axis, Joined)
    _, where = found[0].query_axis.part("answer")
    rows = found[0].weights()[:, where - 1].sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5)


@pytest.mark.parametrize("name", ["Florence-2", "BLIP-2, T5"])
def test_a_decoder_beside_an_encoder_writes_from_its_own_first_token(name):
    maps = wrote(name)
    call = maps.prepared.facts.call
    ids = call["decoder_input_ids"]
    assert torch.equal(maps.rerun().logits[0, :-1].argmax(1)[1:], ids[0, 2:])
    cross = [one for one in maps.select(stream="decoder") if one.kind == "cross"]
    with torch.no_grad(), SoftmaxLog() as log:
        sided(name, eager=True)(**call)
    expected = [one for one in log.results if one.shape[-2:] == (len(cross[0].query_axis), len(cross[0].key_axis))]
    for layer, theirs in zip(cross, expected[-len(cross) :], strict=True):
        assert torch.allclose(layer.weights(), theirs[0], atol=1e-5)
    answer, where = cross[-1].query_axis.part("answer")
    assert where.tolist() == list(range(1, ids.shape[1]))
    found = mmattn.between(maps)
    assert found.query_axis is answer
    rows = maps.composed()[cross[-1].name]
    _, cells = rows.key_axis.part("image")
    assert torch.allclose(found.values, rows.weights().mean(0)[where - 1][:, cells], atol=1e-6)


def test_a_model_that_writes_nothing_says_so():
    with pytest.raises(InputError, match="got generate"):
        wrote("BLIP-2, matching")

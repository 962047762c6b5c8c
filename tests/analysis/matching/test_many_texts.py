"""Many texts: some run at a time, one look at the picture, and the numbers of a short list."""

import numpy as np
import pytest
import torch
from two_towers import PHOTO, TEXTS, small

import mmattn
from mmattn import plugins
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.media import Words

THINGS = ["cat", "dog", "car", "tree", "sun"]
MANY = [*(f"{color} {thing}" for color in ("red", "a blue", "no") for thing in THINGS), *TEXTS]
MANY += [f"{one} and more" for one in MANY]  # 34, more than run at a time, and more words than a feature has numbers
METHODS = ["interaction", "chefer", "gradeclip", "naclip", "legrad", "similarity"]


@pytest.fixture(scope="module")
def model():
    return small()


def seen_sizes(model, texts, method):
    """How many texts entered the text tower's blocks in each of its passes, and how many pictures the other's."""
    said, seen = [], []
    handles = [
        model.transformer.register_forward_pre_hook(lambda module, args: said.append(len(args[0]))),
        model.visual.register_forward_pre_hook(lambda module, args: seen.append(len(args[0]))),
    ]
    try:
        found = mmattn.match(model, PHOTO, texts=texts, method=method, **({"steps": 1} if method[0] == "i" else {}))
    finally:
        for handle in handles:
            handle.remove()
    return found, said, seen


@pytest.mark.parametrize("method", METHODS)
def test_a_long_list_gives_the_numbers_of_short_ones_and_runs_some_at_a_time(model, method):
    found, said, seen = seen_sizes(model, MANY, method)
    assert max(said) < len(MANY)
    alone, _, once = seen_sizes(model, MANY[-1:], method)
    assert seen == once, "the picture is looked at as often as for one text"
    largest = float(alone.overall[0].values.abs().max())
    assert torch.allclose(found.overall[-1].values, alone.overall[0].values, atol=1e-5 * largest)
    assert torch.allclose(found.relevances[-1].values, alone.relevances[0].values, atol=1e-5 * largest)
    assert torch.allclose(found.scores[-1:], alone.scores, atol=1e-4)
    assert len(found.texts) == len(found.relevances) == len(MANY)


def test_what_stands_behind_a_texts_end_is_left_out_without_a_difference(model):
    """The blocks of the text tower see the pieces alone; the features are those of the whole row."""
    _, adapter = plugins.claiming(model)
    prepared = adapter.prepare(model, MediaGiven(text=[Words(text=one) for one in TEXTS]), None, None)
    lengths = []
    handle = model.transformer.resblocks[0].register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].shape)
    )
    try:
        with torch.no_grad():
            for blank in (False, True):
                whole, brief = (adapter.text_features(model, prepared, blank=blank, brief=b) for b in (False, True))
                assert torch.allclose(whole, brief, atol=1e-6)
    finally:
        handle.remove()
    assert [shape[1] for shape in lengths] == [77, 8, 77, 8]


def test_several_pictures_share_one_look_at_the_texts(model):
    ran = []
    handle = model.transformer.register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    try:
        mmattn.match(model, PHOTO, texts=TEXTS, method="chefer")
        once = list(ran)
        found = mmattn.match(model, [PHOTO, PHOTO[::-1].copy(), np.zeros_like(PHOTO)], texts=TEXTS, method="chefer")
    finally:
        handle.remove()
    assert ran == once * 2
    assert len({float(one.scores[0]) for one in found}) == 3

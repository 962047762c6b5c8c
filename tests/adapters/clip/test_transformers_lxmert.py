"""LXMERT: words and a detector's regions ask each other, held to the library's own attentions."""

import functools

import numpy as np
import pytest
import torch
import transformers as hf
from small_towers import word_pieces

import mmattn
from mmattn.errors import InputError
from mmattn.schema.axes import Regions
from mmattn.schema.tokens import Tokens

PHOTO = np.zeros((120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]
CLASSES = ("LxmertModel", "LxmertForQuestionAnswering", "LxmertForPreTraining")
BOXES = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.4, 0.3], [0.5, 0.5, 1.0, 0.75]]]).expand(2, -1, -1)


@functools.cache
def tokenizer():
    return word_pieces()


@functools.cache
def model_of(name):
    torch.manual_seed(0)
    config = hf.LxmertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=len(tokenizer()), l_layers=2,
        x_layers=2, r_layers=1, visual_feat_dim=10, num_qa_labels=5, num_object_labels=4, num_attr_labels=3,
        initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return getattr(hf, name)(config).eval()


def regions():
    return {"visual_feats": torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1)), "visual_pos": BOXES}


def maps_of(name="LxmertModel", **given):
    given = {"image": PHOTO, "text": TEXTS, "inputs": regions(), **given}
    return mmattn.attend(model_of(name), processor=tokenizer(), **given)


def weights_of(maps, **chosen):
    return [torch.stack([layer.sample(n).weights() for n in range(2)]) for layer in maps.select(**chosen)]


@pytest.mark.parametrize("name", CLASSES)
def test_weights_are_the_librarys_own(name):
    maps, words = maps_of(name), tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        given = {key: value for key, value in words.items() if key != "token_type_ids"}
        output = model_of(name)(**given, **regions(), output_attentions=True)
    pairs = [
        *zip(weights_of(maps, stream="text"), output.language_attentions, strict=True),
        *zip(weights_of(maps, stream="vision"), output.vision_attentions, strict=True),
        *zip(weights_of(maps, stream="cross.text", kind="cross"), output.cross_encoder_attentions, strict=True),
    ]
    assert len(pairs) == 5
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert all(layer.error is not None and layer.error < 1e-5 for layer in maps)  # A V against the module's output
    assert len(maps.layers) == 2 + 1 + 2 * 4
    assert not maps.left_out


def test_regions_ask_words_and_words_ask_regions():
    maps = maps_of().samples[1]
    asked, back = [layer for layer in maps if layer.kind == "cross"][:2]
    assert (asked.stream, back.stream) == ("cross.text", "cross.vision")
    assert asked.name == back.name  # one module, both ways
    assert isinstance(asked.query_axis, Tokens)
    assert isinstance(asked.key_axis, Regions)
    assert (back.query_axis, back.key_axis) == (asked.key_axis, asked.query_axis)
    assert [word.text for word in asked.query_axis.words()] == ["red", "sports", "car"]
    assert np.allclose(asked.key_axis.places(), [[0, 0, 90, 120], [9, 12, 36, 36], [45, 60, 90, 90]])
    pads = [token for token, role in enumerate(back.key_axis.roles) if role == "pad"]
    assert back.weights().shape == (4, 3, len(back.key_axis))
    assert not bool(back.weights()[..., pads].any())
    looked = mmattn.look(maps, stream="cross.text", kind="cross", query=1)
    assert looked.axis is asked.key_axis
    assert len(mmattn.overlay(looked).panels[0].marks) == 1 + 3  # the picture, and each region's box


def test_a_region_that_is_masked_has_no_place():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    maps = maps_of(inputs={**regions(), "visual_attention_mask": mask}).samples[0]
    layer = maps.select(stream="vision")[0]
    assert layer.key_axis.roles == ("content", "content", "pad")
    assert not bool(layer.weights()[..., 2].any())


def test_without_a_picture_places_are_shares_and_one_picture_stands_with_all_texts():
    one = {name: value[:1] for name, value in regions().items()}
    axis = maps_of(inputs=one, image=None).samples[1].select(stream="vision")[0].key_axis
    assert axis.place(1) == pytest.approx((0.1, 0.1, 0.4, 0.3))
    ids = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    bare = maps_of(inputs={**regions(), **ids}, text=None)
    for ours, theirs in zip(maps_of(), bare, strict=True):
        assert torch.allclose(ours.sample(0).weights(), theirs.sample(0).weights(), atol=1e-6)


def test_what_is_missing_is_said():
    with pytest.raises(InputError, match=r"given no tensors\. It sees the regions of a detector.*visual_pos"):
        maps_of(inputs=None)
    with pytest.raises(InputError, match=r"was given no text"):
        maps_of(text=None)
    with pytest.raises(InputError, match=r"values from 0 to 90.*Divide pixels by the sides"):
        maps_of(inputs={**regions(), "visual_pos": BOXES * 90})
    with pytest.raises(InputError, match=r"visual_feats holds 2 samples and there are 3 texts"):
        maps_of(text=["a", "b", "c"])
    with pytest.raises(InputError, match=r"There are 3 pictures and 2 texts"):
        maps_of(image=[PHOTO] * 3)


def test_answers_are_scored():
    maps = maps_of("LxmertForQuestionAnswering")
    found = mmattn.relevance(maps, method="attention_x_gradient", target=2, stream="text")
    assert float(found[0].values.abs().sum()) > 0

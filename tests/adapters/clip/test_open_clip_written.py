"""CoCa writes about a picture: the loop of its own logits, and the maps of each word that it wrote."""

import numpy as np
import pytest
import torch
from small_clips import clip, worked_out

import mmattn
from mmattn.errors import InputError
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def wrote(name="CoCa", **given):
    return mmattn.attend(clip(name), **{"image": PHOTO, "generate": 5, **given})


@pytest.mark.parametrize("name", ["CoCa", "CoCa without a pool"])
def test_each_token_is_the_models_best_and_has_the_map_that_wrote_it(name):
    maps, model = wrote(name), clip(name)
    pixels, ids = maps.prepared.inputs
    assert ids.shape == (1, 7)
    for count in range(1, 6):
        with torch.no_grad():
            logits = model(pixels, ids[:, :count], output_labels=False)["logits"]
        assert int(logits[0, -1].argmax()) == int(ids[0, count])
    expected = worked_out(model, maps.rerun)
    cross = maps.select(stream="decoder", kind="cross")
    for layer in cross:
        assert torch.allclose(layer.storage[0].weights(), expected[layer.name], atol=1e-5)
    words = cross[-1].query_axis
    assert isinstance(words, Tokens)
    assert words.roles == ("bos", *["content"] * 5) or "continuation" in words.roles
    text = model_text(ids[0, 1:6])
    assert words.text == text
    found = mmattn.between(maps, stream="decoder", kind="cross", writing=True)
    rows = maps.composed()[cross[-1].name].weights().mean(0)
    assert torch.allclose(found.values[1:], rows[:-1], atol=1e-6)
    assert mmattn.links(found).panels


def model_text(ids):
    import open_clip

    return open_clip.tokenizer.SimpleTokenizer().decode(ids.tolist())


def test_a_text_is_gone_on_with():
    maps = wrote(text="a photo of", generate=3)
    ids = maps.prepared.inputs[1][0]
    axis = maps.select(stream="decoder", kind="cross")[-1].query_axis
    assert axis.text.startswith("a photo of ")
    assert [word.text for word in axis.words()][:3] == ["a", "photo", "of"]
    assert len(ids) == 8
    assert len(axis) == 7


def test_pairs_write_each_their_own():
    other = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    both = wrote(image=[PHOTO, other])
    alone = wrote(image=other)
    assert torch.equal(both.prepared.inputs[1][1], alone.prepared.inputs[1][0])


def test_what_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="a text was given alone"):
        wrote(image=None, text="a photo")
    with pytest.raises(InputError, match=r"generate=50 is more than the \d+ tokens that fit"):
        wrote(generate=50)
    with pytest.raises(InputError, match="no number of tokens"):
        wrote(generate=0)
    with pytest.raises(InputError, match="different lengths"):
        wrote(image=[PHOTO, PHOTO], text=["a", "a photo of"])
    with pytest.raises(InputError, match="got generate"):
        mmattn.attend(clip("OpenAI"), image=PHOTO, generate=3)

"""Decoders write behind their prompt: the maps of every written word are those of one eager pass over the whole."""

import numpy as np
import pytest
import torch
from small_streams import STREAMS, stream, stream_processor

import mmattn
from mmattn.errors import InputError, ModelError
from mmattn.schema.axes import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
TEXT = "What is this?"


def wrote(name, *, count=4, **given):
    given = given or {"image": PHOTO, "text": TEXT}
    return mmattn.attend(stream(name), processor=stream_processor(name), generate=count, **given)


@pytest.mark.parametrize("name", STREAMS)
def test_maps_of_what_was_written_are_those_of_one_eager_pass_over_all(name):
    maps = wrote(name)
    inputs = maps.prepared.facts.inputs
    with torch.no_grad():
        expected = stream(name, eager=True)(**inputs, output_attentions=True).attentions
    layers = maps.select(stream="decoder")
    assert len(layers) == len(expected) == 2
    for layer, theirs in zip(layers, expected, strict=True):
        assert layer.error < 1e-5
        assert torch.allclose(layer.weights(), theirs[0], atol=1e-5)
    axis = layers[0].query_axis
    answer, where = axis.part("answer")
    assert isinstance(answer, Tokens)
    assert 1 <= len(answer) == len(where) <= 4  # fewer where one ends the text
    assert where.tolist() == list(range(len(axis) - len(where), len(axis)))
    logits = maps.rerun().logits[0]
    assert torch.equal(logits[where - 1].argmax(1), inputs["input_ids"][0, where])
    before = mmattn.attend(stream(name), image=PHOTO, text=TEXT, processor=stream_processor(name))
    for layer, alone in zip(layers, before.select(stream="decoder"), strict=True):
        count = len(alone.query_axis)
        assert torch.allclose(layer.weights()[:, :count, :count], alone.weights(), atol=1e-5)


def test_where_it_looked_when_it_wrote_a_word(tmp_path):
    maps = wrote("Llava", count=6)
    axis, dense = maps[-1].query_axis, maps[-1].weights().mean(0)
    (answer, where), (_, cells) = axis.part("answer"), axis.part("image")
    found = mmattn.between(maps)
    assert found.query_axis is answer
    assert torch.allclose(found.values, dense[where - 1][:, cells], atol=1e-6)
    said = answer.words()
    assert said
    assert mmattn.links(found).save(tmp_path / "wrote.png").exists()
    asked = mmattn.between(maps, asking="text", layer="mean")
    assert [word.text for word in asked.query_axis.words()] == ["What", "is", "this", "?"]
    again = mmattn.relevance(maps, target=(int(where[0]) - 1, 5), query=int(where[0]) - 1)
    assert float(again.values.sum()) > 0


def test_pairs_write_each_their_own():
    other = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    both = wrote("Llava", image=[PHOTO, other], text=[TEXT, TEXT])
    for sample, photo in zip(both.samples, (PHOTO, other), strict=True):
        alone = wrote("Llava", image=photo, text=TEXT)
        assert sample[-1].query_axis.part("answer")[0].pieces == alone[-1].query_axis.part("answer")[0].pieces
        assert torch.allclose(sample[-1].weights(), alone[-1].weights(), atol=1e-5)


def test_prompts_that_end_in_padding_are_refused_and_a_recording_writes_nothing():
    with pytest.raises(InputError, match="shorter ones end in padding"):
        wrote("Llava", image=PHOTO, text=[TEXT, "What is this on the mat?"])
    model, inputs = stream("Llava"), wrote("Llava").prepared.facts.inputs
    with mmattn.capture(model) as recording, torch.no_grad():
        model(**inputs)
    with pytest.raises(InputError, match="this is a recording"):
        mmattn.attend(recording, image=PHOTO, text=TEXT, processor=stream_processor("Llava"), generate=3)


def test_a_prompt_that_is_read_from_both_sides_has_no_likelihood():
    with pytest.raises(ModelError, match="PaliGemma reads its prompt from both sides"):
        mmattn.match(stream("PaliGemma"), PHOTO, texts=TEXT, processor=stream_processor("PaliGemma"))


def test_maps_of_what_was_written_come_back_from_a_file(tmp_path):
    maps = wrote("Llava")
    maps.save(tmp_path / "wrote.safetensors")
    again = mmattn.load(tmp_path / "wrote.safetensors")
    assert torch.equal(mmattn.between(again).values, mmattn.between(maps).values)

"""Prompts: where a picture's mark stands, templates, several pictures, batches, and what cannot be asked."""

import numpy as np
import pytest
import torch
from eager_weights import eager_weights
from PIL import Image
from small_streams import STREAMS, stream, stream_processor

import mmattn
from mmattn.adapters.vlm.known import CLASSES, class_of, opens_config
from mmattn.errors import InputError
from mmattn.schema.axes import PatchGrid, Positions

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}MARK{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}\n{% endfor %}assistant:"
)


def picture(size=(60, 40), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def attended(name, image, text, **more):
    given = {"processor": stream_processor(name), **more}
    return mmattn.attend(stream(name), image=image, text=text, **given)


def decoder_axis(maps, sample=0):
    return maps.samples[sample].select(stream="decoder")[0].query_axis


def said_by(name, maps, sample=0):
    """Each word of the user's, and what its tokens spell."""
    text, at = decoder_axis(maps, sample).part("text")
    ids = maps.prepared.facts.inputs["input_ids"][sample]
    tokenizer = stream_processor(name).tokenizer
    return [(word.text, tokenizer.decode(ids[at[list(word.tokens)]]).strip()) for word in text.words()]


def test_a_text_with_its_own_mark_is_taken_as_it_is():
    text = "a red <image> mat"
    maps = attended("Llava", picture(), text)
    axis = decoder_axis(maps)
    words, at = axis.part("text")
    assert [word.text for word in words.words()] == ["a", "red", "mat"]
    assert [text[slice(*word.span)] for word in words.words()] == ["a", "red", "mat"]
    where = axis.part("image")[1]
    red, mat = (at[list(word.tokens)] for word in words.words()[1:])
    assert red.max() < where.min() <= where.max() < mat.min()
    drawing = mmattn.overlay(mmattn.look(maps, query="red").part("image"))
    assert "nothing in reach" in repr(drawing)  # what stands behind a word is hidden from it


def test_a_chat_template_is_filled_and_its_own_words_are_none_of_the_users():
    processor = stream_processor("Llava")
    twin = type(processor)(
        processor.image_processor,
        processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("MARK", "<image>"),
    )
    for text in ("user", "assistant:", " the cat "):
        maps = attended("Llava", picture(), text, processor=twin)
        assert [word for word, _ in said_by("Llava", maps)] == text.replace(":", " :").split()
        words, at = decoder_axis(maps).part("text")
        ids = maps.prepared.facts.inputs["input_ids"][0]
        before = processor.tokenizer.decode(ids[: at[list(words.words()[0].tokens)].min()])
        assert before.count("user") == 1
        assert "image" in before


@pytest.mark.parametrize("name", STREAMS)
def test_several_pictures_stand_in_one_prompt(name):
    first, second = picture(), picture((40, 60), seed=1)
    mark = stream_processor(name).image_token
    maps = attended(name, [first, second], f"the {mark} cat {mark} on mat")
    assert maps.sample_count == 1
    assert maps.media == ()  # which picture a part is drawn on is the caller's to say
    axis = decoder_axis(maps)
    assert [word for word, _ in said_by(name, maps)] == ["the", "cat", "on", "mat"]
    assert all(word == spelled for word, spelled in said_by(name, maps))
    assert axis.names[0] == "text"
    sizes = {part: axis.part(part)[0].size_px for part in axis.names[1:]}
    assert sizes == {part: (60, 40) if part.endswith("1") else (40, 60) for part in sizes}
    assert {part.rpartition(" ")[2] for part in sizes} == {"1", "2"}
    model = stream(name, eager=True)
    with torch.no_grad(), eager_weights(model) as own:
        model(**maps.prepared.facts.inputs)
    for layer in maps:
        weights = layer.weights()
        assert (weights.sum(dim=-1) - 1).abs().max() <= 1e-5
        if layer.stream == "decoder":
            assert (weights - own[layer.name][0][0]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", STREAMS)
def test_a_batch_of_prompts_of_different_lengths_is_each_prompt_alone(name):
    images, texts = [picture(), picture((40, 60), seed=1)], ["the cat", "a red car on the mat"]
    maps = attended(name, images, texts)
    assert len(maps.samples) == len(maps.media) == 2
    for sample, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = attended(name, image, text)
        axis, own = decoder_axis(maps, sample), decoder_axis(alone)
        assert said_by(name, maps, sample) == said_by(name, alone)
        assert axis.names == own.names
        for part in axis.names[1:]:
            mine, theirs = axis.part(part)[0], own.part(part)[0]
            assert (mine.places() == theirs.places()).all()
        for layer, lonely in zip(maps.samples[sample], alone, strict=True):
            assert layer.name == lonely.name
            if layer.stream == "vision":
                assert (layer.weights() - lonely.weights()).abs().max() <= 1e-5, layer.name
        real = [n for n, role in enumerate(axis.roles) if role != "pad"]
        assert len(real) == len(own)
        layer, lonely = (one.select(stream="decoder")[0] for one in (maps.samples[sample], alone))
        assert (layer.weights()[:, real][:, :, real] - lonely.weights()).abs().max() <= 1e-4


def test_one_picture_is_held_against_several_texts():
    maps = attended("Llava", picture(), ["the cat", "a dog"])
    assert len(maps.samples) == 2
    assert [word for word, _ in said_by("Llava", maps, 1)] == ["a", "dog"]


def test_lists_of_pictures_stand_in_a_prompt_each():
    maps = attended("Qwen2-VL", [[picture(), picture(seed=1)], [picture(seed=2)]], "the cat")
    assert decoder_axis(maps).names == ("text", "image 1", "image 2")
    assert decoder_axis(maps, 1).names == ("text", "image")


def test_prepared_tensors_alone_have_places_in_their_own_pixels():
    name = "Llava"
    inputs = dict(attended(name, picture(), "the cat").prepared.facts.inputs)
    maps = mmattn.attend(stream(name), inputs=inputs)
    axis = decoder_axis(maps)
    grid, _ = axis.part("image")
    assert isinstance(grid, PatchGrid)
    assert grid.size_px == (32, 32)
    assert isinstance(axis.part("text")[0], Positions)
    named = attended(name, picture(), "the cat", inputs=inputs)
    assert decoder_axis(named).part("image")[0].size_px == (60, 40)
    with pytest.raises(InputError, match="is not what the processor makes"):
        attended(name, picture(seed=3), "the cat", inputs=inputs)
    tiles = dict(attended("Idefics3", picture(), "the cat").prepared.facts.inputs)
    with pytest.raises(InputError, match="Pass image= and text= as well"):
        mmattn.attend(stream("Idefics3"), inputs=tiles)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": picture()}, "given a picture alone"),
        ({"text": "the cat"}, "given a text alone"),
        ({"image": picture(), "text": "<image> <image> cat"}, "2 mark"),
        ({"image": picture(), "text": " "}, "The text is empty"),
        ({"image": [picture()] * 2, "text": ["the cat"] * 3}, "2 pictures and 3 texts"),
        ({"image": picture(), "text": "cat", "options": 3}, "has none"),
        ({"image": picture(), "text": "cat", "audio": np.zeros(3)}, "was given audio"),
        ({"image": picture(), "text": "cat", "processor": stream_processor("Llava").tokenizer}, "pictures and texts"),
        ({"inputs": {"input_ids": torch.zeros(1, 3).long()}}, "input_ids and pixel_values"),
        ({"image": picture(), "text": "cat", "processor": None}, "No processor was saved"),
    ],
)
def test_what_makes_no_prompt_is_said(given, said):
    given = {"processor": stream_processor("Llava"), **given}
    with pytest.raises(InputError, match=said):
        mmattn.attend(stream("Llava"), **given)


def test_a_folder_is_opened_with_its_processor(tmp_path):
    name = "Qwen2-VL"
    stream(name).save_pretrained(tmp_path)
    stream_processor(name).save_pretrained(tmp_path)
    maps = mmattn.attend(f"hf:{tmp_path}", image=picture(), text="the cat")
    assert maps.source.adapter == "transformers.vlm"
    own = attended(name, picture(), "the cat")
    for layer, other in zip(maps, own, strict=True):
        assert (layer.weights() - other.weights()).abs().max() <= 1e-5


def test_every_class_of_the_table_is_tried_here():
    tried = {id(class_of(stream(name))) for name in STREAMS}
    assert {id(how) for how in CLASSES.values()} == tried
    assert class_of(torch.nn.Linear(2, 2)) is None
    assert opens_config({"architectures": ["Qwen3VLForConditionalGeneration"]})

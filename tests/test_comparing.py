"""`mmattn.match`: which models, which words, and what is drawn of it."""

import re
import warnings

import numpy as np
import open_clip
import pytest
import timm
import torch
from small_towers import processor, towers

import mmattn
from mmattn.errors import InputError, ModelError, NoAttentionError, NotFoundError

PHOTO = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
TEXTS = ["a red cat on the mat", "the dog on the photo"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg={"width": 64, "heads": 2, "layers": 1}).eval()


@pytest.fixture(scope="module")
def found(model):
    return mmattn.match(model, PHOTO, texts=TEXTS)


def test_a_word_is_asked_for_by_its_spelling_its_number_or_its_characters(found):
    by_name = found.word("cat")
    assert torch.equal(by_name.values, found.word(2).values)
    assert torch.equal(by_name.values, found.word((6, 9)).values)
    rows = found.relevances[0].query_axis.words()[2].tokens
    assert torch.equal(by_name.values[0], found.relevances[0].values[list(rows)].sum(dim=0))
    assert by_name.labels == ("‘cat’ in ‘a red cat on the mat’",)
    assert [word.text for word in found.words(1)] == ["the", "dog", "on", "the", "photo"]
    both = found.word("red cat")
    assert torch.allclose(both.values, found.word("red").values + found.word("cat").values)


def test_a_word_of_another_text_is_found_by_the_text_or_its_number(found):
    assert torch.equal(found.word("dog", text=1).values, found.word("dog", text=TEXTS[1]).values)


def test_what_names_no_word_lists_the_words(found):
    with pytest.raises(NotFoundError, match="no word 'dog' in the text. Its words are: "):
        found.word("dog")
    with pytest.raises(NotFoundError, match="There is no word 9: the text has 6 words, 0 'a', 1 'red', 2 'cat'"):
        found.word(9)
    with pytest.raises(NotFoundError, match="'the' stands several times in the text \\(words 0, 3\\)"):
        found.word("the", text=1)
    with pytest.raises(InputError, match="names no word. It is a word, its number, or its characters"):
        found.word(True)
    with pytest.raises(NotFoundError, match="No word stands in the characters 90 to 95: the text has 20"):
        found.word((90, 95))
    with pytest.raises(NotFoundError, match="There is no text 'a cow' in this match. Its texts are: a red cat"):
        found.word("cat", text="a cow")
    with pytest.raises(NotFoundError, match="There is no text 2: this match has 2, 0 to 1"):
        found.word("cat", text=2)


def test_a_contrast_is_the_difference_of_two_prompts_around_zero(found):
    between = found.contrast(0, 1)
    assert torch.equal(between.values, found.overall[0].values - found.overall[1].values)
    assert torch.equal(found.contrast(TEXTS[1], TEXTS[0]).values, -between.values)
    assert between.unit == "signed relevance"
    assert between.labels == ("‘a red cat on the mat’ minus ‘the dog on the photo’",)
    bar = mmattn.overlay(between).panels[0].bar
    assert bar.scale.vmin == -bar.scale.vmax


@pytest.mark.parametrize("method", ["interaction", "chefer", "gradeclip", "similarity"])
def test_lines_are_drawn_between_the_words_and_their_strongest_patches(model, method):
    one = mmattn.match(model, PHOTO, texts=TEXTS, method=method)
    drawing = mmattn.links(one.relevances[0], focus="cat", k=1)
    row = one.word("cat")
    strongest = row.axis.content[int(row.values[0, row.axis.content].abs().argmax())]
    assert drawing.panels[0].boxes("cat") == [pytest.approx(row.axis.place(strongest))]
    assert method in drawing.caption
    assert len(mmattn.draw(one)) == 2
    assert mmattn.overlay(row).image().size[0] >= 120


def test_a_text_of_one_word_is_that_words_prompt(model):
    one = mmattn.match(model, PHOTO, texts=["cat", "a cat"], method="chefer")
    alone = mmattn.match(model, PHOTO, texts="a cat", method="chefer")
    assert torch.equal(one.word("cat", text=1).values, one.overall[0].values)
    assert torch.allclose(one.word("cat", text=1).values, alone.word("cat").values, atol=1e-6)
    assert torch.equal(one.word("cat", text=0).values, one.overall[0].values)


def test_a_model_of_transformers_is_matched_with_its_processor():
    for name in ("CLIP", "SigLIP"):
        found = mmattn.match(towers(name), PHOTO, texts=TEXTS, processor=processor(name))
        assert found.relevances[0].source.adapter == "transformers.clip"
        assert found.relevances[0].values.abs().sum() > 0
        given = processor(name)(text=TEXTS, images=[PHOTO], padding="max_length", max_length=24, return_tensors="pt")
        with torch.no_grad():
            assert torch.allclose(found.scores, towers(name)(**given).logits_per_image[0], atol=1e-3)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "ChineseCLIP"])
def test_the_matrix_of_a_model_of_transformers_sums_to_what_the_pair_adds(name):
    """The four corners are found by hooks of the test's own on the last layers, which it names."""
    model, made = towers(name), processor(name)
    found = mmattn.match(model, PHOTO, texts=TEXTS[:1], processor=made, steps=24)
    pad = made.tokenizer.pad_token_id
    words = dict(
        made.tokenizer(
            TEXTS[:1], padding="max_length" if name == "SigLIP" else True, max_length=24, return_tensors="pt"
        )
    )
    special = [made.tokenizer.get_special_tokens_mask(words["input_ids"][0].tolist(), already_has_special_tokens=True)]
    blank = {**words, "input_ids": words["input_ids"].masked_fill(~torch.tensor(special).bool(), pad)}
    pictures = [made.image_processor(one, return_tensors="pt") for one in (PHOTO, np.zeros_like(PHOTO))]
    layers = model.text_model.encoder, model.vision_model.encoder
    texts = tails(model.get_text_features, getattr(layers[0], "layers", None) or layers[0].layer, words, blank, at=0)
    images = tails(model.get_image_features, layers[1].layers, *pictures)
    expected = float((images[0] - images[1]) @ (texts[0] - texts[1]).T)
    assert abs(float(found.relevances[0].values.sum()) - expected) < 5e-3 * max(abs(expected), 0.1)


def tails(features, layers, own, reference, *, at=-1):
    """Features of an input, and of that input with the reference's tokens at the entrance of a layer."""
    entered = []
    with torch.no_grad():
        handle = layers[at].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
        features(**reference)
        handle.remove()
        there = features(**own).pooler_output
        handle = layers[at].register_forward_pre_hook(lambda module, args: (entered[0], *args[1:]))
        moved = features(**own).pooler_output
        handle.remove()
    return [torch.nn.functional.normalize(one, dim=-1) for one in (there, moved)]


def test_texts_that_are_none_are_refused(model):
    for texts in ([], "", ["a cat", "  "]):
        with pytest.raises(InputError, match="empty|holds no texts"):
            mmattn.match(model, PHOTO, texts=texts)
    with pytest.raises(InputError, match="list of images is empty"):
        mmattn.match(model, [], texts="a cat")


def test_a_text_that_spells_a_sign_of_its_tokenizer_is_refused_by_name(model):
    """It would end the text there: the feature is read from the first end."""
    for name, sign, kwargs in (
        (model, "<end_of_text>", {}),
        (model, "<START_of_text>", {}),
        (towers("CLIP"), "<|endoftext|>", {"processor": processor("CLIP")}),
    ):
        with pytest.raises(InputError, match=re.escape(f"The text holds {sign}, which its tokenizer takes for the")):
            mmattn.match(name, PHOTO, texts=["a cat", f"a cat {sign} on a mat"], **kwargs)
    assert len(mmattn.match(model, PHOTO, texts="a < end_of_text > cat").words()) > 2


def test_a_text_of_half_letters_is_refused(model):
    with pytest.raises(InputError, match=r"Text 1 holds half a letter .* 'a .ud800 cat'"):
        mmattn.match(model, PHOTO, texts=["a cat", "a \ud800 cat"])


def test_captions_know_the_library_and_how_the_text_was_read(found):
    source = found.relevances[0].source
    assert source.versions["open_clip"] == open_clip.__version__
    assert source.preprocessing.endswith("; text as 77 tokens")


def test_a_pairs_own_score_is_called_by_its_text(model):
    maps = mmattn.attend(model, image=PHOTO, text=["a cat", "a dog on a mat"])
    assert [one.target for one in mmattn.relevance(maps, method="chefer")] == ["‘a cat’", "‘a dog on a mat’"]
    one = mmattn.attend(towers("BLIP, matching"), image=PHOTO, text="a cat", processor=processor("BLIP, matching"))
    assert mmattn.relevance(one, method="chefer").target == "its own score"


def test_models_without_two_towers_are_refused_by_name(model):
    with pytest.raises(ModelError, match="VisionTransformer has not two towers, of pictures and of texts"):
        mmattn.match(timm.create_model("vit_tiny_patch16_224", img_size=32).eval(), PHOTO, texts="a cat")
    with pytest.raises(ModelError, match=r"No adapter reads torch.*words that ask patches \(BLIP, CoCa, ...\)"):
        mmattn.match(torch.nn.Linear(2, 2), PHOTO, texts="a cat")
    traced = torch.jit.trace(model.visual, torch.rand(1, 3, 32, 32))
    with pytest.raises(NoAttentionError, match="traced TorchScript module"):
        mmattn.match(traced, PHOTO, texts="a cat")


def test_a_model_in_training_mode_is_warned_of(model):
    model.train()
    try:
        with pytest.warns(UserWarning, match="CLIP is in training mode"):
            mmattn.match(model, PHOTO, texts="a cat", method="similarity")
    finally:
        model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mmattn.match(model, PHOTO, texts="a cat", method="similarity")


def test_a_text_that_is_cut_is_told_and_read_as_far_as_it_goes(model):
    with pytest.warns(UserWarning, match="it does not see"):
        found = mmattn.match(model, PHOTO, texts="cat " * 90)
    assert len(found.words()) == 75

"""Models whose words ask patches, against their libraries' own modules and formulas written out."""

import copy
import functools

import numpy as np
import open_clip
import pytest
import torch
from small_captioner import coca
from small_towers import encoded, processor, towers
from written_out import SoftmaxLog

import mmattn
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.schema.axes import PatchGrid

NOTE = "composed with visual.attn_pool.attn"
PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ("A cat on the mat", "red sports car")
CROSSED = ["BLIP, matching", "BLIP, captions", "BridgeTower, matching"]


@pytest.fixture(scope="module")
def captioner():
    return coca()


@functools.cache
def matched(name, texts=TEXTS, **asked):
    return mmattn.match(towers(name), PHOTO, texts=list(texts), processor=processor(name), **asked)


@functools.cache
def eager(name):
    """The library's own softmaxes and output for the pairs."""
    with torch.no_grad(), SoftmaxLog() as log:
        output = towers(name, eager=True)(**encoded(name, images=[PHOTO, PHOTO], texts=list(TEXTS)))
    return log.results, output


def crossing(results):
    """Softmaxes from texts to patches: 10 words or so over a class token and 16 patches."""
    return [one for one in results if one.shape[-1] == 17 and one.shape[-2] != 17]


@pytest.mark.parametrize("name", CROSSED)
def test_a_row_is_the_cross_attention_that_the_library_ran(name):
    layers = crossing(eager(name)[0])
    assert len(layers) == 2
    writes = "captions" in name
    for number, weights in enumerate(layers):
        for head in (None, 2):
            found = matched(name, method="cross", layer=number, head=head)
            for text, relevance in enumerate(found.relevances):
                expected = weights[text].mean(dim=0) if head is None else weights[text, head]
                for token in relevance.query_axis.content:
                    row = token - 1 if writes else token  # the map that wrote word i + 1 is row i
                    assert torch.allclose(relevance.values[token], expected[row], atol=1e-5)
    last = matched(name, method="cross")
    assert "1 (0 to 1)" in str(last.relevances[0].parameters["layer"])
    assert last.relevances[0].unit == "share"


@pytest.mark.parametrize("name", ["BLIP, matching", "BridgeTower, matching"])
def test_a_matching_head_scores_by_the_probability_of_a_match(name):
    output = eager(name)[1]
    logits = output.itm_score if name.startswith("BLIP") else output.logits
    found = matched(name, method="cross")
    assert torch.allclose(found.scores, logits.softmax(dim=1)[:, 1], atol=1e-5)
    assert (found.unit, found.cosines) == ("probability of a match", None)
    assert "probability of a match" in repr(found)


def test_a_caption_is_scored_by_how_likely_the_model_is_to_write_its_tokens():
    given = encoded("BLIP, captions", images=[PHOTO, PHOTO], texts=list(TEXTS))
    logits, ids = eager("BLIP, captions")[1].logits, given["input_ids"]
    found = matched("BLIP, captions", method="cross")
    for text in range(2):
        length = int(given["attention_mask"][text].sum())
        steps = logits[text, : length - 1].log_softmax(dim=-1)
        expected = sum(float(steps[row, ids[text, row + 1]]) for row in range(length - 1)) / (length - 1)
        assert float(found.scores[text]) == pytest.approx(expected, rel=1e-5)
    assert found.unit == "log-likelihood per token"


@pytest.mark.parametrize("name", CROSSED)
@pytest.mark.parametrize("method", ["chefer", "cross_rollout", "cross"])
def test_a_text_is_read_alike_alone_and_among_others(name, method):
    both, alone = matched(name, method=method), matched(name, texts=TEXTS[1:], method=method)
    words = alone.relevances[0].values
    span = float(words.max())
    assert torch.allclose(both.relevances[1].values[: len(words)], words, atol=1e-5 * span)
    assert torch.allclose(both.overall[1].values, alone.overall[0].values, atol=1e-5 * span)
    assert torch.allclose(both.scores[1:], alone.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["BLIP, matching", "BLIP, captions"])
def test_the_pictures_tower_looks_once_for_all_texts(name):
    looks = []
    handle = towers(name).vision_model.encoder.register_forward_hook(lambda own, given, out: looks.append(len(out[0])))
    try:
        matched(name, texts=(*TEXTS, "a dog"))
    finally:
        handle.remove()
    assert set(looks) == {1}


def test_cocas_words_are_led_on_to_patches_through_its_pool(captioner):
    """255 slots in real sizes, 5 here: the first query makes the picture's feature and is no key."""
    ids = open_clip.tokenizer.SimpleTokenizer(context_length=20)(list(TEXTS))
    seen = []
    handles = [
        one.register_forward_pre_hook(lambda own, given, named: seen.append((own, given, named)), with_kwargs=True)
        for one in (captioner.visual.attn_pool.attn, captioner.text_decoder.cross_attn[1].attn)
    ]
    transform = open_clip.image_transform(32, is_train=False)
    from PIL import Image

    try:
        with torch.no_grad():
            output = captioner(transform(Image.fromarray(PHOTO))[None].expand(2, -1, -1, -1), ids)
    finally:
        for handle in handles:
            handle.remove()

    def maps(number):
        own, given, named = seen[number]
        parts = [*given, *(named[key] for key in ("query", "key", "value")[len(given) :])]
        with torch.no_grad():
            return own(*parts[:3], need_weights=True, average_attn_weights=False)[1]

    pool, cross = maps(0), maps(1)
    found = mmattn.match(captioner, PHOTO, texts=TEXTS, method="cross")
    for text, relevance in enumerate(found.relevances):
        expected = cross[text].mean(dim=0) @ pool[text].mean(dim=0)[1:]
        for token in relevance.query_axis.content:
            assert torch.allclose(relevance.values[token], expected[token - 1], atol=1e-5)
        assert relevance.parameters["note"] == NOTE
        assert len(relevance.axis.content) == 16  # the class column has no place, and is not drawn
    labels = output["labels"]  # what the model itself would be trained to write
    steps = output["logits"][:, : labels.shape[1]].log_softmax(dim=-1)
    likely = steps.gather(2, labels[..., None])[..., 0] * (labels != 0)
    assert torch.allclose(found.scores, likely.sum(dim=1) / (labels != 0).sum(dim=1), atol=1e-4)


def test_maps_of_coca_are_composed_in_the_same_way(captioner):
    maps = mmattn.attend(captioner, image=PHOTO, text=list(TEXTS))
    led = maps.composed()
    found = mmattn.match(captioner, PHOTO, texts=TEXTS, method="cross")
    for sample, relevance in zip(led.samples, found.relevances, strict=True):
        layer = sample["text_decoder.cross_attn.1.attn"]
        assert isinstance(layer.key_axis, PatchGrid)
        assert torch.allclose(layer.weights().mean(dim=0)[0], relevance.values[1], atol=1e-5)
        looked = mmattn.look(sample, stream="decoder", kind="cross", query=1)
        assert looked.parameters["note"] == NOTE
    assert led["visual.attn_pool.attn"] is maps["visual.attn_pool.attn"]


def test_a_gradient_may_be_of_the_logit_that_writes_a_word_of_a_caption(captioner):
    maps = mmattn.attend(captioner, image=PHOTO, text="a cat")
    target = ("caption", 2)
    with torch.no_grad():
        output = maps.rerun()
        logits, ids = output.caption, output.ids
    assert torch.equal(maps.adapter.score(output, target), logits[0, 1, ids[0, 2]])
    name = "text_decoder.cross_attn.1.attn"
    found = mmattn.relevance(maps, method="attention_x_gradient", target=target, stream="decoder", layer=name, query=1)
    assert float(found.values.abs().sum()) > 0
    for token in (0, 20, "cat"):
        with pytest.raises(InputError, match="names no token that is written: they are 1 to 19"):
            maps.adapter.score(output, ("caption", token))


def test_a_coca_without_a_pool_asks_the_patches_themselves():
    plain = coca(pool=False)
    found = mmattn.match(plain, PHOTO, texts=TEXTS, method="cross")
    layer = mmattn.attend(plain, image=PHOTO, text=list(TEXTS)).samples[1].select(stream="decoder", kind="cross")[-1]
    expected = layer.weights().mean(dim=0)
    assert torch.allclose(found.relevances[1].values[2], expected[1], atol=1e-5)
    assert "note" not in found.relevances[1].parameters


def test_coca_is_two_towers_unless_its_decoder_is_asked_for(captioner):
    plain = mmattn.match(captioner, PHOTO, texts=TEXTS)
    assert (plain.method, plain.unit) == ("interaction", "logit")
    asked = mmattn.match(captioner, PHOTO, texts=TEXTS, stream="decoder")
    assert asked.unit == "log-likelihood per token"


def test_words_contrasts_and_lines_are_as_for_two_towers():
    found = matched("BLIP, matching")
    assert found.method == "chefer"
    assert torch.equal(found.word("cat").values, found.word(1).values)
    between = found.contrast(0, 1)
    assert torch.equal(between.values, found.overall[0].values - found.overall[1].values)
    drawing = mmattn.links(found.relevances[0], focus="cat", k=1)
    assert "chefer" in drawing.caption
    assert len(mmattn.draw(found)) == 2
    assert mmattn.word_grid(found.relevances[0]).image().size[0] > 90


def test_nothing_of_the_model_changes_and_inference_mode_is_no_hindrance():
    model = towers("BLIP, matching")
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    plain = matched("BLIP, matching").relevances[0].values
    with torch.inference_mode():
        again = mmattn.match(model, PHOTO, texts=TEXTS, processor=processor("BLIP, matching"))
    assert torch.allclose(again.relevances[0].values, plain, atol=1e-7)
    assert hooks == sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_model_is_read_alike(captioner):
    frozen = copy.deepcopy(captioner).requires_grad_(False)
    ours, theirs = (
        mmattn.match(one, PHOTO, texts="a cat", stream="decoder").relevances[0].values for one in (frozen, captioner)
    )
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.max()))
    assert float(theirs.max()) > 0


def test_pieces_of_a_word_share_a_row_and_keep_what_lies_outside():
    found = matched("BLIP, matching", texts=("a zebra",), method="cross_rollout")
    whole, word = found.relevances[0], found.word("zebra")
    rows = list(found.words()[1].tokens)
    assert len(rows) > 1
    assert torch.allclose(word.values, whole.values[rows].mean(dim=0, keepdim=True))
    assert torch.allclose(word.values.sum() + word.outside, torch.ones(1), atol=1e-5)
    assert whole.parameters["not on the picture"] == "25 %"  # what two layers of words left to words


def test_what_does_not_fit_a_model_is_refused_with_what_does(captioner):
    with pytest.raises(NotFoundError, match='no method "interaction" .* whose words ask patches. Methods that fit it'):
        matched("BLIP, matching", method="interaction")
    with pytest.raises(NotFoundError, match="CoCa, two towers and a model whose words ask patches. .* interaction"):
        mmattn.match(captioner, PHOTO, texts=TEXTS, method="crss")
    with pytest.raises(InputError, match=r'head=0 and method="interaction" do not go together: head= is for cross'):
        mmattn.match(captioner, PHOTO, texts=TEXTS, head=0)
    with pytest.raises(NotFoundError, match='No words of the stream "text" ask patches. The streams .* decoder'):
        mmattn.match(captioner, PHOTO, texts=TEXTS, stream="text")
    for layer in (2, "text_encoder", True):
        with pytest.raises(NotFoundError, match="words ask patches"):
            matched("BLIP, matching", layer=layer, method="cross")
    with pytest.raises(NotFoundError, match="There is no head 4: .* has 4, 0 to 3"):
        matched("BLIP, matching", head=4, method="cross")
    with pytest.raises(ModelError, match="neither judges a picture with a text nor writes the text"):
        matched("BridgeTower")

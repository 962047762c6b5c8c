"""open_clip's models: weights equal to those worked out apart, axes of both towers and the decoder, pairs, refusals."""

import numpy as np
import pytest
import torch
from contract import Example, check_places_by_perturbation
from open_clip.model import CLIP
from small_clips import FAMILIES, clip, foreign_text, openai, text, timm_tower, vision, worked_out
from small_towers import word_pieces

import mmattn
from mmattn.adapters.clip.features import logits_per_image
from mmattn.adapters.clip.open_clip import OpenClipOptions, adapter
from mmattn.adapters.clip.open_clip_features import image_features, text_features
from mmattn.errors import InputError, ModelError, NoAttentionError, NotFoundError
from mmattn.interception.protocol import MediaGiven
from mmattn.schema.axes import PatchGrid, Positions, Slots
from mmattn.schema.media import Photo, Words
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "two red sports cars"]


def pairs_of(name):
    return mmattn.attend(clip(name), image=[PHOTO, OTHER], text=TEXTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_equal_those_worked_out_without_the_fused_kernels(name):
    maps = pairs_of(name)
    expected = worked_out(clip(name), maps.rerun)
    assert {layer.name for layer in maps} == set(expected)
    for layer in maps:
        (storage,) = layer.storages
        ours, theirs = storage.weights(), expected[layer.name]
        assert torch.allclose(ours, theirs.reshape(ours.shape), atol=1e-5), layer.name
        assert layer.error < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_each_tower_has_its_stream_and_its_axes(name):
    family, maps = FAMILIES[name], pairs_of(name)
    assert maps.readout == family.readout
    assert not maps.left_out
    vision = maps.select(stream="vision")
    assert len(vision) == family.vision_layers
    assert isinstance(vision[0].key[0], PatchGrid)
    assert (vision[0].key[0].rows, vision[0].key[0].cols) == (family.grid if name != "ViTamin" else (4, 4))
    assert vision[0].key[0].roles[: len(family.special)] == family.special
    assert vision[0].key[0].roles[len(family.special)] == "content"
    text = maps.select(stream="text")
    assert [axis.text for axis in text[0].query] == TEXTS
    assert all(layer.query is text[0].query and layer.key is text[0].query for layer in text)
    assert [word.text for word in text[0].query[1].words()] == TEXTS[1].split()
    assert maps.samples[0].media[0].size_px == (160, 90)


def test_a_text_is_causal_and_pads_are_not_hidden_where_the_model_does_not_hide_them():
    causal = mmattn.attend(clip("OpenAI"), text=TEXTS[0])[0].weights()
    assert float(causal.triu(1).abs().max()) == 0
    assert float(causal[:, -1, -1].min()) > 0
    both = mmattn.attend(clip("CLIPA"), text=TEXTS[0])[0].weights()
    assert float(both[:, 0, -1].min()) > 0


@pytest.mark.parametrize("name", ["OpenAI", "SigLIP", "EVA-02", "ResNet", "Swin", "CoCa"])
def test_changing_a_patch_moves_the_token_that_the_axis_names(name):
    example = Example(model=lambda: clip(name), media=MediaGiven(image=Photo(pixels=PHOTO)), changed=painted)
    if name in ("ResNet", "Swin"):
        return moved_most(name)
    return check_places_by_perturbation(adapter, example)


def painted(media, axis, token):
    x0, y0, x1, y1 = axis.place(token)
    wide, high = (x1 - x0) / 4, (y1 - y0) / 4
    pixels = media.image.pixels.copy()
    pixels[round(y0 + high) : round(y1 - high), round(x0 + wide) : round(x1 - wide)] ^= 255
    return MediaGiven(image=Photo(pixels=pixels))


def moved_most(name):
    """Convolutions and windows carry a change to neighbors too: what changes lies around the patch."""
    before = mmattn.attend(clip(name), image=PHOTO)
    axis = before[0].key_axis
    for token in (int(axis.content[0]), int(axis.content[len(axis.content) // 2]), int(axis.content[-1])):
        given = painted(MediaGiven(image=Photo(pixels=PHOTO)), axis, token)
        after = mmattn.attend(clip(name), image=given.image.pixels)
        change = (after[0].weights() - before[0].weights()).abs().sum((0, 1))[axis.content]
        near = axis.places()[int(change.argmax())]
        x0, y0, x1, y1 = axis.place(token)
        assert abs((near[0] + near[2]) / 2 - (x0 + x1) / 2) <= 1.5 * (x1 - x0)
        assert abs((near[1] + near[3]) / 2 - (y0 + y1) / 2) <= 1.5 * (y1 - y0)


@pytest.mark.parametrize("name", ["OpenAI", "SigLIP", "CoCa"])
def test_a_changed_word_moves_the_tokens_of_that_word(name):
    def replaced(media, axis, token):
        start, end = axis.place(token)
        text = media.text.text
        other = {"cat": "dog", "red": "big", "mat": "car"}[text[start:end]]
        return MediaGiven(text=Words(text=text[:start] + other + text[end:]))

    media = MediaGiven(text=Words(text="cat red mat cat mat"))
    check_places_by_perturbation(adapter, Example(model=lambda: clip(name), media=media, changed=replaced), tokens=5)


@pytest.mark.parametrize(
    ("name", "crop"), [("shortest", True), ("squash", True), ("longest", True), ("shortest", False)]
)
def test_the_grid_lies_where_the_resize_mode_puts_it(name, crop):
    model = FAMILIES["OpenAI"].build().eval()
    model.visual.preprocess_cfg = {"size": 64, "resize_mode": name}
    axis = mmattn.attend(model, image=PHOTO, options=OpenClipOptions(crop=crop))[0].key_axis
    x0, y0, x1, y1 = np.array(axis.place(1)).tolist()
    if name == "shortest" and crop:  # 113 x 64, the middle 64 of it
        assert (x0, y0) == pytest.approx((24 * 160 / 113, 0), abs=1)
        assert (x1 - x0, y1 - y0) == pytest.approx((22.5, 22.5), abs=0.3)
    elif name == "longest":  # 64 x 36, padded above and below: of the first row two pixels are picture
        assert (x0, y0, x1, y1) == pytest.approx((0, -35, 40, 5))
    else:
        assert (x0, y0, x1, y1) == pytest.approx((0, 0, 40, 22.5))


def test_cocas_decoder_asks_for_each_word_with_the_words_before_it():
    maps = pairs_of("CoCa")
    own, cross = maps.select(stream="decoder", kind="self"), maps.select(stream="decoder", kind="cross")
    text, pool = maps.select(stream="text")[0], maps["visual.attn_pool.attn"]
    assert len(own) == len(cross) == 2
    assert text.query[0].roles[-1] == "cls"
    assert len(own[0].query[0]) == len(text.query[0]) - 2  # without the class token, and the last position
    assert own[0].query[0].pieces == text.query[0].pieces[:-2]
    assert isinstance(pool.query[0], Slots)
    assert pool.query[0].roles == ("cls", *["content"] * 4)
    assert cross[0].key == pool.query
    weights = cross[0].sample(0).weights()
    assert float(weights[:, :, 0].abs().max()) == 0  # the first query is the picture's feature, and no key
    assert torch.allclose(weights[:, :, 1:].sum(-1), torch.ones(2, 14), atol=1e-5)
    assert "pooled" in cross[0].note


def test_a_pool_with_a_single_query_is_a_pool_like_any_other():
    model = openai(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=4).eval()
    maps = mmattn.attend(model, image=PHOTO)
    assert maps[-1].query_axis.roles == ("content",)
    assert mmattn.look(maps, kind="cross").labels == ("attention pool",)
    assert float(mmattn.rollout(maps).values.sum()) == pytest.approx(1)


def test_a_coca_without_a_pool_looks_at_the_patches_themselves():
    maps = pairs_of("CoCa without a pool")
    cross, vision = maps.select(stream="decoder", kind="cross")[0], maps.select(stream="vision")[0]
    assert cross.key == vision.key
    assert float(cross.sample(1).weights()[:, :, 0].abs().max()) == 0
    assert not cross.note


def test_the_row_before_a_word_is_the_one_that_was_asked_for_it():
    maps = mmattn.attend(clip("CoCa"), image=PHOTO, text="a cat on the mat")
    other = mmattn.attend(clip("CoCa"), image=PHOTO, text="a cat on the red")
    mine, theirs = (one.select(stream="decoder", kind="cross")[1].weights() for one in (maps, other))
    assert torch.allclose(mine[:, :5], theirs[:, :5], atol=1e-6)  # up to the row of "the"
    assert not torch.allclose(mine[:, 5], theirs[:, 5], atol=1e-6)


@pytest.mark.parametrize(("pooler", "readout"), [("mean_pooler", "mean"), ("cls_pooler", "cls")])
def test_a_text_tower_of_hugging_face_has_its_own_eager_weights(pooler, readout):
    torch.manual_seed(0)
    model, tokenizer = foreign_text(pooler).eval(), word_pieces(pad=1)
    maps = mmattn.attend(model, image=PHOTO, text="A cat on the mat", processor=tokenizer)
    ids = maps.prepared.inputs[1]
    torch.manual_seed(0)
    eager = type(model.text.transformer)._from_config(model.text.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.text.transformer.state_dict(), strict=False)
    with torch.no_grad():
        expected = eager(input_ids=ids, attention_mask=(ids != 1).long(), output_attentions=True).attentions
    found = maps.select(stream="text")
    assert len(found) == len(expected) == 2
    for layer, theirs in zip(found, expected, strict=True):
        assert torch.allclose(layer.storage[0].weights(), theirs, atol=1e-5)
    axis = found[0].query_axis
    assert [word.text for word in axis.words()] == ["A", "cat", "on", "the", "mat"]
    assert axis.roles[:7] == ("cls", *["content"] * 5, "sep")
    assert set(axis.roles[7:]) == {"pad"}
    alone = mmattn.attend(model, text="A cat", processor=tokenizer)
    assert (alone.readout, alone.default_stream) == (readout, "text")


def test_one_tower_alone_runs_alone_and_is_the_default_stream():
    words = mmattn.attend(clip("OpenAI"), text=TEXTS[0])
    assert {layer.stream for layer in words} == {"text"}
    assert mmattn.look(words).labels == ("eos token",)
    assert {layer.stream for layer in mmattn.attend(clip("CoCa"), text=TEXTS[0])} == {"text"}
    picture = mmattn.attend(clip("CoCa"), image=PHOTO)
    assert {layer.stream for layer in picture} == {"vision"}
    assert mmattn.look(picture, kind="cross").labels == ("class token",)


def test_of_a_pair_each_stream_is_asked_by_its_own_token():
    maps = mmattn.attend(clip("CLIPA"), image=PHOTO, text=TEXTS[0])
    assert "reads its answer from" in mmattn.look(maps).labels[0]
    assert mmattn.look(maps, stream="text").labels == ("eos token",)


def test_one_text_is_paired_with_every_picture_and_one_picture_with_every_text():
    many = mmattn.attend(clip("OpenAI"), image=[PHOTO, OTHER], text=TEXTS[0])
    assert many.sample_count == 2
    assert many.rerun().similarity.shape == (2, 2)
    assert mmattn.attend(clip("OpenAI"), image=PHOTO, text=TEXTS).sample_count == 2
    with pytest.raises(InputError, match="2 pictures and 3 texts"):
        mmattn.attend(clip("OpenAI"), image=[PHOTO, OTHER], text=["a", "b", "c"])


@pytest.mark.parametrize("name", ["OpenAI", "CoCa", "SigLIP"])
def test_features_and_logits_are_the_models_own_and_have_gradients(name):
    model = clip(name)
    prepared = adapter.prepare(model, MediaGiven(image=Photo(pixels=PHOTO), text=TEXTS), None, None)
    image, text = image_features(model, prepared), text_features(model, prepared)
    logits = logits_per_image(model, image=image, text=text)
    assert logits.requires_grad
    with torch.no_grad():
        output = prepared.run()
    assert torch.allclose(output.similarity, logits, atol=1e-4)
    assert torch.allclose(image.norm(dim=-1), torch.ones(2), atol=1e-5)
    alone = adapter.prepare(model, MediaGiven(text=Words(text="a")), None, None)
    with pytest.raises(InputError, match="No picture"):
        image_features(model, alone)


def test_a_target_is_the_pairs_a_text_or_a_picture_with_a_text():
    maps = pairs_of("OpenAI")
    output = maps.rerun()
    logits = output.similarity
    assert torch.equal(adapter.score(output, None), logits.trace())
    assert torch.equal(adapter.score(output, "similarity"), logits.diagonal().sum())
    assert torch.equal(adapter.score(output, 1), logits[:, 1].sum())
    assert torch.equal(adapter.score(output, (0, 1)), logits[0, 1])
    for wrong in (2, (0, 2), "cat", (0, 1, 1), True):
        with pytest.raises(InputError, match="names none of"):
            adapter.score(output, wrong)
    with pytest.raises(ModelError, match="one tower"):
        adapter.score(mmattn.attend(clip("OpenAI"), text="a").rerun(), None)


@pytest.mark.parametrize("name", ["OpenAI", "CoCa"])
def test_relevance_toward_the_similarity_reads_either_tower(name):
    maps = mmattn.attend(clip(name), image=PHOTO, text=TEXTS[0])
    picture, words = (mmattn.relevance(maps, target="similarity", stream=one) for one in ("vision", "text"))
    assert isinstance(picture.axis, PatchGrid)
    assert isinstance(words.axis, Tokens)
    assert float(picture.values.abs().max()) > 0
    assert float(words.values.abs().max()) > 0
    if name == "CoCa":
        with pytest.raises(ModelError, match="No gradient reaches text_decoder"):
            mmattn.relevance(maps, target="similarity", stream="decoder")


def test_a_tower_of_convolutions_has_no_attention_and_its_texts_do():
    model = timm_tower("convnext_atto", size=64, pool="avg").eval()
    with pytest.raises(NoAttentionError, match="ConvNeXt"):
        mmattn.attend(model, image=PHOTO, text=TEXTS[0])
    with pytest.raises(NoAttentionError, match="convolution"):
        mmattn.attend(model, image=PHOTO)
    assert len(mmattn.attend(model, text=TEXTS[0])) == 2


def test_the_users_own_tensors_are_taken_alone_or_by_name():
    model = clip("OpenAI")
    maps = pairs_of("OpenAI")
    pixels, ids = maps.prepared.inputs
    given = mmattn.attend(model, inputs={"image": pixels, "text": ids})
    assert isinstance(given.select(stream="text")[0].query[0], Positions)
    for mine, theirs in zip(given, maps, strict=True):
        assert torch.equal(mine.storage[0].weights(), theirs.storage[0].weights())
    assert len(mmattn.attend(model, inputs=pixels)) == len(mmattn.attend(model, inputs=ids)) == 2
    for wrong, said in (
        ({"pixels": pixels}, "image"),
        ({}, "nothing"),
        (ids.float(), "float tensor"),
        ({"text": pixels}, "whole numbers"),
        (ids[:, :5], "rows of 16"),
        (ids + 50000, "vocabulary"),
    ):
        with pytest.raises(InputError, match=said):
            mmattn.attend(model, inputs=wrong)
    with pytest.raises(InputError, match="text= was given too"):
        mmattn.attend(model, inputs={"text": ids}, text="a")
    with pytest.raises(InputError, match="made for 64 x 64"):
        mmattn.attend(model, inputs=torch.zeros(1, 3, 96, 96))


def test_a_recording_of_the_models_own_call_gets_places():
    model = clip("OpenAI")
    prepared = adapter.prepare(model, MediaGiven(image=Photo(pixels=PHOTO), text=Words(text=TEXTS[0])), None, None)
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(*prepared.inputs)
    maps = mmattn.attend(recording, image=PHOTO, text=TEXTS[0])
    assert {layer.stream for layer in maps} == {"vision", "text"}


def test_processors_are_told_apart():
    model = clip("OpenAI")
    with pytest.raises(InputError, match="processor="):
        mmattn.attend(model, image=PHOTO, processor=3)
    with pytest.raises(InputError, match="crop=False"):
        mmattn.attend(model, image=PHOTO, processor=lambda image: image, options=OpenClipOptions(crop=False))
    with pytest.raises(InputError, match="OpenClipOptions"):
        mmattn.attend(model, image=PHOTO, options=3)
    with pytest.raises(InputError, match="audio"):
        adapter.prepare(model, MediaGiven(audio=1), None, None)


def test_patch_dropout_that_is_on_is_refused_and_off_is_not():
    model = CLIP(24, vision(patch_dropout=0.5), text())
    with pytest.raises(ModelError, match="drops 50%"):
        mmattn.attend(model.train(), image=PHOTO)
    assert len(mmattn.attend(model.eval(), image=PHOTO)) == 2


def test_a_scripted_model_is_nobodys():
    scripted = torch.jit.trace(clip("OpenAI").visual, torch.rand(1, 3, 64, 64), check_trace=False)
    with pytest.raises(ModelError, match="No adapter"):
        mmattn.attend(scripted, image=PHOTO)


def test_a_model_of_real_size_is_read_too():
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    maps = mmattn.attend(model, image=PHOTO, text="a photo of a cat")
    assert (len(maps), maps[0].key_axis.rows, maps[0].heads) == (24, 7, 12)
    expected = worked_out(model, maps.rerun)
    for name in (maps[0].name, maps[11].name, maps[23].name):
        assert torch.allclose(maps[name].storage[0].weights(), expected[name], atol=1e-5)


def test_unknown_words_of_a_text_are_listed():
    axis = mmattn.attend(clip("OpenAI"), text="a red car")[0].query_axis
    assert axis.tokens_of_word("red").tolist() == [2]
    with pytest.raises(NotFoundError, match="car"):
        axis.tokens_of_word("elephant")

"""Two-tower models of transformers: weights equal to the library's own, axes of both towers, pairs, refusals."""

import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from contract import Example, check_places_by_perturbation
from small_towers import CONTEXT, CROSSED, PAIRS, WORDS, byte_pairs, encoded, processor, towers
from written_out import formula

import mmattn
from mmattn.adapters.clip.features import logits_per_image
from mmattn.adapters.clip.transformers import TransformersOptions, adapter
from mmattn.adapters.clip.transformers_features import image_features, text_features
from mmattn.errors import GoneError, InputError, ModelError
from mmattn.interception.protocol import MediaGiven
from mmattn.readers import read_photo
from mmattn.schema.axes import PatchGrid, Positions, Slots
from mmattn.schema.media import Photo, Words
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]


def pairs_of(name, *, eager=False, **given):
    given = given or {"image": [PHOTO, OTHER], "text": TEXTS}
    return mmattn.attend(towers(name, eager=eager), processor=processor(name), **given)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_of_both_towers_equal_the_librarys_eager_ones(name):
    maps = pairs_of(name)
    with torch.no_grad():
        output = towers(name, eager=True)(**encoded(name, images=[PHOTO, OTHER], texts=TEXTS), output_attentions=True)
    for stream, expected in (("vision", output.vision_model_output), ("text", output.text_model_output)):
        found = maps.select(stream=stream, kind="self")
        assert len(found) == len(expected.attentions) == 2
        for layer, theirs in zip(found, expected.attentions, strict=True):
            (storage,) = layer.storages
            ours = storage.weights()
            count = ours.shape[-1]  # SigLIP 2's processor pads the patches
            assert ours.shape[:2] == theirs.shape[:2] == (2, 4)
            assert torch.allclose(ours, theirs[:, :, :count, :count], atol=1e-5), layer.name
            assert float(theirs[:, :, :count, count:].abs().sum()) == 0
            assert layer.error < 1e-5
    assert len(maps) == 5 if PAIRS[name].readout == "pool" else 4


@pytest.mark.parametrize("name", ["SigLIP", "SigLIP 2"])
def test_a_pool_has_the_weights_of_torchs_own_layer(name):
    maps = pairs_of(name)
    pool, last = maps.select(stream="vision", kind="cross")[0], maps.rerun().vision_model_output.last_hidden_state
    head = towers(name).vision_model.head
    with torch.no_grad():
        _, expected = head.attention(head.probe.expand(2, -1, -1), last, last, average_attn_weights=False)
    assert torch.allclose(pool.storage[0].weights(), expected, atol=1e-5)


def test_aimv2s_pool_asks_all_patches_with_one_learned_token():
    maps = pairs_of("AIMv2")
    pool, last = maps.select(stream="vision", kind="cross")[0], maps.rerun().vision_model_output.last_hidden_state
    head = towers("AIMv2").vision_model.head
    with torch.no_grad():
        keys = head.k_proj(last).unflatten(-1, (4, -1)).transpose(1, 2)
        query = head.cls_token.expand(2, -1, -1).unflatten(-1, (4, -1)).transpose(1, 2)
    assert torch.allclose(pool.storage[0].weights(), formula(query, keys).float(), atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_the_output_is_that_of_the_processors_own_tensors(name):
    maps = pairs_of(name)
    with torch.no_grad():
        expected = towers(name)(**encoded(name, images=[PHOTO, OTHER], texts=TEXTS)).logits_per_image
        assert torch.allclose(maps.rerun().logits_per_image, expected, atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_each_tower_has_its_own_axis(name):
    maps = pairs_of(name)
    assert {layer.stream for layer in maps} == {"vision", "text"}
    assert maps.readout == PAIRS[name].readout
    assert not maps.left_out
    assert [medium.pixels.shape for medium in maps.media] == [PHOTO.shape, OTHER.shape]
    grid, words = maps.samples[0].select(stream="vision")[0].key_axis, maps.samples[0].select(stream="text")[0].key_axis
    assert isinstance(grid, PatchGrid)
    assert {role for role in grid.roles if role != "content"} == set(PAIRS[name].special)
    assert isinstance(words, Tokens)
    assert [word.text for word in words.words()] == ["A", "cat", "on", "the", "mat"]
    assert [words.text[slice(*words.place(token))] for token in words.tokens_of_word("cat")] == ["cat"]
    last = maps.select(stream="vision")[-1]
    assert last.kind == ("cross" if PAIRS[name].readout == "pool" else "self")
    assert isinstance(last.query[0], Slots if last.kind == "cross" else PatchGrid)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "SigLIP 2", "ChineseCLIP"])
def test_pairs_equal_each_pair_alone(name):
    both = pairs_of(name)
    for sample, (image, text) in zip(both.samples, zip([PHOTO, OTHER], TEXTS, strict=True), strict=True):
        alone = pairs_of(name, image=image, text=text)
        for one, same in zip(sample.layers, alone.layers, strict=True):
            count = len(same.key_axis)  # a longer text beside it adds padding
            queries = len(same.query_axis)
            assert torch.allclose(one.weights()[:, :queries, :count], same.weights(), atol=1e-5), one.name
            assert one.key_axis.place(1) == same.key_axis.place(1)


def test_a_crop_and_a_squeeze_are_undone():
    cut = pairs_of("CLIP", image=PHOTO)[0].key_axis
    assert cut.place(1) == pytest.approx((90 * 4 / 72, 120 * 16 / 96, 90 * 20 / 72, 120 * 32 / 96))
    assert cut.place(16) == pytest.approx((90 * 52 / 72, 120 * 64 / 96, 90 * 68 / 72, 120 * 80 / 96))
    squeezed = pairs_of("SigLIP", image=PHOTO)[0].key_axis
    assert squeezed.place(0) == pytest.approx((0, 0, 90 / 4, 120 / 4))
    own = pairs_of("SigLIP 2", image=PHOTO)[0].key_axis
    assert own.rows > own.cols
    assert own.place(len(own) - 1)[2:] == pytest.approx((90, 120))


def test_a_word_has_all_its_pieces_and_the_texts_own_characters():
    axis = pairs_of("CLIP", text="The CAT's photo!")[0].key_axis
    assert axis.roles[0] == "bos"
    assert axis.roles[-1] == "eos"
    assert [word.text for word in axis.words()] == ["The", "CAT's", "photo", "!"]
    pieces = axis.tokens_of_word("cat's")
    assert [axis.pieces[token] for token in pieces] == ["cat</w>", "'", "s</w>"]
    assert axis.place(pieces[0]) == (4, 7)


def test_padding_is_attended_where_the_model_does_and_masked_where_it_does_not():
    siglip = pairs_of("SigLIP", text="a cat")[0]
    pads = [token for token, role in enumerate(siglip.key_axis.roles) if role == "pad"]
    assert len(siglip.key_axis) == CONTEXT
    assert len(pads) == CONTEXT - 4
    assert float(siglip.weights()[..., pads].sum(-1).min()) > 0
    chinese = pairs_of("ChineseCLIP", text=["a cat", "a red cat on the mat"]).samples[0][0]
    pads = [token for token, role in enumerate(chinese.key_axis.roles) if role == "pad"]
    assert len(pads) == 4
    assert float(chinese.weights()[..., pads].sum()) == 0
    clip = pairs_of("CLIP", text=["a cat", "a red cat on the mat"]).samples[0][0]
    end = clip.key_axis.roles.index("eos")
    assert float(clip.weights()[:, : end + 1, end + 1 :].sum()) == 0


def test_one_picture_goes_with_every_text_and_one_text_with_every_picture():
    maps = pairs_of("CLIP", image=PHOTO, text=TEXTS)
    assert maps.sample_count == len(maps.media) == 2
    assert torch.equal(maps.samples[0][0].weights(), maps.samples[1][0].weights())
    assert maps.rerun().logits_per_image.shape == (2, 2)
    turned = pairs_of("CLIP", image=[PHOTO, OTHER], text="a cat")
    assert turned.sample_count == 2
    with pytest.raises(InputError, match="2 pictures and 3 texts"):
        pairs_of("CLIP", image=[PHOTO, OTHER], text=["a", "b", "c"])


def test_a_picture_alone_runs_one_tower_and_a_text_alone_the_other():
    picture = pairs_of("SigLIP", image=PHOTO)
    assert {layer.stream for layer in picture} == {"vision"}
    assert mmattn.look(picture, kind="cross").values.shape == (1, 16)
    text = pairs_of("SigLIP", text="a cat")
    assert {layer.stream for layer in text} == {"text"}
    assert isinstance(text.media[0], Words)
    assert mmattn.look(text, stream="text").values.shape == (1, CONTEXT)
    for maps in (picture, text):
        with pytest.raises(ModelError, match="only one tower ran"):
            adapter.score(maps.rerun(), None)
    only_image = mmattn.attend(towers("CLIP"), image=PHOTO, processor=processor("CLIP").image_processor)
    only_text = mmattn.attend(towers("CLIP"), text="a cat", processor=processor("CLIP").tokenizer)
    assert torch.equal(only_image[0].weights(), pairs_of("CLIP", image=PHOTO)[0].weights())
    assert torch.equal(only_text[0].weights(), pairs_of("CLIP", text="a cat")[0].weights())


def test_a_text_that_is_too_long_is_cut_and_its_unseen_words_are_named():
    long = "the cat on the mat " * 5 + "zebra dog"
    with pytest.warns(UserWarning, match=r"33 tokens and CLIPModel reads 24: it does not see on, the, mat, zebra, dog"):
        axis = pairs_of("CLIP", text=long)[0].key_axis
    assert len(axis) == CONTEXT
    assert axis.roles[-1] == "eos"
    assert [word.text for word in axis.words()][-1] == "cat"
    for name, cls in (("AltCLIP", "AltCLIPModel"), ("any two", "VisionTextDualEncoderModel")):
        with pytest.warns(UserWarning, match=f"{cls} reads 24"):
            assert len(pairs_of(name, text=long)[0].key_axis) == CONTEXT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs_of("CLIP", text="the cat " * 11)


@pytest.mark.parametrize("text", ["", "  \n", ["a cat", ""], [], 3])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(InputError, match=r"empty|should be a string"):
        pairs_of("CLIP", text=text)


def test_the_score_is_the_logit_of_a_pair():
    output = pairs_of("CLIP").rerun()
    logits = output.logits_per_image
    assert adapter.score(output, None) == logits[0, 0] + logits[1, 1]
    assert adapter.score(output, (0, 1)) == logits[0, 1]
    for target in (0, (2, 0), (0, -3), ("cat", 0), (0,), (True, False), (0, 1, 0)):
        with pytest.raises(InputError, match=r"names no pair of 2 picture\(s\) and 2 text\(s\)"):
            adapter.score(output, target)


@pytest.mark.parametrize("name", PAIRS)
def test_features_give_the_models_own_logits_and_gradients_reach_both_towers(name):
    model = towers(name)
    image = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO)), processor(name), None)
    texts = adapter.prepare(model, MediaGiven(text=TEXTS), processor(name), None)
    logits = logits_per_image(model, image=image_features(model, image), text=text_features(model, texts))
    expected = pairs_of(name, image=PHOTO, text=TEXTS).rerun().logits_per_image[:1]
    assert torch.allclose(logits, expected, atol=1e-4)
    wanted = [next(tower.parameters()) for tower in (model.vision_model, model.text_model)]
    assert all(float(grad.abs().max()) > 0 for grad in torch.autograd.grad(logits[0, 1], wanted))
    with pytest.raises(InputError, match="No text was prepared"):
        text_features(model, image)
    with pytest.raises(InputError, match="No picture was prepared"):
        image_features(model, texts)


def test_what_raised_the_logit_of_a_pair_is_read_in_both_towers():
    maps = pairs_of("CLIP", image=PHOTO, text="a red cat")
    seen = mmattn.relevance(maps, method="chefer")
    assert seen.values.shape == (1, 17)
    assert float(seen.values.abs().sum()) > 0
    pooled = pairs_of("SigLIP", image=PHOTO, text="a red cat")
    assert mmattn.relevance(pooled, method="chefer").values.shape == (1, 16)


@pytest.mark.parametrize("name", [*PAIRS, *CROSSED])
def test_a_recording_gets_the_same_places(name):
    square = [PHOTO[:90], OTHER[:90]]  # SigLIP 2's processor would pad others
    model, given = towers(name), {"image": square, "text": TEXTS, "processor": processor(name)}
    with mmattn.capture(model) as recording, torch.no_grad():
        model(**encoded(name, images=square, texts=TEXTS))
    maps = mmattn.attend(recording, **given)
    for one, same in zip(maps, mmattn.attend(model, **given), strict=True):
        assert torch.allclose(one.storage[0].weights(), same.storage[0].weights(), atol=1e-6)
    with pytest.raises(InputError, match=r"other input|another input|of shape"):
        mmattn.attend(recording, **{**given, "text": ["a dog", "a photo"]})


@pytest.mark.parametrize("name", ["CLIP", "SigLIP 2"])
def test_prepared_tensors_run_as_they_are(name):
    tensors = encoded(name, images=[PHOTO, OTHER], texts=TEXTS)
    maps = mmattn.attend(towers(name), inputs=tensors)
    for one, same in zip(maps, pairs_of(name), strict=True):
        assert torch.allclose(one.storage[0].weights(), same.storage[0].weights(), atol=1e-5)
    assert isinstance(maps.select(stream="text")[0].key[0], Positions)
    placed = mmattn.attend(towers(name), inputs=tensors, image=[PHOTO, OTHER], processor=processor(name))
    assert placed[0].key[0].place(2) == pairs_of(name)[0].key[0].place(2)


def test_tensors_that_the_towers_do_not_take_are_refused():
    tensors = encoded("CLIP", images=[PHOTO], texts=TEXTS[:1])
    for wrong in ({}, {"attention_mask": tensors["attention_mask"]}, {**tensors, "return_loss": True}):
        with pytest.raises(InputError, match="inputs= holds"):
            mmattn.attend(towers("CLIP"), inputs=wrong)
    with pytest.raises(InputError, match="input_ids and text= was given too"):
        mmattn.attend(towers("CLIP"), inputs=tensors, text="a cat")
    with pytest.raises(InputError, match="cannot take pictures of 48 x 48 px"):
        mmattn.attend(towers("CLIP"), inputs=torch.rand(1, 3, 48, 48))


def test_another_size_interpolates_positions_where_it_is_asked_for():
    maps = pairs_of("CLIP", image=PHOTO, text="a cat", options=TransformersOptions(size_px=96))
    assert (maps[0].key_axis.rows, maps[0].key_axis.cols) == (6, 6)
    assert maps.rerun().logits_per_image.shape == (1, 1)
    whole = pairs_of("CLIP", image=PHOTO, options=TransformersOptions(keep_aspect=True))
    assert (whole[0].key_axis.rows, whole[0].key_axis.cols) == (5, 4)
    with pytest.raises(InputError, match="takes TransformersOptions"):
        pairs_of("CLIP", image=PHOTO, options={"size_px": 96})


def test_other_modalities_and_generation_are_refused():
    with pytest.raises(InputError, match="got audio"):
        mmattn.attend(towers("CLIP"), audio=np.zeros(10))
    with pytest.raises(InputError, match="got generate"):
        mmattn.attend(towers("CLIP"), image=PHOTO, generate=3, processor=processor("CLIP"))


def test_a_text_needs_a_tokenizer_that_says_its_characters():
    with pytest.raises(InputError, match="No tokenizer was found for this CLIPModel"):
        mmattn.attend(towers("CLIP"), text="a cat")

    class Bare:
        def convert_ids_to_tokens(self, ids):
            return []

    with pytest.raises(InputError, match="The tokenizer Bare does not say which characters"):
        mmattn.attend(towers("CLIP"), text="a cat", processor=Bare())


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "ChineseCLIP"])
def test_changing_a_word_moves_the_token_that_the_axis_names(name):
    def replaced(media, axis, token):
        start, end = axis.place(token)
        text = media.text.text
        other = WORDS[(WORDS.index(text[start:end]) + 1) % len(WORDS)]
        return MediaGiven(text=Words(text=text[:start] + other + text[end:]))

    text = MediaGiven(text=Words(text="the cat on red mat"))
    example = Example(model=lambda: towers(name), media=text, changed=replaced, processor=processor(name))
    check_places_by_perturbation(adapter, example)


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("BLIP", "OWLv2")])  # not seen; blurred
def test_changing_a_patch_moves_the_token_that_the_axis_names(name):
    def painted(media, axis, token):
        x0, y0, x1, y1 = axis.place(token)
        wide, high = (x1 - x0) / 4, (y1 - y0) / 4
        pixels = media.image.pixels.copy()
        pixels[round(y0 + high) : round(y1 - high), round(x0 + wide) : round(x1 - wide)] ^= 255
        return MediaGiven(image=Photo(pixels=pixels), text=media.text)

    large = np.random.default_rng(2).integers(0, 256, (500, 260, 3), dtype=np.uint8)
    media = MediaGiven(image=Photo(pixels=large), text="a cat")
    example = Example(model=lambda: towers(name), media=media, changed=painted, processor=processor(name))
    check_places_by_perturbation(adapter, example)


def test_a_class_that_derives_from_one_of_these_is_read_and_others_are_refused_by_name():
    class Mine(hf.CLIPModel):
        pass

    model = Mine(towers("CLIP").config).eval()
    assert adapter.claims(model)
    assert len(mmattn.attend(model, image=PHOTO, processor=processor("CLIP"))) == 2
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    group = hf.GroupViTModel(
        hf.GroupViTConfig(
            text_config=small,
            vision_config={**small, "depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]},
        )
    )
    with pytest.raises(ModelError, match=r"No adapter reads .*GroupViTModel.*mmattn.capture"):
        mmattn.attend(group, image=PHOTO, text="a cat")


def test_maps_do_not_keep_the_model_alive():
    model = hf.CLIPModel(towers("CLIP").config).eval()
    prepared = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO), text="a cat"), processor("CLIP"), None)
    del model
    with pytest.raises(GoneError, match="The model was deleted"):
        prepared.run()


def test_a_small_tokenizer_cuts_unknown_words_into_letters():
    assert byte_pairs().tokenize("cat zoo") == ["cat</w>", "z", "o", "o</w>"]

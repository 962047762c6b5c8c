"""Models of transformers in which words and patches attend to each other: BLIP and BridgeTower."""

import numpy as np
import pytest
import torch
from small_towers import CROSSED, encoded, processor, towers
from written_out import SoftmaxLog

import mmattn
from mmattn.adapters.clip.transformers import adapter
from mmattn.adapters.clip.transformers_features import image_features, text_features
from mmattn.errors import InputError, ModelError
from mmattn.interception.protocol import MediaGiven
from mmattn.readers import read_photo
from mmattn.schema.axes import PatchGrid
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]
BRIDGES = [name for name in CROSSED if name.startswith("BridgeTower")]


def maps_of(name, **given):
    given = given or {"image": [PHOTO, OTHER], "text": TEXTS}
    return mmattn.attend(towers(name), processor=processor(name), **given)


def stacked(layer):
    return torch.stack([layer.sample(number).weights() for number in range(layer.sample_count)])


@pytest.mark.parametrize("name", CROSSED)
def test_weights_are_the_softmaxes_that_the_library_ran(name):
    maps = maps_of(name)
    with torch.no_grad(), SoftmaxLog() as log:
        towers(name, eager=True)(**encoded(name, images=[PHOTO, OTHER], texts=TEXTS))
    written = [layer for layer in maps if name not in BRIDGES or layer.stream != "vision"]  # its vision is torch's own
    assert len(written) == len(log.results) > 4
    for layer, expected in zip(written, log.results, strict=True):
        assert torch.allclose(stacked(layer), expected, atol=1e-5), layer.name
    assert not maps.left_out


@pytest.mark.parametrize("name", BRIDGES)
def test_the_vision_of_bridgetower_has_the_weights_of_torchs_own_layer(name):
    model, seen = towers(name), {}
    handles = [
        module.register_forward_hook(lambda own, given, _, path=path: seen.update({path: given[0]}))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.MultiheadAttention)
    ]
    try:
        with torch.no_grad():
            model(**encoded(name, images=[PHOTO, OTHER], texts=TEXTS))
    finally:
        for handle in handles:
            handle.remove()
    layers = maps_of(name).select(stream="vision")
    assert [layer.name for layer in layers] == list(seen)
    for layer in layers:
        given = seen[layer.name]
        with torch.no_grad():
            _, expected = model.get_submodule(layer.name)(given, given, given, average_attn_weights=False)
        assert torch.allclose(stacked(layer), expected, atol=1e-5)


@pytest.mark.parametrize("name", CROSSED)
def test_the_output_is_that_of_the_processors_own_tensors(name):
    maps = maps_of(name)
    with torch.no_grad():
        expected = towers(name)(**encoded(name, images=[PHOTO, OTHER], texts=TEXTS))
        found = maps.rerun()
    for part in ("itm_score", "logits", "pooler_output"):
        if part in expected:
            assert torch.allclose(found[part], expected[part], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("BLIP, matching", {"vision", "text", "cross"}),
        ("BLIP, captions", {"vision", "decoder"}),
        ("BridgeTower", {"vision", "text", "cross.text", "cross.vision"}),
    ],
)
def test_words_ask_patches_and_each_side_keeps_its_places(name, streams):
    maps = maps_of(name).samples[0]
    assert {layer.stream for layer in maps} == streams
    grid = maps.select(stream="vision")[-1].query_axis
    crossing = [layer for layer in maps if layer.kind == "cross"]
    asked_by_words = [layer for layer in crossing if isinstance(layer.query_axis, Tokens)]
    assert asked_by_words
    for layer in asked_by_words:
        assert layer.key_axis is grid
        assert [word.text for word in layer.query_axis.words()] == ["A", "cat", "on", "the", "mat"]
    asked_by_patches = [layer for layer in crossing if layer not in asked_by_words]
    assert bool(asked_by_patches) == name.startswith("BridgeTower")
    for layer in asked_by_patches:
        assert layer.query_axis is grid
        assert isinstance(layer.key_axis, Tokens)
    looked = mmattn.look(maps, stream=asked_by_words[0].stream, kind="cross", query=1)
    assert isinstance(looked.axis, PatchGrid)
    assert float(looked.values.sum()) == pytest.approx(1, abs=1e-4)


def test_padding_and_later_words_are_known_to_be_forbidden():
    matching, captions = maps_of("BLIP, matching"), maps_of("BLIP, captions")
    pads = [token for token, role in enumerate(matching.select(stream="text")[0].key[0].roles) if role == "pad"]
    assert pads  # the first text is the shorter one
    for layer in matching.select(stream="text"):
        allowed = layer.storage[0].source.mask.expand(2, 1, -1, len(layer.key[0]))
        assert torch.equal(allowed[:, 0].any(1), (stacked(layer) > 0).any(2).any(1))
    first = captions.select(stream="decoder", kind="self")[0]
    seen = stacked(first) > 0
    assert torch.equal(first.storage[0].source.mask.expand_as(seen), seen)
    assert not bool(seen[0, :, 1, 2:].any())
    cross = captions.select(stream="decoder", kind="cross")[0]
    assert bool(cross.storage[0].source.mask.all())


@pytest.mark.parametrize("name", CROSSED)
def test_pairs_equal_each_pair_alone(name):
    both = maps_of(name)
    for sample, (image, text) in zip(both.samples, zip([PHOTO, OTHER], TEXTS, strict=True), strict=True):
        alone = maps_of(name, image=image, text=text)
        for one, same in zip(sample, alone, strict=True):
            count, queries = len(same.key_axis), len(same.query_axis)
            assert torch.allclose(one.weights()[:, :queries, :count], same.weights(), atol=1e-5), one.name


@pytest.mark.parametrize("name", CROSSED)
def test_a_picture_alone_runs_the_vision_tower_and_a_text_alone_is_refused(name):
    alone, both = maps_of(name, image=PHOTO), maps_of(name, image=PHOTO, text="a cat")
    assert {layer.stream for layer in alone} == {"vision"}
    for one, same in zip(alone, both.select(stream="vision"), strict=True):
        assert one.name == same.name
        assert torch.allclose(one.weights(), same.weights(), atol=1e-5)
    with pytest.raises(InputError, match="was given a text alone"):
        maps_of(name, text="a cat")


@pytest.mark.parametrize("name", ["BLIP", "BLIP, matching"])
def test_changing_a_patch_moves_the_row_and_column_that_the_axis_names(name):
    before = maps_of(name, image=PHOTO, text="a cat")[0]
    for token in (1, 7, 16):
        x0, y0, x1, y1 = (round(side) for side in before.key_axis.place(token))
        changed = PHOTO.copy()
        changed[y0 + 8 : y1 - 8, x0 + 6 : x1 - 6] ^= 255
        moved = (maps_of(name, image=changed, text="a cat")[0].weights() - before.weights()).abs().sum(0)
        assert int((moved.sum(0) + moved.sum(1)).argmax()) == token


def test_a_matching_head_is_scored_by_whether_they_match():
    for name, part in (("BLIP, matching", "itm_score"), ("BridgeTower, matching", "logits")):
        output = maps_of(name).rerun()
        assert adapter.score(output, None) == output[part][:, 1].sum()
        assert adapter.score(output, 0) == output[part][:, 0].sum()
        for target in (2, "yes", (0, 1), True):
            with pytest.raises(InputError, match="neither 0"):
                adapter.score(output, target)
    with pytest.raises(ModelError, match="has no head that compares them"):
        adapter.score(maps_of("BridgeTower").rerun(), None)


def test_features_of_their_own_have_only_two_towers():
    model = towers("BLIP, matching")
    given = MediaGiven(image=read_photo(PHOTO), text="a cat")
    prepared = adapter.prepare(model, given, processor("BLIP, matching"), None)
    for features in (image_features, text_features):
        with pytest.raises(ModelError, match=r"The words of BlipForImageTextRetrieval attend to the picture"):
            features(model, prepared)


def test_a_caption_is_scored_by_the_logit_of_a_vocabulary_entry():
    output = maps_of("BLIP, captions").rerun()
    assert adapter.score(output, (2, 5)) == output.logits[:, 2, 5].sum()
    for target in (None, 3, (1,), (99, 0), (0, 10_000)):
        with pytest.raises(InputError, match="names no logit"):
            adapter.score(output, target)


def test_what_raised_the_match_is_read_in_the_picture():
    found = mmattn.relevance(maps_of("BLIP, matching", image=PHOTO, text="a cat"), method="attention_x_gradient")
    assert found.values.shape == (1, 17)
    assert float(found.values.abs().sum()) > 0


@pytest.mark.parametrize("name", ["BLIP, matching", "BLIP, captions", "BridgeTower, matching"])
def test_a_folder_opens_with_its_processor(tmp_path, name):
    towers(name).save_pretrained(tmp_path)
    processor(name).save_pretrained(tmp_path)
    maps = mmattn.attend(str(tmp_path), image=PHOTO, text="A red cat")
    for one, same in zip(maps, maps_of(name, image=PHOTO, text="A red cat"), strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-5)


@pytest.mark.parametrize("name", ["BLIP, matching", "BridgeTower"])
def test_prepared_tensors_run_as_they_are(name):
    maps = mmattn.attend(towers(name), inputs=encoded(name, images=[PHOTO, OTHER], texts=TEXTS))
    for one, same in zip(maps, maps_of(name), strict=True):
        assert torch.allclose(one.storage[0].weights(), same.storage[0].weights(), atol=1e-5)


def test_a_text_that_is_too_long_is_cut_to_robertas_positions():
    with pytest.warns(UserWarning, match="BridgeTowerModel reads 24"):
        maps = maps_of("BridgeTower", image=PHOTO, text="the cat on the mat " * 6)
    assert len(maps.select(stream="text")[0].key_axis) == 24

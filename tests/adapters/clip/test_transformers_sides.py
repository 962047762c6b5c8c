"""Models of transformers with more sides than two towers: every class against its own eager weights, words, places."""

import functools

import numpy as np
import pytest
import torch
from small_sides import SIDED, sided, sided_processor, written
from written_out import SoftmaxLog

import mmattn
from mmattn.adapters.clip.transformers import adapter
from mmattn.errors import InputError
from mmattn.schema.axes import PatchGrid
from mmattn.schema.joined import Joined
from mmattn.schema.sets import Slots
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]
HEADED = [name for name in SIDED if "features" not in name]  # without a head the rest is the same


def maps_of(name, **given):
    given = given or {"image": [PHOTO, OTHER], "text": SIDED[name].texts(TEXTS)}
    return mmattn.attend(sided(name), processor=sided_processor(name), **given)


@functools.cache
def both_of(name):
    return maps_of(name)


@functools.cache
def first_of(name):
    return one_of(name)


def one_of(name, *, image=PHOTO, text=TEXTS[0]):
    return maps_of(name, image=image, text=SIDED[name].texts([text])[0])


def stacked(layer):
    return torch.stack([layer.sample(number).weights() for number in range(layer.sample_count)])


def texts_in(maps):
    """The axes of words of all layers, parts of one sequence among them."""
    axes = [axis for layer in maps for axis in (layer.query_axis, layer.key_axis)]
    parts = [part for axis in axes for part in (axis.parts if isinstance(axis, Joined) else (axis,))]
    return [part for part in parts if isinstance(part, Tokens)]


@pytest.mark.parametrize("name", SIDED)
def test_weights_are_the_softmaxes_that_the_library_ran(name):
    maps = both_of(name)
    with torch.no_grad(), SoftmaxLog() as log:
        sided(name, eager=True)(**written(name, images=[PHOTO, OTHER], texts=TEXTS))
    expected = SIDED[name].softmaxes(log.results)
    layers = [layer for layer in maps if SIDED[name].compared(layer)]
    assert len(layers) == len(expected) >= 4
    for layer, weights in zip(layers, expected, strict=True):
        ours, blind = stacked(layer), SIDED[name].blind if layer.kind == "cross" and layer.stream == "decoder" else ()
        for sample, first in enumerate(blind):
            assert not bool(ours[sample, :, :first].any())
            weights[sample, :, :first] = 0
        assert torch.allclose(ours, weights.reshape(ours.shape), atol=1e-5), layer.name
        assert layer.error is not None
        assert layer.error < 1e-4


@pytest.mark.parametrize("name", SIDED)
def test_the_output_is_that_of_the_processors_own_tensors(name):
    maps = both_of(name)
    with torch.no_grad():
        expected = sided(name)(**written(name, images=[PHOTO, OTHER], texts=TEXTS))
        found = maps.rerun()
    for part in ("logits", "logits_per_image", "last_hidden_state"):
        if isinstance(expected.get(part), torch.Tensor):
            assert torch.allclose(found[part], expected[part], atol=1e-5)


@pytest.mark.parametrize("name", HEADED)
def test_words_are_the_users(name):
    maps = first_of(name)
    texts = texts_in(maps)
    assert texts
    for axis in texts:
        assert [word.text for word in axis.words()] == ["A", "cat", "on", "the", "mat"]
        start, end = axis.words()[1].span
        assert axis.text[start:end] == "cat"


@pytest.mark.parametrize("name", HEADED)
def test_changing_a_patch_moves_the_token_that_the_axis_names(name):
    before = first_of(name).select(stream="vision")[0]
    axis = before.key_axis
    grid, where = axis.part(SIDED[name].part) if isinstance(axis, Joined) else (axis, np.arange(len(axis)))
    assert isinstance(grid, PatchGrid)
    inside = [place for place in grid.content if grid.place(place)[2] <= 90 and grid.place(place)[3] <= 120]
    for number in (0, len(inside) // 2, -1):
        token = int(inside[number])
        x0, y0, x1, y1 = grid.place(token)
        changed = PHOTO.copy()
        left, top, right, bottom = (round(v) for v in np.clip((x0, y0, x1, y1), 0, (90, 120, 90, 120)))
        rim = min(2, (right - left) // 4)  # resizing blurs over a patch's edge
        changed[top + rim : bottom - rim, left + rim : right - rim] ^= 255
        after = one_of(name, image=changed).select(stream="vision")[0]
        moved = (after.weights() - before.weights()).abs().sum(0)
        found = int((moved.sum(0) + moved.sum(1)).argmax())
        if SIDED[name].overlap:  # 24 x 24 of them
            assert max(abs(a - b) for a, b in zip(divmod(found, 24), divmod(token, 24), strict=True)) <= 1
        else:
            assert found == int(where[token]), grid.place(token)


SLOTTED = [name for name in SIDED if "BLIP" in name]


@pytest.mark.parametrize("name", SLOTTED)
def test_slots_ask_patches_in_every_second_layer_and_words_ask_the_same_slots(name):
    maps = first_of(name)
    crossing = [layer for layer in maps.select(stream="qformer") if layer.kind == "cross"]
    assert [layer.name.split(".")[3] for layer in crossing] == ["0", "2"]
    for layer in crossing:
        assert isinstance(layer.query_axis, Slots)
        assert layer.key_axis is maps.select(stream="vision")[-1].query_axis
    last = maps[-1]
    if name == "BLIP-2, matching":
        last = maps.select(stream="qformer", kind="self")[-1]
    if name != "BLIP-2, T5":
        assert last.query_axis.part("image")[0] is crossing[0].query_axis
    assert ("no patches" in last.note) == (last.stream != "qformer")


def test_gates_are_told_and_words_before_the_picture_look_at_none():
    maps, model = first_of("Idefics"), sided("Idefics").model
    gated = maps.select(stream="decoder", kind="cross")
    assert len(gated) == 2
    for layer, module in zip(gated, model.gated_cross_attn_layers, strict=True):
        opened = module.alpha_cross_attn.detach().tanh()
        assert layer.note.startswith(f"gate {float(opened.abs().mean()):.3f} on average, {float(opened.min()):.3f} to")
        words = layer.query_axis
        assert words.roles[:4] == ("bos", "special", "special", "special")
        assert torch.allclose(layer.weights().sum(-1)[:, 2:], torch.ones(1))
        assert layer.key_axis is maps.select(stream="latents")[-1].query_axis


def test_latents_ask_patches_and_themselves():
    for name in ("Idefics", "Idefics2"):
        maps = first_of(name)
        for layer in maps.select(stream="latents"):
            assert layer.kind == "cross"
            assert layer.key_axis.names == ("image", "latents")
            assert layer.key_axis.part("latents")[0] is layer.query_axis
            assert layer.key_axis.part("image")[0] is maps.select(stream="vision")[-1].query_axis
        assert maps[-1].stream == "decoder"


def test_tiles_are_quarters_of_the_picture_and_padding_has_no_place():
    maps = first_of("Idefics2, tiles")
    axis = maps.select(stream="vision")[0].key_axis
    assert axis.names == ("tile 1", "tile 2", "tile 3", "tile 4", "image")
    extents = [part.seen_box() for part in axis.parts]
    assert extents == [(0, 0, 45, 48), (45, 0, 90, 48), (0, 60, 45, 108), (45, 60, 90, 108), (0, 0, 72, 120)]
    wide = maps_of("Idefics2", image=[PHOTO, PHOTO.transpose(1, 0, 2)], text=[f"<image>{text}" for text in TEXTS])
    tall, flat = (one.select(stream="vision")[0].key_axis for one in wide.samples)
    assert (tall.rows, tall.cols, flat.rows, flat.cols, len(tall), len(flat)) == (5, 3, 3, 5, 25, 25)
    assert tall.roles.count("pad") == flat.roles.count("pad") == 10
    assert tall.place(5) == (0, 24, 24, 48)
    assert not bool(wide.samples[0].select(stream="vision")[0].weights()[:, :, [3, 4, 8, 9]].any())


def test_words_before_the_mark_of_mllamas_picture_are_left_empty_and_tiles_are_one_grid():
    maps = one_of("Mllama", text="the <|image|>cat")
    layer = maps.select(stream="decoder", kind="cross")[0]
    words = layer.query_axis
    assert words.roles[3] == "special"
    assert [word.text for word in words.words()] == ["the", "cat"]
    assert not bool(layer.weights()[:, :3].any())
    assert torch.allclose(layer.weights()[:, 3:].sum(-1), torch.ones(1))
    assert layer.note.startswith("gate ")
    assert "left empty" in layer.note
    key = layer.key_axis  # 90 x 120 px on 2 x 2 tiles of 48 px: resized to 72 x 96
    assert (key.rows, key.cols, len(key)) == (6, 6, 40)
    assert key.special() == {"cls": [0, 10, 20, 30]}
    assert [key.place(token) for token in (1, 13, 21)] == [(0, 0, 20, 20), (100, 0, 120, 20), (0, 60, 20, 80)]
    assert int(key.content[3]) == 11  # row by row over the whole picture, tile after tile in the sequence
    vision = maps.select(stream="vision")[-1]
    assert vision.key_axis.roles.count("pad") == 4 * 6
    assert vision.note.startswith("gate ")
    flat = one_of("Mllama", image=PHOTO[:30], text="cat")  # two tiles, one beside the other, and two of padding
    key = flat.select(stream="decoder", kind="cross")[0].key_axis
    assert (key.rows, key.cols, key.roles.count("pad")) == (3, 6, 20)
    assert key.place(11) == (48, 0, 64, 16)
    assert not bool(flat.select(stream="decoder", kind="cross")[0].weights()[..., 20:].any())
    assert mmattn.overlay(mmattn.look(flat, stream="decoder", kind="cross", query="cat")).panels[0].heat is not None


def test_florence_has_the_pictures_mean_before_its_cells_and_leaves_channels_out_by_name():
    maps = first_of("Florence-2")
    axis = maps.select(stream="text")[0].key_axis
    grid, where = axis.part("image")
    assert (axis.names, grid.roles[0], where.tolist()) == (("text", "image"), "mean", list(range(10)))
    assert grid.place(1) == (0, 0, 16.5 / 96 * 90, 16.5 / 96 * 120)  # its middle is the first pixel's
    assert grid.place(9) == pytest.approx((48.5 / 96 * 90, 48.5 / 96 * 120, 90, 120))
    assert all(layer.key_axis is axis for layer in maps.select(stream="decoder", kind="cross"))
    assert [line.split(": ")[0].split(".")[-1] for line in maps.left_out] == ["channel_attn"] * 4
    task = one_of("Florence-2", text="<OD>").select(stream="text")[0].key_axis.part("text")[0]
    assert task.text == "Locate the objects with category name in the image."
    assert task.words()[2].text == "objects"


def test_git_puts_the_picture_in_front_and_its_tokens_see_no_word():
    layer = first_of("GIT").select(stream="decoder")[0]
    image, where = layer.key_axis.part("image")
    assert where.tolist() == list(range(17))
    assert image is first_of("GIT").select(stream="vision")[-1].query_axis
    weights, allowed = layer.weights(), layer.storage[0].source.mask[0, 0]
    assert torch.equal(allowed, weights[0] > 0)
    assert bool(allowed[:17, :17].all())
    assert not bool(allowed[:17, 17:].any())
    assert bool(allowed[20, :21].all())


def test_a_language_model_that_encodes_has_both_streams():
    maps = first_of("BLIP-2, T5")
    assert [layer.kind for layer in maps.select(stream="decoder")] == ["self", "cross"] * 2
    text = maps.select(stream="text")[0].query_axis
    assert all(layer.key_axis is text for layer in maps.select(stream="decoder", kind="cross"))
    assert maps.select(stream="decoder")[0].query_axis.roles == ("bos",)


def test_scores_of_what_is_judged_and_what_is_written():
    judged, said = both_of("BLIP-2, matching").rerun(), both_of("BLIP-2").rerun()
    assert adapter.score(judged, None) == adapter.score(judged, 1) == judged.logits_per_image[:, 1].sum()
    assert adapter.score(said, (3, 7)) == said.logits[:, 3, 7].sum()


def test_prepared_tensors_have_places_where_they_are_what_the_processor_makes():
    name, given = "BLIP-2", written("BLIP-2", images=[PHOTO], texts=TEXTS[:1])
    alone = mmattn.attend(sided(name), inputs=given)
    beside = maps_of(name, inputs=given, image=PHOTO, text=TEXTS[0])
    for one, same, bare in zip(first_of(name), beside, alone, strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-6)
        assert torch.allclose(one.weights(), bare.weights(), atol=1e-6)
    assert beside[0].key_axis.place(1) == first_of(name)[0].key_axis.place(1)
    assert alone[0].key_axis.place(1) == (0, 0, 16, 16)
    with pytest.raises(InputError, match="pixel_values of inputs= is not what the processor makes"):
        maps_of(name, inputs=given, image=OTHER, text=TEXTS[0])
    with pytest.raises(InputError, match="with image= alone"):
        maps_of(name, inputs=given, image=PHOTO)
    with pytest.raises(InputError, match="needs what its processor returns"):
        mmattn.attend(sided(name), inputs=torch.zeros(1, 3, 64, 64))


def test_a_recording_gets_its_places():
    name = "InstructBLIP"
    with mmattn.capture(sided(name)) as recording, torch.no_grad():
        sided(name)(**written(name, images=[PHOTO], texts=TEXTS[:1]))
    maps = mmattn.attend(recording, image=PHOTO, text=TEXTS[0], processor=sided_processor(name))
    for one, same in zip(maps, first_of(name), strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-6)
    with pytest.raises(InputError, match="saw another input"):
        mmattn.attend(recording, image=OTHER, text=TEXTS[0], processor=sided_processor(name))


def test_one_picture_stands_with_several_texts():
    maps = maps_of("BLIP-2", image=PHOTO, text=TEXTS)
    assert maps[-1].sample_count == 2
    with pytest.raises(InputError, match="There are 2 pictures and 3 texts"):
        maps_of("BLIP-2", image=[PHOTO, OTHER], text=["a", "b", "c"])


def test_what_is_missing_is_said():
    model = sided("BLIP-2")
    with pytest.raises(InputError, match=r"was given a picture alone.*Pass text="):
        maps_of("BLIP-2", image=PHOTO)
    with pytest.raises(InputError, match=r"was given a text alone.*Pass image="):
        maps_of("BLIP-2", text="a cat")
    with pytest.raises(InputError, match="No processor was saved with Blip2"):
        mmattn.attend(model, image=PHOTO, text="a cat")
    with pytest.raises(InputError, match="needs one of pictures and texts"):
        mmattn.attend(model, image=PHOTO, text="a cat", processor=sided_processor("BLIP-2").tokenizer)


def test_a_folder_opens_with_its_processor(tmp_path):
    sided("BLIP-2").save_pretrained(tmp_path)
    sided_processor("BLIP-2").save_pretrained(tmp_path)
    maps = mmattn.attend(str(tmp_path), image=PHOTO, text=TEXTS[0])
    for one, same in zip(maps, first_of("BLIP-2"), strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-5)

"""ViLT, whose words and patches are one sequence: its patches are shuffled at random, and each still has its place."""

import numpy as np
import pytest
import torch
from small_towers import JOINED, encoded, processor, towers

import mmattn
from mmattn.adapters.clip.transformers import adapter
from mmattn.errors import InputError, ModelError
from mmattn.schema.axes import PatchGrid
from mmattn.schema.joined import Joined
from mmattn.schema.tokens import Tokens

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red sports car"]


def maps_of(name, **given):
    given = given or {"image": [PHOTO, OTHER], "text": TEXTS}
    return mmattn.attend(towers(name), processor=processor(name), **given)


@pytest.mark.parametrize("name", JOINED)
def test_weights_and_output_equal_a_shuffled_run_of_the_librarys_own(name):
    model, tensors = towers(name), encoded(name, images=[PHOTO, OTHER], texts=TEXTS)
    inner = getattr(model, "vilt", model)
    with torch.no_grad():
        torch.manual_seed(7)
        _, _, (index, (rows, cols)) = inner.embeddings.visual_embed(
            tensors["pixel_values"], tensors["pixel_mask"], max_image_length=model.config.max_image_length
        )
        torch.manual_seed(7)
        expected = model(**tensors, output_attentions=True)
    assert (rows, cols) == (5, 4)
    maps = maps_of(name)
    found = maps.rerun()
    for part in ("logits", "pooler_output"):
        if part in expected:
            assert torch.allclose(found[part], expected[part], atol=1e-5)
    assert len(maps) == len(expected.attentions) == 2
    words = tensors["input_ids"].shape[1]
    for layer, theirs in zip(maps, expected.attentions, strict=True):
        for number, sample in enumerate(theirs):
            cells = index[number, :, 0] * cols + index[number, :, 1]
            assert not torch.equal(cells, cells.sort().values)  # it was shuffled
            where = torch.cat([torch.arange(words + 1), words + 1 + cells.argsort()])
            ours = layer.sample(number).weights()
            assert torch.allclose(ours, sample[:, where][..., where], atol=1e-5)


def test_each_part_keeps_its_places_and_the_answer_is_read_from_the_texts_class_token():
    maps = maps_of("ViLT, features").samples[0]
    assert [layer.stream for layer in maps] == ["joined", "joined"]
    axis = maps[0].key_axis
    assert isinstance(axis, Joined)
    (words, where), (grid, cells) = axis.part("text"), axis.part("image")
    assert isinstance(words, Tokens)
    assert [word.text for word in words.words()] == ["A", "cat", "on", "the", "mat"]
    assert isinstance(grid, PatchGrid)
    assert (grid.rows, grid.cols, grid.roles[0]) == (5, 4, "image_cls")
    assert where.tolist() == list(range(len(words)))
    assert cells.tolist() == list(range(len(words), len(axis)))
    assert axis.place(int(cells[1])) == pytest.approx((0, 0, 90 / 4, 120 / 5))
    assert axis.place(int(cells[-1])) == pytest.approx((3 * 90 / 4, 4 * 120 / 5, 90, 120))
    looked = mmattn.look(maps)
    assert looked.labels == ("class token",)
    assert torch.allclose(looked.values[0], maps[-1].weights()[:, 0].mean(0), atol=1e-6)
    pads = [token for token, role in enumerate(axis.roles) if role == "pad"]
    assert pads
    assert not bool(maps[0].storage[0].source.mask[..., pads].any())


@pytest.mark.parametrize("name", ["ViLT, matching"])
def test_changing_a_patch_or_a_word_moves_the_row_and_column_that_the_axis_names(name):
    before = maps_of(name, image=PHOTO, text="the cat")[0]
    _, cells = before.key_axis.part("image")
    for cell in (0, 7, 19):
        token = int(cells[1 + cell])
        x0, y0, x1, y1 = (round(side) for side in before.key_axis.place(token))
        changed = PHOTO.copy()
        changed[y0 + 6 : y1 - 6, x0 + 5 : x1 - 5] ^= 255
        moved = (maps_of(name, image=changed, text="the cat")[0].weights() - before.weights()).abs().sum(0)
        assert int((moved.sum(0) + moved.sum(1)).argmax()) == token
    moved = (maps_of(name, image=PHOTO, text="the dog")[0].weights() - before.weights()).abs().sum(0)
    words, where = before.key_axis.part("text")
    assert int((moved.sum(0) + moved.sum(1)).argmax()) == int(where[words.tokens_of_word("cat")[0]])


def test_the_users_random_numbers_are_left_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    maps_of("ViLT, features", image=PHOTO, text="a cat")
    assert torch.equal(torch.rand(1), expected)


def test_it_needs_both_and_places_need_every_patch():
    with pytest.raises(InputError, match=r"given a text alone.*needs a picture"):
        maps_of("ViLT, features", text="a cat")
    with pytest.raises(InputError, match=r"given a picture alone.*needs a text"):
        maps_of("ViLT, features", image=PHOTO)
    model = towers("ViLT, features")
    model.config.max_image_length = 12
    try:
        with pytest.raises(InputError, match=r"5 x 4 patches and the model keeps 12 of them, drawn at random"):
            maps_of("ViLT, features", image=PHOTO, text="a cat")
    finally:
        model.config.max_image_length = -1
    tensors = encoded("ViLT, features", images=[PHOTO], texts=TEXTS[:1])
    del tensors["pixel_mask"]
    tensors["pixel_values"] = tensors["pixel_values"][..., :60]
    with pytest.raises(InputError, match=r"60 x 80, no multiple of the 16 px"):
        mmattn.attend(model, inputs=tensors)
    tensors["pixel_mask"] = torch.zeros(1, 80, 64)
    with pytest.raises(InputError, match="inputs= holds"):
        mmattn.attend(model, inputs=tensors)


def test_a_recording_of_shuffled_patches_is_refused():
    model = towers("ViLT, features")
    with mmattn.capture(model) as recording, torch.no_grad():
        model(**encoded("ViLT, features", images=[PHOTO], texts=TEXTS[:1]))
    with pytest.raises(InputError, match="of shape"):
        mmattn.attend(recording, image=PHOTO, text=TEXTS[0], processor=processor("ViLT, features"))


def test_scores_of_each_head():
    answers, words = maps_of("ViLT, answers").rerun(), maps_of("ViLT, masked words").rerun()
    assert adapter.score(answers, None) == answers.logits.max(1).values.sum()
    assert adapter.score(answers, 4) == answers.logits[:, 4].sum()
    assert adapter.score(words, (1, 5)) == words.logits[:, 1, 5].sum()
    match = maps_of("ViLT, matching").rerun()
    assert adapter.score(match, None) == adapter.score(match, 0) == match.logits.sum()
    with pytest.raises(InputError, match="names no logit"):
        adapter.score(answers, 5)
    with pytest.raises(ModelError, match="has no head"):
        adapter.score(maps_of("ViLT, features").rerun(), None)


def test_what_raised_an_answer_is_read_over_the_whole_sequence():
    found = mmattn.relevance(maps_of("ViLT, answers", image=PHOTO, text="the cat"), method="attention_x_gradient")
    assert isinstance(found.axis, Joined)
    assert float(found.values.abs().sum()) > 0


def test_a_folder_opens_with_its_processor(tmp_path):
    towers("ViLT, matching").save_pretrained(tmp_path)
    processor("ViLT, matching").save_pretrained(tmp_path)
    maps = mmattn.attend(str(tmp_path), image=PHOTO, text="A red cat")
    for one, same in zip(maps, maps_of("ViLT, matching", image=PHOTO, text="A red cat"), strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-5)

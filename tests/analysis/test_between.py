"""What words gave to patches, in one sequence and across from each other; the row before a word wrote it."""

import numpy as np
import pytest
import torch
from small_towers import processor, towers

import mmattn
from mmattn.errors import InputError, NotFoundError
from mmattn.schema.axes import Joined, PatchGrid, Slots, Tokens
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
IMAGE = PatchGrid.plain(rows=2, cols=2, patch_px=(10, 10), size_px=(20, 20))
SAID = Tokens.of("is it?", pieces=["is", "it", "?"], spans=[(0, 2), (3, 5), (5, 6)])
WROTE = Tokens.of("a cat", pieces=["a", "cat"], spans=[(0, 1), (2, 5)])
AXIS = Joined.of({"image": IMAGE, "text": SAID, "answer": WROTE}, tokens=[[0, 1, 2, 3], [4, 5, 6], [7, 8]])


@pytest.fixture(scope="module")
def vilt():
    name = "ViLT, matching"
    return mmattn.attend(towers(name), image=PHOTO, text="A cat on the mat", processor=processor(name))


def decoder(*, layers=2):
    torch.manual_seed(1)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    made = [
        torch.softmax(torch.randn(1, 3, 9, 9).masked_fill(~mask, -torch.inf), dim=-1).nan_to_num()
        for _ in range(layers)
    ]
    return AttentionMaps(
        layers=tuple(
            AttentionLayer(
                name=f"layers.{number}",
                query=(AXIS,),
                key=(AXIS,),
                heads=3,
                storage=(Blocks(source=Dense(weights=one)),),
            )
            for number, one in enumerate(made)
        )
    ), made


def test_words_of_one_sequence_ask_its_patches(vilt):
    axis = vilt[0].query_axis
    (text, words), (grid, cells) = axis.part("text"), axis.part("image")
    found = mmattn.between(vilt, layer=0)
    assert (found.query_axis, found.axis) == (text, grid)
    dense = vilt[0].weights().mean(0)
    assert torch.allclose(found.values, dense[words][:, cells], atol=1e-6)
    assert torch.allclose(found.outside, 1 - found.values.sum(1), atol=1e-6)
    assert found.parameters["part"].startswith("image (text ")
    one = mmattn.between(vilt, layer=1, head=1, asking="image", asked="text")
    assert torch.allclose(one.values, vilt[1].weights()[1][cells][:, words], atol=1e-6)
    mean = mmattn.between(vilt, layer="mean")
    both = torch.stack([layer.weights().mean(0) for layer in vilt]).mean(0)
    assert torch.allclose(mean.values, both[words][:, cells], atol=1e-6)


def test_a_sequence_is_drawn_by_its_picture_and_its_words(vilt, tmp_path):
    found = mmattn.look(vilt)
    assert isinstance(found.axis, Joined)
    drawing = mmattn.overlay(found)
    assert "image (text " in drawing.caption
    assert mmattn.overlay(found.part("text")).panels
    assert [panel.title for panel in mmattn.word_grid(mmattn.between(vilt)).panels][:5] == [
        "A",
        "cat",
        "on",
        "the",
        "mat",
    ]
    assert mmattn.links(mmattn.between(vilt), focus="cat").panels
    assert mmattn.head_grid(vilt).panels
    assert mmattn.draw(vilt).save(tmp_path / "joined.png").exists()


def test_a_word_or_a_part_or_a_place_of_a_sequence_can_ask(vilt):
    axis, dense = vilt[-1].query_axis, vilt[-1].weights().mean(0)
    (text, words), (grid, cells) = axis.part("text"), axis.part("image")
    cat = words[text.tokens_of_word("cat")]
    assert torch.allclose(mmattn.look(vilt, query="cat").values[0], dense[cat].mean(0), atol=1e-6)
    assert mmattn.look(vilt, query="cat").labels == ("‘cat’",)
    inside = cells[grid.content]
    assert torch.allclose(mmattn.look(vilt, query="image").values[0], dense[inside].mean(0), atol=1e-6)
    at = int(cells[grid.token_at((50, 70))])
    assert torch.allclose(mmattn.look(vilt, query=(50, 70)).values[0], dense[at], atol=1e-6)
    with pytest.raises(NotFoundError, match='no "dog" token'):
        mmattn.look(vilt, query="dog")


def test_words_that_the_model_wrote_are_read_from_the_row_before_theirs():
    maps, made = decoder()
    found = mmattn.between(maps)
    assert found.query_axis is WROTE
    assert torch.allclose(found.values, made[1][0].mean(0)[[6, 7]][:, :4])
    assert "wrote it" in found.parameters["rows"]
    assert torch.allclose(mmattn.between(maps, writing=False).values, made[1][0].mean(0)[[7, 8]][:, :4])
    asked = mmattn.between(maps, asking="text", layer=0, head=2)
    assert torch.allclose(asked.values, made[0][0, 2][4:7, :4])
    wrote = mmattn.look(maps, query="cat")
    assert torch.allclose(wrote.values[0], made[1][0].mean(0)[7])
    assert wrote.labels == ("‘cat’, as it was written",)


def test_the_first_token_of_all_was_written_from_nothing():
    weights = torch.softmax(torch.randn(1, 1, 3, 4), dim=-1)
    layer = AttentionLayer(
        name="cross",
        query=(SAID,),
        key=(IMAGE,),
        heads=1,
        storage=(Blocks(source=Dense(weights=weights)),),
        kind="cross",
    )
    found = mmattn.between(AttentionMaps(layers=(layer,)), writing=True)
    assert torch.allclose(found.values[1:], weights[0, 0, :2])
    assert float(found.values[0].abs().sum()) == 0.0
    assert torch.allclose(found.outside, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


def test_a_decoder_is_asked_by_its_last_token_where_nobody_else_is_named(tmp_path):
    maps, made = decoder()
    found = mmattn.look(maps)
    assert found.labels == ("last token",)
    assert torch.allclose(found.values[0], made[1][0].mean(0)[8])
    assert mmattn.rollout(maps).labels == ("last token",)
    assert mmattn.draw(maps).save(tmp_path / "decoder.png").exists()


def test_slots_lead_on_to_the_patches_that_they_asked():
    torch.manual_seed(0)
    slots = Slots.count(4)
    asked, asking = torch.softmax(torch.randn(1, 2, 4, 4), -1), torch.softmax(torch.randn(1, 2, 3, 4), -1)
    pool = AttentionLayer(
        name="pool", query=(slots,), key=(IMAGE,), heads=2, storage=(Blocks(source=Dense(weights=asked)),), kind="cross"
    )
    words = AttentionLayer(
        name="cross",
        query=(SAID,),
        key=(slots,),
        heads=2,
        storage=(Blocks(source=Dense(weights=asking)),),
        kind="cross",
    )
    found = mmattn.between(AttentionMaps(layers=(pool, words)), layer="cross")
    assert torch.allclose(found.values, asking[0].mean(0) @ asked[0].mean(0), atol=1e-6)
    assert found.axis == IMAGE
    assert found.parameters["note"] == "composed with pool"


def test_what_cannot_be_asked_is_refused(vilt):
    with pytest.raises(NotFoundError, match="There is no part 'tile'"):
        mmattn.between(vilt, asked="tile")
    plain = AttentionLayer(
        name="a", query=(IMAGE,), key=(IMAGE,), heads=1, storage=(Blocks(source=Dense(weights=torch.ones(1, 1, 4, 4))),)
    )
    with pytest.raises(InputError, match=r"words ask \(Tokens\)"):
        mmattn.between(AttentionMaps(layers=(plain,)))
    with pytest.raises(InputError, match="one axis"):
        mmattn.between(AttentionMaps(layers=(plain,)), asking="text")
    with pytest.raises(InputError, match="is not one map"):
        mmattn.between(vilt, head="each")

"""Words and patches in one sequence: each method against its formula, written out plainly on a model's own weights."""

import math

import numpy as np
import pytest
import torch
from small_sides import SIDED, sided, sided_processor
from small_streams import stream, stream_processor
from small_towers import processor, towers

import mmattn
from mmattn.analysis.matching.localization import elbow, localizing, spatial_entropy
from mmattn.analysis.matching.one_stream import one_stream
from mmattn.analysis.matching.raw import sinks_of
from mmattn.analysis.matching.relative import GENERAL
from mmattn.errors import InputError, ModelError, NotFoundError
from mmattn.interception import intervene
from mmattn.schema.axes import Joined, PatchGrid, Slots, Tokens
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.weights import Blocks, Dense

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
TEXTS = ["A cat on the mat", "red car"]
NAME = "ViLT, matching"


def matched(method, texts=TEXTS, **given):
    return mmattn.match(towers(NAME), PHOTO, texts=texts, method=method, processor=processor(NAME), **given)


@pytest.fixture(scope="module")
def maps():
    return mmattn.attend(towers(NAME), image=PHOTO, text=TEXTS, processor=processor(NAME)).samples


def sides(one):
    axis = one[0].query_axis
    return axis.part("text"), axis.part("image")


def words_of(text):
    return torch.tensor([role == "content" for role in text.roles])


def test_scores_are_the_models_own_and_a_text_alone_says_the_same(maps):
    both, alone = matched("raw"), matched("raw", texts=TEXTS[1])
    logits = mmattn.attend(towers(NAME), image=PHOTO, text=TEXTS, processor=processor(NAME)).rerun().logits[:, 0]
    assert torch.allclose(both.scores, logits, atol=1e-5)
    assert both.unit == "logit of a match"
    assert both.cosines is None
    assert torch.allclose(alone.scores, both.scores[1:], atol=1e-5)
    count = len(alone.relevances[0].labels)
    assert torch.allclose(alone.relevances[0].values, both.relevances[1].values[:count], atol=1e-5)


def test_raw_is_the_mean_of_what_words_gave_to_patches(maps):
    found = matched("raw")
    for one, relevance, whole in zip(maps, found.relevances, found.overall, strict=True):
        (text, words), (grid, cells) = sides(one)
        assert (relevance.query_axis.pieces, relevance.axis) == (text.pieces, grid)
        dense = torch.stack([layer.weights().mean(0) for layer in one]).mean(0)
        expected = torch.where(words_of(text)[:, None], dense[words][:, cells], 0.0)
        assert torch.allclose(relevance.values, expected, atol=1e-6)
        assert torch.allclose(whole.values[0], dense[0, cells], atol=1e-6)  # the class token reads the answer
        own = words_of(text)
        assert torch.allclose((relevance.values.sum(1) + relevance.outside)[own], torch.ones(int(own.sum())), atol=1e-5)
    one = matched("raw", layer=1, head=2).relevances[0]
    (text, words), (_, cells) = sides(maps[0])
    expected = torch.where(words_of(text)[:, None], maps[0][1].weights()[2][words][:, cells], 0.0)
    assert torch.allclose(one.values, expected, atol=1e-6)
    assert one.parameters["layer"].startswith("1 (0 to 1), vilt.")


def test_sinks_are_patches_that_every_word_looks_at():
    rows = torch.full((3, 20), 0.01)
    rows[:, 4], rows[0, 9] = 0.5, 0.6
    assert sinks_of(rows).nonzero().flatten().tolist() == [4]
    assert not sinks_of(rows[:1]).any()
    image = PatchGrid.plain(rows=4, cols=5, patch_px=(10, 10), size_px=(50, 40))
    text = Tokens.of("a b c", pieces=["a", "b", "c"], spans=[(0, 1), (2, 3), (4, 5)])
    stream = handmade(image, text, [torch.cat([torch.zeros(20, 23), torch.cat([rows, torch.zeros(3, 3)], 1)])[None]])
    said = mmattn.analysis.matching.raw.raw(stream).said["sinks"]
    assert said == f"1 patches hold {100 * 1.5 / float(rows.sum()):.2g} % of the words' weight on the picture"


def handmade(image, text, weights):
    """One sequence, picture first, of layers with these weights `[head, query, key]`, in which a decoder writes."""
    count = len(image) + len(text)
    axis = Joined.of({"image": image, "text": text}, tokens=[range(len(image)), range(len(image), count)])
    layers = tuple(
        AttentionLayer(
            name=f"layers.{number}",
            query=(axis,),
            key=(axis,),
            heads=len(one),
            storage=(Blocks(source=Dense(weights=one[None])),),
        )
        for number, one in enumerate(weights)
    )
    return one_stream(AttentionMaps(layers=layers), writes=True)


@pytest.mark.filterwarnings("ignore:The text has 35 tokens")  # the small vocabulary spells it letter by letter
def test_relative_is_over_the_general_questions_map(maps):
    general = mmattn.attend(towers(NAME), image=PHOTO, text=GENERAL, processor=processor(NAME))
    found = matched("relative")
    (text, words), (_, cells) = sides(maps[0])
    layer = 1  # 14/32 of two layers
    _, (_, others) = sides(general)
    against = general[layer].weights().mean(0)[0, others]
    expected = maps[0][layer].weights().mean(0)[words][:, cells] / against.clamp(min=float(against.mean()) / 1000)
    assert torch.allclose(found.relevances[0].values, torch.where(words_of(text)[:, None], expected, 0.0), rtol=1e-4)
    assert GENERAL in found.relevances[0].parameters["over"]
    lower = matched("relative", layer=0).overall[1].values[0]
    _, (_, cells) = sides(maps[1])
    against = general[0].weights().mean(0)[0, others]
    against = against.clamp(min=float(against.mean()) / 1000)
    assert torch.allclose(lower, maps[1][0].weights().mean(0)[0, cells] / against, rtol=1e-4)


def entropy_by_hand(above):
    """Components of 8 neighbors by flooding, and the entropy of their sizes."""
    left = {(int(row), int(col)) for row, col in np.argwhere(above)}
    sizes = []
    while left:
        waiting, size = [left.pop()], 0
        while waiting:
            row, col = waiting.pop()
            size += 1
            near = {(row + down, col + over) for down in (-1, 0, 1) for over in (-1, 0, 1)} & left
            left -= near
            waiting += near
        sizes.append(size)
    total = sum(sizes)
    return -sum(size / total * math.log(size / total) for size in sizes)


def test_heads_are_chosen_as_the_paper_has_it():
    generator = torch.Generator().manual_seed(3)
    image = PatchGrid.plain(rows=6, cols=7, patch_px=(10, 10), size_px=(70, 60))
    text = Tokens.of("a b", pieces=["a", "b"], spans=[(0, 1), (2, 3)])
    logits = 3 * torch.randn(3, 8, 44, 44, generator=generator)
    logits[1, 2, 43, :35] = -8.0
    logits[1, 2, 43, 35:42] = 9.0  # the whole bottom row
    logits[2, 5, 43, :42] = -6.0
    logits[2, 5, 43, [10, 11, 17]] = 9.0  # one place
    weights = torch.softmax(logits, -1)
    stream = handmade(image, text, list(weights))
    asked = weights[:, :, 43, :42]
    sums = asked.sum(-1).flatten().sort().values
    line = [float(sums[0] + (sums[-1] - sums[0]) * n / (len(sums) - 1)) for n in range(len(sums))]
    bend = float(sums[int(np.argmax([abs(float(value) - at) for value, at in zip(sums, line, strict=True)]))])
    assert elbow(asked.sum(-1).flatten()) == pytest.approx(bend)
    expected = []
    for layer in range(3):
        for head in range(8):
            above = (asked[layer, head] > asked[layer, head].mean()).reshape(6, 7).numpy()
            assert spatial_entropy(above) == pytest.approx(entropy_by_hand(above), abs=1e-9)
            if float(asked[layer, head].sum()) >= bend and not above[-1].all():
                expected.append((entropy_by_hand(above), -float(asked[layer, head].sum()), layer, head))
    chosen = [(one.layer, one.head) for one in localizing(stream)]
    assert chosen == [(layer, head) for _, _, layer, head in sorted(expected)[:3]]
    assert chosen[0] == (2, 5)
    assert (1, 2) not in chosen
    found = mmattn.analysis.matching.localization.heads(stream)
    rows = sum(weights[layer, head][42:, :42] for layer, head in chosen)
    assert torch.allclose(found.rows, rows, atol=1e-6)
    assert torch.allclose(found.whole, rows[1], atol=1e-6)
    assert found.said["heads"].startswith("layer 2 head 5; ")


def test_slots_that_asked_patches_lead_on_to_them():
    torch.manual_seed(0)
    image = PatchGrid.plain(rows=3, cols=4, patch_px=(10, 10), size_px=(40, 30))
    slots, text = Slots.count(5), Tokens.of("a b", pieces=["a", "b"], spans=[(0, 1), (2, 3)])
    asked, sequence = torch.softmax(torch.randn(2, 5, 12), -1), torch.softmax(torch.randn(3, 7, 7), -1)
    axis = Joined.of({"image": slots, "text": text}, tokens=[range(5), range(5, 7)])
    blocks = [(Blocks(source=Dense(weights=one[None])),) for one in (asked, sequence)]
    perceiver = AttentionLayer(name="slots", query=(slots,), key=(image,), heads=2, storage=blocks[0], kind="cross")
    decoder = AttentionLayer(name="decoder", query=(axis,), key=(axis,), heads=3, storage=blocks[1])
    stream = one_stream(AttentionMaps(layers=(perceiver, decoder)), writes=True)
    found = mmattn.analysis.matching.raw.raw(stream)
    assert torch.allclose(found.rows, sequence.mean(0)[5:, :5] @ asked.mean(0), atol=1e-6)
    assert stream.picture is image
    assert stream.remarks == {"note": "composed with slots"}
    with pytest.raises(ModelError, match="or slots that asked one"):
        _ = one_stream(AttentionMaps(layers=(decoder,)), writes=True).picture


@pytest.mark.parametrize("name", ["GIT", "Idefics2", "InstructBLIP"])
def test_pictures_in_front_latents_and_a_q_former_below_are_matched(name):
    member = SIDED[name]
    texts = member.texts(["the cat", "a red dog"])
    maps = mmattn.attend(sided(name), image=PHOTO, text=texts[1], processor=sided_processor(name)).composed()
    found = mmattn.match(sided(name), PHOTO, texts=texts, method="raw", processor=sided_processor(name)).relevances[1]
    layers = [one for one in maps.layers if one.stream == "decoder"]
    words, where = layers[-1].query_axis.part("text")
    axis = layers[-1].key_axis
    grid, cells = axis.part(axis.only(PatchGrid))
    assert found.axis == grid
    dense = torch.stack([one.weights().mean(0) for one in layers]).mean(0)[where][:, cells]
    own = torch.tensor([role in ("content", "continuation") for role in words.roles])
    ours = found.values[: len(words)] if len(found.values) == len(words) else found.values[-len(words) :]
    assert torch.allclose(ours[own], dense[own], atol=1e-5)


def test_flat_heads_localize_nothing():
    image = PatchGrid.plain(rows=2, cols=2, patch_px=(10, 10), size_px=(20, 20))
    stream = handmade(image, Tokens.of("a", pieces=["a"], spans=[(0, 1)]), [torch.full((2, 5, 5), 0.2)])
    with pytest.raises(ModelError, match="No head of this model looks at one place"):
        mmattn.analysis.matching.localization.heads(stream)


def relevance_by_hand(model, run, score, layers=None):
    """R - I over the whole sequence by autograd on weights put in the kernel's place."""
    kept = []

    def reach(weights, call):
        used = weights.detach().requires_grad_() if not weights.requires_grad else weights
        kept.append(used)
        return used

    with torch.enable_grad(), intervene(model, reach, layers=layers):
        output = run()
        gradients = torch.autograd.grad(score(output), kept)
    found = None
    for weights, gradient in zip(kept, gradients, strict=True):
        one = (weights * gradient).clamp(min=0).mean(1)[0].detach().double()
        found = torch.eye(len(one), dtype=torch.float64) if found is None else found
        found = found + one @ found
    return found - torch.eye(len(found), dtype=torch.float64)


def test_chefer_of_a_judgement_is_read_in_the_rows_of_its_words(maps):
    found = matched("chefer", texts=TEXTS[0])
    alone = mmattn.attend(towers(NAME), image=PHOTO, text=TEXTS[0], processor=processor(NAME))
    (text, words), (_, cells) = sides(alone)
    expected = relevance_by_hand(towers(NAME), alone.rerun, lambda output: output.logits[0, 0])
    rows = torch.where(words_of(text)[:, None], expected[words][:, cells].float(), 0.0)
    assert float(rows.abs().max()) > 1e-6
    assert torch.allclose(found.relevances[0].values, rows, atol=1e-5 * float(rows.max()))
    assert torch.allclose(found.overall[0].values[0], expected[0, cells].float(), atol=1e-5 * float(expected.max()))
    both = matched("chefer").relevances[0].values
    assert torch.allclose(both[: len(rows)], rows, atol=1e-4 * float(rows.max()))


def llava(method, texts, **given):
    return mmattn.match(
        stream("Llava"), PHOTO, texts=texts, method=method, processor=stream_processor("Llava"), **given
    )


def test_a_decoder_scores_a_text_by_the_mean_log_likelihood_of_its_tokens():
    texts = ["A cat on the mat", "dog"]
    found = llava("raw", texts)
    assert found.unit == "log-likelihood per token"
    for text, score in zip(texts, found.scores, strict=True):
        alone = mmattn.attend(stream("Llava"), image=PHOTO, text=text, processor=stream_processor("Llava"))
        words, where = alone[-1].query_axis.part("text")
        own = torch.tensor(where)[words_of(words)]
        likely = alone.rerun().logits[0].detach().log_softmax(-1)
        ids = alone.prepared.facts.inputs["input_ids"][0]
        assert float(score) == pytest.approx(float(likely[own - 1, ids[own]].mean()), abs=1e-4)
        _, cells = alone[-1].query_axis.part("image")
        layers = alone.select(stream="decoder")
        dense = torch.stack([layer.weights().mean(0) for layer in layers]).mean(0)
        row = found.overall[texts.index(text)].values[0]
        assert torch.allclose(row, dense[-1, cells], atol=1e-5)  # the last token has read everything


def test_chefer_of_a_word_that_is_written_is_read_in_the_row_before_it():
    text = "cat mat"
    found = llava("chefer", text)
    alone = mmattn.attend(stream("Llava"), image=PHOTO, text=text, processor=stream_processor("Llava"))
    (words, where), (_, cells) = alone[-1].query_axis.part("text"), alone[-1].query_axis.part("image")
    ids = alone.prepared.facts.inputs["input_ids"][0]
    decoder = [layer.name for layer in alone.select(stream="decoder")]
    for token in torch.nonzero(words_of(words)).flatten().tolist()[-2:]:
        at = int(where[token])
        expected = relevance_by_hand(
            stream("Llava"), alone.rerun, lambda output, at=at: output.logits[0, at - 1, ids[at]], layers=decoder
        )[at - 1, cells].float()
        assert float(expected.max()) > 0
        row = found.relevances[0].values[token]
        assert torch.allclose(row, expected, atol=1e-5 * float(expected.max()))
    assert torch.allclose(found.overall[0].values[0], found.relevances[0].values.sum(0), atol=1e-6)
    assert mmattn.links(found.relevances[0]).panels


def test_relative_and_heads_of_a_decoder_ask_with_the_last_token():
    general = mmattn.attend(stream("Llava"), image=PHOTO, text=GENERAL, processor=stream_processor("Llava"))
    alone = mmattn.attend(stream("Llava"), image=PHOTO, text="cat", processor=stream_processor("Llava"))
    one, other = (maps.select(stream="decoder")[1] for maps in (alone, general))
    (_, cells), (_, others) = one.query_axis.part("image"), other.query_axis.part("image")
    against = other.weights().mean(0)[-1, others]
    expected = one.weights().mean(0)[-1, cells] / against.clamp(min=float(against.mean()) / 1000)
    assert torch.allclose(llava("relative", "cat").overall[0].values[0], expected, rtol=1e-3)
    found = llava("heads", "cat")
    named = found.overall[0].parameters["heads"].split("; ")
    layers = alone.select(stream="decoder")
    rows = 0
    for name in named:
        _, layer, _, head = name.split()
        rows = rows + layers[int(layer)].weights()[int(head), -1, cells]
    assert torch.allclose(found.overall[0].values[0], rows, atol=1e-5)


@pytest.mark.parametrize(("name", "looks"), [("Llava", 1), ("Gemma 3", 1), ("Pixtral", 2)])
def test_the_picture_is_looked_at_once_where_its_tower_takes_it_whole(name, looks):
    model, kept = stream(name), []
    texts = ["cat", "dog"]
    alone = [mmattn.match(model, PHOTO, texts=text, processor=stream_processor(name)) for text in texts]
    conv = next(one for one in model.get_submodule("model.vision_tower").modules() if isinstance(one, torch.nn.Conv2d))
    handle = conv.register_forward_pre_hook(lambda _, args: kept.append(len(args[0])))
    try:
        both = mmattn.match(model, PHOTO, texts=texts, method="raw", processor=stream_processor(name))
    finally:
        handle.remove()
    toward = mmattn.match(model, PHOTO, texts=texts, processor=stream_processor(name))
    assert kept == [looks]
    for number, one in enumerate(alone):
        assert float(both.scores[number]) == pytest.approx(float(one.scores), abs=1e-4)
        assert torch.allclose(toward.relevances[number].values, one.relevances[0].values, atol=1e-4)


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "InternVL"])
def test_towers_in_windows_and_pictures_in_tiles_are_no_hindrance(name):
    found = mmattn.match(stream(name), PHOTO, texts="cat", processor=stream_processor(name))
    maps = mmattn.attend(stream(name), image=PHOTO, text="cat", processor=stream_processor(name))
    _, cells = maps.select(stream="decoder")[0].query_axis.part("image")
    words, at = maps.select(stream="decoder")[0].query_axis.part("text")
    token = words.tokens_of_word("cat")[0]
    row, ids = int(at[token]) - 1, maps.prepared.facts.inputs["input_ids"][0]
    decoder = [layer.name for layer in maps.select(stream="decoder")]
    expected = relevance_by_hand(
        stream(name), maps.rerun, lambda output: output.logits[0, row, ids[row + 1]], layers=decoder
    )[row, cells].float()
    assert torch.allclose(found.relevances[0].values[token], expected, atol=1e-5 * float(expected.max()))


def test_the_default_is_chefer_and_links_are_drawn(tmp_path):
    found = mmattn.match(towers(NAME), PHOTO, texts=TEXTS, processor=processor(NAME))
    assert found.method == "chefer"
    assert mmattn.links(found.relevances[0], focus="cat").save(tmp_path / "links.png").exists()
    assert mmattn.overlay(found.word("car", text=1)).panels


def test_what_does_not_fit_is_refused():
    with pytest.raises(NotFoundError, match="in one sequence. Methods that fit it are: .*chefer"):
        matched("interaction")
    with pytest.raises(NotFoundError, match="no layer 5: words and patches ask each other in 2 layers"):
        matched("raw", layer=5)
    with pytest.raises(NotFoundError, match="There is no head 9"):
        matched("raw", head=9)
    with pytest.raises(InputError, match="do not go together"):
        matched("heads", layer=1)
    name = "ViLT, masked words"
    with pytest.raises(ModelError, match="neither judges a picture with a text nor writes"):
        mmattn.match(towers(name), PHOTO, texts=TEXTS, processor=processor(name))

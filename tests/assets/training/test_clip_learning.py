"""How our CLIP learns: a tower that has places, what is where, then words; interrupted and resumed."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training import checkpoints  # noqa: E402
from assets.training.captions import Caption  # noqa: E402
from assets.training.clip_evaluate import told  # noqa: E402
from assets.training.clip_learning import ClipLearner, _scene, contrast, looked, meaning  # noqa: E402
from assets.training.clip_model import (  # noqa: E402
    ClipRecipe,
    build_clip,
    load_clip,
)
from assets.training.clip_places import keep_places, take_sides  # noqa: E402
from assets.training.clip_seeing import SeeingLearner, begun, loss, seen_by_table, truth  # noqa: E402
from assets.training.clip_train import train_clip  # noqa: E402
from assets.training.clip_words import CONTEXT, words  # noqa: E402
from assets.training.compose import Composer, Placed  # noqa: E402
from assets.training.model import load_weights, normalized  # noqa: E402
from assets.training.runs import Watch  # noqa: E402
from assets.training.things import thing, things  # noqa: E402

TINY = ClipRecipe(
    split="held-out",
    steps=6,
    batch=6,
    size_px=32,
    width=24,
    layers=2,
    heads=2,
    warmup_steps=2,
    scenes=24,
    seeing_steps=6,
    seeing_batch=6,
    whole=0.34,
    embed_dim=16,
    pool_heads=2,
    text_width=16,
    text_layers=1,
    text_heads=2,
)
WATCH = Watch(evaluations=1, scenes=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_clip(TINY, folder, tower=None, watch=WATCH)
    return folder


def test_an_interrupted_run_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    for _ in range(5):
        train_clip(TINY, tmp_path, tower=None, watch=replace(WATCH, stop_after=2))
    for folder in (tmp_path / "seeing", tmp_path):
        assert [path.name for path in checkpoints.found(folder)] == [f"checkpoint-000000{n}.mmattn" for n in (4, 6)]
    one, other = (load_clip(folder / "clip").state_dict() for folder in (trained, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    moved = build_clip(TINY, None).state_dict()
    assert not any(torch.equal(moved[name], one[name]) for name in ("logit_scale", "visual.proj", "text.ln_final.bias"))


def test_words_are_not_learned_before_the_tower_has_learned_to_see(tmp_path: Path) -> None:
    train_clip(TINY, tmp_path, tower=None, watch=replace(WATCH, stop_after=2))
    assert not (tmp_path / "clip").exists()


def test_what_is_written_has_the_tower_that_the_first_half_ended_with(trained: Path) -> None:
    last = checkpoints.latest(trained / "seeing", recipe=TINY.seeing())
    assert last is not None
    for name, value in load_clip(trained / "clip").visual.state_dict().items():
        assert torch.equal(value, last.state[f"average.visual.{name}"].half().float())


def test_a_few_pairs_are_learned_by_heart_with_their_twins() -> None:
    recipe = replace(TINY, steps=400, batch=8, learning_rate=3e-3, muon_rate=1e-2, ema=0.9)
    learner = ClipLearner(recipe, Composer("held-out", size_px=32), first=begun(recipe, tower=None).state_dict())
    pairs = learner.batch(0)
    assert len(pairs.texts) > 8, "there are twins"
    losses = [learner.step(number, pairs) for number in range(150)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_text_that_is_cut_behind_the_longest_reads_as_the_whole() -> None:
    recipe = replace(TINY, steps=50, taught=0.0)
    learner = ClipLearner(recipe, Composer("held-out", size_px=32), first=begun(recipe, tower=None).state_dict())
    pairs = learner.batch(0)
    assert pairs.texts.shape[1] < CONTEXT
    whole = F.pad(pairs.texts, (0, CONTEXT - pairs.texts.shape[1]), value=words().index("<pad>"))
    expected = contrast(
        pairs.seen, build_clip(recipe, None).encode_text(whole), pairs.wrong, sharpness=learner.model.logit_scale
    )
    assert learner.step(0, pairs) == pytest.approx(float(expected.detach()), rel=0.02)


def test_pictures_are_looked_at_as_open_clip_does() -> None:
    first = begun(TINY, tower=None).state_dict()
    learner = ClipLearner(TINY, Composer("held-out", size_px=32), first=first)
    clip = learner.clip()
    scenes, _ = told(learner.composer, seed=3, count=5, least=1)
    pixels = normalized(np.stack([scene.pixels for scene in scenes]))
    with torch.no_grad():
        torch.testing.assert_close(looked(clip.visual, scenes), clip.encode_image(pixels, normalize=True))
    own = [learner.composer.scene(at, seed=TINY.seed + 14, least=TINY.least(at)) for at in range(TINY.scenes)]
    assert F.cosine_similarity(learner.seen.features, looked(clip.visual, own)).min() > 0.999
    assert learner.seen.objects == tuple(tuple(scene.objects) for scene in own)


def test_each_round_brings_every_scene_once_in_another_order() -> None:
    orders = [[_scene(24 * around + at, TINY) for at in range(24)] for around in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_a_text_means_what_the_table_says_of_its_things_and_of_how_they_lie() -> None:
    dog, key = thing("dog"), thing("key")
    at = {each.noun: number for number, each in enumerate(things())}
    table = torch.randn(4, len(things()), 16)
    there, several, column, row = table
    two = Caption(text="", mentioned=(), counts=((dog, 2),))
    torch.testing.assert_close(meaning(two, table), F.normalize(there[at["dog"]] + several[at["dog"]], dim=0))
    for relation, axis, sign in (("left of", column, 1), ("above", row, 1), ("right of", column, -1)):
        said = Caption(text="", mentioned=(), counts=((dog, 1), (key, 1)), relation=(dog, relation, key), exchanged="")
        plain = there[at["dog"]] + there[at["key"]] - (several[at["dog"]] + several[at["key"]]) / 2
        apart = 3 * sign * (axis[at["key"]] - axis[at["dog"]])
        torch.testing.assert_close(meaning(said, table), F.normalize(plain + apart, dim=0))
        torch.testing.assert_close(meaning(said, table, exchanged=True), F.normalize(plain - apart, dim=0))


def test_the_loss_is_that_of_the_plain_sum() -> None:
    torch.manual_seed(0)
    seen, read, sharpness = torch.randn(4, 5), torch.randn(6, 5), torch.tensor(1.3)
    bad = torch.rand(4, 6) < 0.6
    bad[range(4), range(4)] = False
    cosine = F.cosine_similarity(seen[:, None], read[None], dim=-1).double() * float(sharpness.exp())
    total = 0.0
    for own in range(4):
        texts = [own, *np.flatnonzero(bad[own]).tolist()]
        pictures = [own, *np.flatnonzero(bad[:, own]).tolist()]
        total += float(cosine[own, texts].logsumexp(0) + cosine[pictures, own].logsumexp(0) - 2 * cosine[own, own])
    assert float(contrast(seen, read, bad, sharpness=sharpness)) == pytest.approx(total / 8, rel=1e-5)


def test_shards_learn_what_one_thread_learns() -> None:
    learners = [
        SeeingLearner(replace(TINY.seeing(), shards=shards, steps=50), Composer("held-out", size_px=32), tower=None)
        for shards in (1, 2)
    ]
    start = torch.nn.utils.parameters_to_vector(begun(TINY.seeing(), tower=None).parameters())
    for number in range(4):
        for learner in learners:
            learner.step(number, learner.batch(number))
    one, two = (torch.nn.utils.parameters_to_vector(learner.model.parameters()) - start for learner in learners)
    assert F.cosine_similarity(one, two, dim=0) > 0.97


def test_a_shard_sees_as_the_model_does() -> None:
    """The attention that is written out, with all patches and the class token, in bfloat16."""
    learner = SeeingLearner(TINY.seeing(), Composer("held-out", size_px=32), tower=None)
    shard, scenes = learner._shards[0], learner.batch(0)
    shard.see(None, with_class=True)
    pixels = normalized(scenes.pixels)
    mine, theirs = shard.model(pixels.to(torch.bfloat16)).flatten(1), learner.model.eval()(pixels).flatten(1)
    assert F.cosine_similarity(mine, theirs, dim=-1).min() > 0.999


def test_without_the_class_token_the_pooler_has_patches_only() -> None:
    shard = SeeingLearner(TINY.seeing(), Composer("held-out", size_px=32), tower=None)._shards[0]
    tokens = torch.randn(2, 17, 24).to(torch.bfloat16)
    other = torch.cat([torch.randn(2, 1, 24).to(torch.bfloat16), tokens[:, 1:]], dim=1)
    for with_class in (False, True):
        shard.see(None, with_class=with_class)
        one, two = shard.model.visual.attn_pool(tokens), shard.model.visual.attn_pool(other)
        assert torch.equal(one, two) == (not with_class)


def test_a_scenes_truth_is_read_off_its_boxes() -> None:
    dog, key = thing("dog"), thing("key")
    boxes = (dog, (0, 8, 16, 24)), (dog, (16, 8, 32, 24)), (key, (24, 24, 32, 32))
    placed = tuple(Placed(thing=each, box_px=box) for each, box in boxes)
    scene = replace(Composer("held-out", size_px=32).scene(0, seed=1), objects=placed)
    known = truth([scene])
    at = {each.noun: number for number, each in enumerate(things())}
    assert known.counts.sum() == 3
    assert known.counts[0, at["dog"]] == 2
    assert known.places[0, :, at["dog"]].tolist() == [0.0, 0.0]
    assert known.places[0, :, at["key"]].tolist() == [0.75, 0.75]


def test_what_a_picture_says_costs_what_the_plain_sum_says() -> None:
    torch.manual_seed(0)
    scenes = truth(told(Composer("held-out", size_px=32), seed=3, count=5, least=1)[0])
    read = torch.randn(5, 4, len(things()))
    total = 0.0
    for logits, counts, places in zip(read.double(), scenes.counts, scenes.places, strict=True):
        for at, count in enumerate(counts.tolist()):
            there, several = logits[:2, at].sigmoid().tolist()
            total -= np.log(there if count else 1 - there)
            if count:
                total -= np.log(several if count > 1 else 1 - several)
                off = (logits[2:, at] - 2 * places[:, at]).abs().tolist()
                total += 3 * sum(each**2 if each < 0.5 else each - 0.25 for each in off)
    assert float(loss(read, scenes, placed=3.0)) == pytest.approx(total / 5, rel=1e-5)


def test_what_is_where_is_learned_by_heart() -> None:
    recipe = replace(TINY.seeing(), steps=800, learning_rate=3e-3, muon_rate=1e-2, patch_dropout=0.0, tower_times=1.0)
    learner = SeeingLearner(replace(recipe, ema=0.9), Composer("held-out", size_px=32), tower=None)
    scenes = learner.batch(0)
    losses = [learner.step(number, scenes) for number in range(100)]
    assert losses[-1] < 0.1 * losses[0]


def test_who_knows_nothing_of_places_is_at_chance_and_its_report_is_whole() -> None:
    found = seen_by_table(begun(TINY.seeing(), tower=None).eval(), Composer("held-out", size_px=32), seed=3, count=64)
    assert set(found) == {"there", "left_right", "above_below"}
    assert found["there"] < 0.2
    assert 0.1 < found["left_right"] < 0.9


def test_places_arrive_behind_the_last_block_as_they_were_written() -> None:
    visual = build_clip(TINY, None).eval().visual
    pixels = torch.rand(3, 3, 32, 32)
    directions = keep_places(visual, pixels, length=60.0)
    with torch.no_grad():
        arrived = visual.transformer(visual._embeds(pixels))[:, 1:] @ directions / 60
    columns, rows = ((torch.arange(16) % 4) + 0.5) / 2 - 1, ((torch.arange(16) // 4) + 0.5) / 2 - 1
    for direction, expected in ((0, columns), (1, (1 - columns**2).sqrt()), (2, rows), (3, (1 - rows**2).sqrt())):
        torch.testing.assert_close(arrived[..., direction], expected.expand(3, 16), rtol=0, atol=1e-4)


def test_a_tower_that_is_given_places_still_sees_what_it_saw() -> None:
    vit = load_weights(ROOT / "assets/weights/vit").eval()
    visual = build_clip(ClipRecipe(), vit).eval().visual
    scenes, _ = told(Composer("held-out", size_px=112), seed=3, count=8, least=1)
    pixels = normalized(np.stack([scene.pixels for scene in scenes]))
    with torch.no_grad():
        before = visual.transformer(visual._embeds(pixels))
        directions = keep_places(visual, pixels, length=60.0)
        after = visual.transformer(visual._embeds(pixels))
        beside = before - before @ directions @ directions.T, after - after @ directions @ directions.T
    assert F.cosine_similarity(*beside, dim=-1).mean() > 0.8


def test_heads_begin_with_a_side_each() -> None:
    visual = build_clip(replace(TINY, pool_heads=4), None).eval().visual
    pixels = torch.rand(3, 3, 32, 32)
    take_sides(visual, pixels, keep_places(visual, pixels, length=60.0), lead=3.0)
    pool = visual.attn_pool
    with torch.no_grad():
        tokens = pool.ln_k(visual.transformer(visual._embeds(pixels))[:, 1:])
        query = pool.ln_q(pool.query)[None].expand(3, -1, -1)
        weights = pool.attn(query, tokens, tokens, average_attn_weights=False)[1][:, :, 0].reshape(3, 4, 4, 4)
    column = (weights.sum(dim=2) * torch.tensor([-0.75, -0.25, 0.25, 0.75])).sum(dim=-1).mean(dim=0)
    row = (weights.sum(dim=3) * torch.tensor([-0.75, -0.25, 0.25, 0.75])).sum(dim=-1).mean(dim=0)
    assert column[0] < -0.4 < 0.4 < column[1]
    assert row[2] < -0.4 < 0.4 < row[3]

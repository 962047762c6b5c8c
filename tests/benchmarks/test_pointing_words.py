"""`benchmarks.pointing_words`: words that are asked for stand there, and each number is from the right map."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.clip_model import ClipRecipe, build_clip, save_clip
from assets.training.compose import Composer
from assets.training.things import things
from benchmarks import pointing_words
from benchmarks.pointing_links import Pairing, linkings, opened
from benchmarks.pointing_phrases import Scores, photographs, place_of, questions, tried
from benchmarks.pointing_scores import Score, scored
from benchmarks.pointing_words_photos import Worded, worded
from benchmarks.pointing_words_tables import Knows, judged, pointed, short, table
from mmattn.errors import InputError

TINY = ClipRecipe(
    size_px=32, width=24, layers=2, heads=2, embed_dim=16, pool_heads=2, text_width=16, text_layers=1, text_heads=2
)
NOUNS = {noun for each in things() for noun in (each.noun, each.plural)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of the same form with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    save_clip(build_clip(TINY, None).state_dict(), path, recipe=TINY, step=0)
    return f"open_clip:local-dir:{path}"


@pytest.fixture(scope="module")
def pairing(folder: str) -> Pairing:
    return opened(folder)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_word_that_is_asked_for_stands_in_its_caption_and_is_a_things_name(count: int) -> None:
    asked = questions(Composer("held-out", size_px=64), things=count, seed=7, count=30)
    assert len(asked) == 30
    for one in asked:
        words = [one.caption[slice(*each.word)] for each in one.asked]
        assert set(words) <= NOUNS
        assert len(set(words)) == len(words)
        assert all(each.prompt.endswith(word) for each, word in zip(one.asked, words, strict=True))
        assert sum(len(each.boxes) for each in one.asked) <= count
    assert any(sum(len(each.boxes) for each in one.asked) == count for one in asked)
    if count > 1:
        assert any(len(each.boxes) > 1 for one in asked for each in one.asked)  # twice the same thing
        assert any(len(one.asked) == count for one in asked)


def test_a_color_is_not_taken_for_the_fruit_of_its_name() -> None:
    assert place_of("orange", "two orange tigers, and an orange left of an orange fox") == (26, 32)
    assert place_of("apple", "a pineapple and an apple") == (19, 24)


def test_no_scene_serves_twice() -> None:
    composer = Composer("held-out", size_px=32)
    seen = [one.picture.tobytes() for n in (1, 2, 3) for one in questions(composer, things=n, seed=7, count=10)]
    assert len(set(seen)) == 30


def test_ways_that_the_model_does_not_admit_are_named_with_the_reason(pairing: Pairing) -> None:
    ways, refused = linkings(pairing)
    assert ways[0].name == "interaction (the default)"
    assert {"chefer", "gradeclip", "similarity", "interaction, 8 points, 1 block"} <= {way.name for way in ways}
    assert "4 points, 4 blocks" in "".join(refused)  # the tower has 2
    assert not {way.name for way in ways} & set(refused)
    assert all(reason.endswith(".") for reason in refused.values())


def test_scores_are_of_the_prompts_own_map_and_of_the_words_row(pairing: Pairing) -> None:
    (one,) = questions(Composer("held-out", size_px=32), things=2, seed=8, count=1)
    ways = [way for way in linkings(pairing)[0] if way.name in ("interaction, the input alone, 1 block", "chefer")]
    found = tried(pairing, ways, [one])
    for way in ways:
        (scores,) = found[way.name]
        for at, each in enumerate(one.asked):
            alone = pairing.match(one.picture, [each.prompt], by=way).overall[0]
            beside = pairing.match(one.picture, [one.caption], by=way).word(each.word)
            assert scores.prompt[at].mass == pytest.approx(scored(alone, each.boxes).mass, abs=1e-4)
            assert scores.caption[at].mass == pytest.approx(scored(beside, each.boxes).mass, abs=1e-4)


def test_a_model_of_other_words_is_refused() -> None:
    with pytest.raises(InputError, match="does not read the .* words of our scenes"):
        opened("mmattn:vit")


def planted(hit: bool) -> Score:
    return Score(hit=hit, mass=0.5, chance=0.25)


def test_shares_are_counted_by_number_of_things_and_over_all() -> None:
    right, wrong = planted(True), planted(False)
    found = {
        1: {"interaction (the default)": [[Scores(prompt=(right,), caption=(wrong,))] * 4]},
        2: {"interaction (the default)": [[Scores(prompt=(right, wrong), caption=(right, right))] * 4]},
    }
    both = pointed(found)
    (row,) = both.rows
    assert [row.prompt[size].mean for size in (1, 2, 0)] == pytest.approx([1.0, 0.5, 8 / 12])
    assert [row.caption[size].mean for size in (1, 2, 0)] == pytest.approx([0.0, 1.0, 8 / 12])
    assert both.scenes == {1: 4, 2: 4, 0: 8}
    assert "| chance (area of the boxes) | 0.250 | 0.250 |" in table(both)
    knows = [Knows(seed=1, caption_of_scene=0.95, scene_of_caption=0.94, left_right=0.75, above_below=0.5)]
    states = [line.split(":")[0] for line in judged(both, knows)]
    assert states == ["- reached", "- MISSED", "- reached", *["- MISSED"] * 4]


def test_the_short_table_has_prompt_and_caption_side_by_side() -> None:
    scores = [[Scores(prompt=(planted(True),), caption=(planted(False),))]]
    both = pointed({size: {"chefer": scores} for size in (1, 2, 3)})
    said = short(both, per_prompt_ms={"chefer": 12.4}, photos={"chefer": "1 of 3 / 0 of 4"}, by_chance="x")
    assert "| chefer | 1.00 / 0.00 | 1.00 / 0.00 | 1.00 / 0.00 | 12 | 1 of 3 / 0 of 4 |" in said


def test_photographs_are_asked_for_by_a_phrase_each_and_unknown_words_have_no_rank(pairing: Pairing) -> None:
    asked = photographs()
    for one in asked.values():
        with Image.open(one.picture) as picture:
            assert all(0 <= x0 < x1 <= picture.width for x0, _, x1, _ in one.asked[0].boxes)
    way = next(way for way in linkings(pairing)[0] if way.name == "similarity")
    found = worded(pairing, [way])
    ranks = dict(zip(found.names, found.ranks, strict=True))
    assert {name for name, rank in ranks.items() if rank is None} == {"astronaut", "coffee", "dandelions", "fig"}
    prompts = [f"{'an' if each.noun[0] in 'aeiou' else 'a'} {each.noun}" for each in things() if each.plural]
    near = pairing.cosines([asked["chelsea"].picture], [*prompts, "a cat"])[0]
    assert 1 <= ranks["chelsea"] <= 1 + int((near > near[-1]).sum()) + sum(each.plural is None for each in things())
    assert "knows / never saw" in found.table()


def test_hits_of_known_and_unknown_words_are_counted_apart() -> None:
    found = Worded(
        names=("a", "b", "c"),
        said=("a cat", "a fig", "a cup"),
        ranks=(1, None, None),
        first=("cat",) * 3,
        scores={"chefer": (planted(True), planted(True), planted(False))},
    )
    assert found.counts() == {"chefer": "1 of 1 / 1 of 2"}
    assert found.chance() == "0.2 of 1 / 0.5 of 2"
    assert "of 1 whose word it knows it takes 1 for what they are" in found.warning()


def test_the_benchmark_runs_and_its_tables_are_what_it_measured(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    words = ["--tiny", "--rounds", "1", "--model", folder, "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["pointing_words", *words])
    pointing_words.main()
    said, found = capsys.readouterr().out, json.loads(path.read_text(encoding="utf-8"))
    assert [row["way"] for row in found["pointed"]["rows"]] == ["interaction (the default)", "similarity"]
    for row in found["pointed"]["rows"]:
        cells = [f"{row[asked]['0']['mean']:.3f} (" for asked in ("prompt", "caption")]
        line = next(line for line in said.splitlines() if line.startswith(f"| {row['way']} |"))
        assert all(cell in line for cell in cells)
    assert all(line in said for line in found["targets"])
    assert found["photographs"]["warning"] in said

"""Our CLIP: true captions and false twins, words with places, training that learns and resumes, and its evaluation."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training.captions import Caption, verdict  # noqa: E402
from assets.training.clip_evaluate import read_by, retrieval, told, twins  # noqa: E402
from assets.training.clip_learning import wrong  # noqa: E402
from assets.training.clip_model import (  # noqa: E402
    ClipRecipe,
    build_clip,
    load_clip,
    patch_features,
    save_clip,
)
from assets.training.clip_relevance import chefer, seen_by  # noqa: E402
from assets.training.clip_train import train_clip  # noqa: E402
from assets.training.clip_words import CONTEXT, UNKNOWN, encoded, tokenizer, worded, words  # noqa: E402
from assets.training.compose import Composer, Placed, Scene  # noqa: E402
from assets.training.draws import Draws  # noqa: E402
from assets.training.model import Recipe, build  # noqa: E402
from assets.training.runs import Watch  # noqa: E402
from assets.training.things import thing, things  # noqa: E402
from mmattn.errors import FormatError  # noqa: E402

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
def scenes() -> list[tuple[Scene, Caption]]:
    return list(zip(*told(Composer("held-out", size_px=64), seed=3, count=400, least=2), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_clip(TINY, folder, tower=None, watch=WATCH)
    return folder


def lies(text: str, scene: Scene) -> bool:
    """Read the relation of a caption word by word and hold it against the boxes of the two things."""
    found = re.search(r"(?:^|, and )([^,]+) (left of|right of|above|below|next to) ([^,]+)$", text)
    assert found is not None, text
    sides = []
    for part in (found[1], found[3]):
        named = [each for each in things() if re.search(rf"\b({each.noun}|{each.plural})$", part)]
        name = max(named, key=lambda each: len(each.noun))
        sides.append([each.box_px for each in scene.objects if each.thing == name])
        assert sides[-1], (text, part)
    middle = [[((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes] for boxes in sides]
    apart = [(b[0] - a[0], b[1] - a[1]) for a in middle[0] for b in middle[1]]
    match found[2]:
        case "left of":
            return all(x > 0 for x, _ in apart)
        case "right of":
            return all(x < 0 for x, _ in apart)
        case "above":
            return all(y > 0 for _, y in apart)
        case "below":
            return all(y < 0 for _, y in apart)
        case _:
            return all(x > 0 for x, _ in apart) or all(x < 0 for x, _ in apart)


def test_what_a_caption_says_of_two_things_is_true_and_of_its_twin_false(scenes: list[tuple[Scene, Caption]]) -> None:
    related = [(scene, said) for scene, said in scenes if said.relation is not None]
    assert len(related) > 200, "most scenes with two things or more say how they lie"
    for scene, said in related:
        assert lies(said.text, scene), said.text
        assert (said.exchanged is None) == ("next to" in said.text)
        if said.exchanged:
            assert not lies(said.exchanged, scene), said.exchanged


def test_a_twin_has_the_same_words_in_another_order(scenes: list[tuple[Scene, Caption]]) -> None:
    twins_of = [(said.text, said.exchanged) for _, said in scenes if said.exchanged]
    assert {"left", "right", "above", "below"} <= {word for text, _ in twins_of for word in text.split()}
    for text, other in twins_of:
        assert text != other
        assert sorted(text.replace(",", "").split()) == sorted(other.replace(",", "").split())


def test_the_verdict_on_the_own_scene_is_true_and_on_the_twin_false(scenes: list[tuple[Scene, Caption]]) -> None:
    for scene, said in scenes:
        assert verdict(said, scene.objects, size_px=64) is True
        if said.exchanged:
            assert verdict(said, scene.objects, size_px=64, exchanged=True) is False


def test_the_verdict_on_another_scene_counts_things_and_says_none_where_they_lie_side_by_side() -> None:
    dog, key = thing("dog"), thing("key")
    said = Caption(
        text="a dog above a key", mentioned=(0, 1), counts=((dog, 1), (key, 1)), relation=(dog, "above", key)
    )

    def of(*placed: tuple[str, int, int]) -> bool | None:
        objects = [Placed(thing=thing(noun), box_px=(x, y, x + 10, y + 10)) for noun, x, y in placed]
        return verdict(said, objects, size_px=64)

    assert of(("dog", 10, 10), ("key", 10, 40)) is True
    assert of(("dog", 10, 40), ("key", 10, 10)) is False
    assert of(("dog", 10, 10), ("key", 40, 12)) is None
    assert of(("dog", 10, 10), ("dog", 40, 10), ("key", 10, 40)) is False
    assert of(("dog", 10, 10)) is False


def test_only_what_is_plainly_false_is_a_wrong_answer(scenes: list[tuple[Scene, Caption]]) -> None:
    few, said = zip(*scenes[:20], strict=True)
    at = [number for number, each in enumerate(said) if each.exchanged]
    found = wrong([scene.objects for scene in few], said, twins=at, size_px=64)
    assert found.shape == (20, 20 + len(at))
    assert not found[range(20), range(20)].any()
    assert found[at, range(20, 20 + len(at))].all()
    asked = [(each, False) for each in said] + [(said[each], True) for each in at]
    for scene, row in zip(few, found.tolist(), strict=True):
        one_by_one = [verdict(each, scene.objects, size_px=64, exchanged=twin) is False for each, twin in asked]
        assert row == one_by_one


def test_every_word_of_a_caption_is_known_and_fits(scenes: list[tuple[Scene, Caption]]) -> None:
    assert len(words()) == len(set(words()))
    for _, said in scenes:
        for text in worded([text for text in (said.text, said.exchanged) if text], Draws(said.text)):
            tokens = tokenizer().encode("a photo of " + text).tokens
            assert tokens[-1] in ("<pad>", "<end>")
            assert tokens.count("<end>") == 1
            assert UNKNOWN in text or UNKNOWN not in tokens


def test_other_words_are_chosen_for_a_caption_and_its_twin_alike() -> None:
    for number in range(60):
        text, twin = worded(["a red car left of a dog", "a dog left of a red car"], Draws(number))
        assert sorted(text.split()) == sorted(twin.split())
        assert "car left of" in text
    assert worded(["an orange"], Draws(1))[0].endswith("orange")


def test_a_token_knows_its_characters() -> None:
    text = "An Ice cream, next to 2 okapis"
    found = tokenizer().encode(text)
    assert [text[low:high].lower() for low, high in found.offsets[1:9]] == [
        "an", "ice", "cream", ",", "next", "to", "2", "okapis",
    ]  # fmt: skip
    assert found.tokens[7:10] == [UNKNOWN, UNKNOWN, "<end>"]


def test_the_tower_begins_as_the_vit() -> None:
    vit = build(Recipe(size_px=32, width=24, layers=2, heads=2)).eval()
    with torch.no_grad():
        for weight in vit.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        pixels = torch.randn(3, 3, 32, 32)
        visual = build_clip(TINY, vit).eval().visual
        mine = visual.transformer(visual._embeds(pixels))
        theirs = vit.blocks(vit._pos_embed(vit.patch_embed(pixels)))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_open_clip_opens_the_folder_by_itself_with_its_words(trained: Path) -> None:
    name = f"local-dir:{trained / 'clip'}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    texts = ["A photo of two dogs, an okapi", "a key"]
    assert torch.equal(open_clip.get_tokenizer(name)(texts), encoded(texts))
    assert type(model).__name__ == "CustomTextCLIP"
    assert prepare.transforms[0].size == (32, 32)
    assert model.encode_text(encoded(texts)).shape == (2, 16)


def test_weights_come_back_in_half_precision_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    model = build_clip(TINY, None)
    save_clip(model.state_dict(), tmp_path, recipe=TINY, step=0)
    again = load_clip(tmp_path).state_dict()
    assert all(torch.equal(again[name], value.half().float()) for name, value in model.state_dict().items())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FormatError, match="does not hold a CLIP"):
        load_clip(tmp_path)


def test_a_patch_by_itself_is_the_poolers_way_of_values() -> None:
    model = build_clip(replace(TINY, embed_dim=24), None).eval()
    pixels = torch.randn(2, 3, 32, 32)
    visual = model.visual
    with torch.no_grad():
        tokens = visual.attn_pool.ln_k(visual.transformer(visual._embeds(pixels))[:, 1:])
        value = visual.attn_pool.attn.in_proj_weight[48:], visual.attn_pool.attn.in_proj_bias[48:]
        alone = visual.ln_post(visual.attn_pool.attn.out_proj(F.linear(tokens, *value))) @ visual.proj
        torch.testing.assert_close(patch_features(model, pixels), F.normalize(alone, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embed_dim", [16, 24])
def test_the_forward_pass_that_relevance_is_read_from_is_the_models_own(embed_dim: int) -> None:
    model = build_clip(replace(TINY, embed_dim=embed_dim), None).eval()
    pixels = torch.randn(2, 3, 32, 32)
    seen, attentions = seen_by(model, pixels)
    torch.testing.assert_close(seen, model.encode_image(pixels), rtol=1e-4, atol=1e-5)
    assert [each.shape[1:] for each in attentions] == [(2, 17, 17), (2, 17, 17), (2, 1, 17)]


def test_relevance_is_chefers_rule_in_a_loop() -> None:
    model = build_clip(TINY, None).eval()
    pixels, read = torch.randn(1, 3, 32, 32), F.normalize(torch.randn(1, 16), dim=-1)
    seen, attentions = seen_by(model, pixels)
    grads = torch.autograd.grad((F.normalize(seen, dim=-1) * read).sum(), attentions)
    relevance = np.eye(17)
    for a, g in list(zip(attentions, grads, strict=True))[:-1]:
        both = (a * g).detach().clamp(min=0)[0].double().numpy()
        relevance = relevance + sum(head @ relevance for head in both) / len(both)
    pooled = (attentions[-1] * grads[-1]).detach().clamp(min=0)[0].double().numpy().mean(axis=0)
    expected = (pooled @ relevance)[0, 1:]
    np.testing.assert_allclose(chefer(model, pixels, read)[0].numpy(), expected, rtol=1e-4, atol=1e-9)


def test_a_model_that_knows_nothing_is_at_chance_and_its_report_is_whole() -> None:
    reads = read_by(build_clip(TINY, None).eval(), Composer("held-out", size_px=32), seed=3, count=64)
    assert 0 <= reads.own_caption <= reads.caption_of_scene < 0.3
    assert 0 <= reads.own_scene <= reads.scene_of_caption < 0.3
    assert 0.1 < reads.left_right < 0.9
    assert set(reads.pointing) == {f"{m}_{n}" for m in ("chance", "similarity", "chefer") for n in ("one", "two")}
    assert reads.pointing["chance_two"] < reads.pointing["chance_one"] < 0.4


def test_who_knows_the_truth_finds_every_caption_and_every_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """With features that are looked up by caption instead of computed: the counting itself is right."""
    composer = Composer("held-out", size_px=64)
    pairs = {seed: told(composer, seed=seed, count=64, least=least) for seed, least in ((3, 1), (4, 2))}
    texts = dict.fromkeys(one.text for _, said in pairs.values() for one in said)
    number = {text: at for at, text in enumerate(texts)}
    own = {s.pixels.tobytes(): one.text for each in pairs.values() for s, one in zip(*each, strict=True)}
    one_hot = np.eye(len(number) + 1, dtype=np.float32)

    def written(_: object, asked: list[str]) -> np.ndarray:
        return one_hot[[number.get(text, -1) for text in asked]]

    monkeypatch.setattr("assets.training.clip_evaluate.written", written)
    monkeypatch.setattr(
        "assets.training.clip_evaluate.pictured",
        lambda _, shown: one_hot[[number[own[scene.pixels.tobytes()]] for scene in shown]],
    )
    model = build_clip(TINY, None)
    found = retrieval(model, *pairs[3])
    assert found[:2] == (1.0, 1.0)
    assert min(found[2:]) > 0.9, "two scenes may have the same caption"
    assert twins(model, composer, seed=4, count=64) == (1.0, 1.0)


def test_captions_longer_than_the_context_end_with_the_end() -> None:
    assert CONTEXT == 32
    assert encoded(["a dog and " * 20])[0, -1] == len(words()) - 1

"""Training learns, is the same when it was interrupted, and never goes on from what is broken."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from assets.training import checkpoints  # noqa: E402
from assets.training.compose import Composer, Scene  # noqa: E402
from assets.training.evaluate import average_precision, evaluate, scored, shown  # noqa: E402
from assets.training.learning import KeptPatches, Learner  # noqa: E402
from assets.training.model import Recipe, build, load_weights, normalized, save_weights  # noqa: E402
from assets.training.runs import Watch  # noqa: E402
from assets.training.things import things  # noqa: E402
from assets.training.train import train  # noqa: E402
from mmattn.errors import FormatError, InputError  # noqa: E402

TINY = Recipe(
    split="held-out", steps=6, batch=4, size_px=32, width=24, layers=2, heads=2, warmup_steps=2, singles=1, whole=0.34
)
WATCH = Watch(evaluations=1, scenes=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(TINY, folder, watch=WATCH)
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path).state_dict()


def test_a_run_leaves_weights_with_their_classes_and_a_log(trained: Path) -> None:
    model = load_weights(trained / "vit")
    assert model.get_classifier().out_features == len(things())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 96)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("loss" in line for line in lines)
    assert lines[-1]["step"] == 6
    assert 0 <= lines[-1]["mean_average_precision"] <= 1


def test_an_interrupted_run_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    for _ in range(3):
        train(TINY, tmp_path, watch=replace(WATCH, stop_after=2))
    assert [path.name for path in checkpoints.found(tmp_path)] == [f"checkpoint-000000{n}.mmattn" for n in (4, 6)]
    one, other = weights(trained / "vit"), weights(tmp_path / "vit")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    before = (trained / "vit" / "model.safetensors").read_bytes()
    train(TINY, trained, watch=WATCH)
    assert (trained / "vit" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("keeps", [0, 5, 300, 40_000, -1])
def test_a_half_written_checkpoint_is_passed_over_for_the_last_whole_one(keeps: int, tmp_path: Path) -> None:
    for steps in (2, 2):
        train(TINY, tmp_path, watch=replace(WATCH, stop_after=steps))
    older, newer = checkpoints.found(tmp_path)
    newer.write_bytes(newer.read_bytes()[:keeps])
    with pytest.warns(UserWarning, match=f"{newer.name} is not whole; training goes on from {older.name}"):
        found = checkpoints.latest(tmp_path, recipe=TINY)
    assert found is not None
    assert found.step == 2


def test_a_changed_byte_is_seen(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-0000006.mmattn"
    raw = bytearray(checkpoints.found(trained)[-1].read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="is not whole"):
        checkpoints.read(path)
    path.write_bytes(checkpoints.found(trained)[-1].read_bytes().replace(b'"step": 6', b'"step": 5', 1))
    with pytest.raises(FormatError, match="is not whole"):
        checkpoints.read(path)


def test_with_no_whole_checkpoint_training_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000003.mmattn").write_bytes(b'{"format": 1}\n')
    with pytest.raises(FormatError, match=r"No checkpoint in .* is whole \(checkpoint-0000003\.mmattn\)"):
        train(TINY, tmp_path, watch=WATCH)


def test_a_checkpoint_of_another_recipe_is_refused(trained: Path) -> None:
    with pytest.raises(InputError, match=r"was trained with seed 1 \(asked: 2\)"):
        train(replace(TINY, seed=2), trained, watch=WATCH)


def test_a_run_is_made_longer_while_its_rate_is_constant_and_not_later(trained: Path, tmp_path: Path) -> None:
    longer = replace(TINY, steps=8)
    train(TINY, tmp_path, watch=replace(WATCH, stop_after=2))
    train(longer, tmp_path, watch=WATCH)
    train(longer, tmp_path / "at once", watch=WATCH)
    one, other = weights(tmp_path / "vit"), weights(tmp_path / "at once" / "vit")
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match=r"was trained with steps 6 \(asked: 8\)"):
        train(longer, trained, watch=WATCH)


def test_a_part_that_was_left_beside_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-0000003.mmattn.part").write_bytes(b"half")
    assert checkpoints.latest(tmp_path, recipe=TINY) is None


def test_the_script_says_in_one_line_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000003.mmattn").write_bytes(b"")
    command = [sys.executable, str(ROOT / "assets" / "training" / "train.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "No checkpoint in" in done.stderr


def test_a_few_scenes_are_learned_by_heart() -> None:
    recipe = replace(TINY, steps=200, batch=8, learning_rate=3e-3, warmup_steps=5, patch_dropout=0.25, ema=0.9)
    learner = Learner(recipe, Composer("held-out", size_px=32))
    scenes = learner.batch(0)
    losses = [learner.step(number, scenes) for number in range(150)]
    assert losses[-1] < 0.35 * losses[0]
    first = scored(learner.average, scenes).argmax(axis=1)
    assert shown(scenes)[np.arange(len(scenes)), first].mean() > 0.8


def test_the_loss_asks_the_class_token_for_all_things() -> None:
    """Written out in float32, on the model as timm runs it."""
    learner = Learner(replace(TINY, patch_dropout=0.0), Composer("held-out", size_px=32))
    scenes = learner.batch(0)
    with torch.no_grad():
        loss = float(learner._shards[0].loss(scenes, None))
        logits = build(TINY).eval()(normalized(np.stack([scene.pixels for scene in scenes])))
    assert loss == pytest.approx(entropy(logits, torch.from_numpy(shown(scenes)).double()), rel=0.01)


def entropy(logits: torch.Tensor, truth: torch.Tensor) -> float:
    says = torch.sigmoid(logits.double())
    return float(-(truth * says.log() + (1 - truth) * (1 - says).log()).sum(dim=-1).mean())


def test_shards_learn_what_one_thread_learns() -> None:
    """The gradient of the halves, averaged, is that of all scenes: so are the weights after some steps."""
    recipe = replace(TINY, learning_rate=1e-3, steps=50)
    learners = [Learner(replace(recipe, shards=shards), Composer("held-out", size_px=32)) for shards in (1, 2)]
    for number in range(4):
        for learner in learners:
            learner.step(number, learner.batch(number))
    start = torch.nn.utils.parameters_to_vector(build(recipe).parameters())
    one, two = (torch.nn.utils.parameters_to_vector(learner.model.parameters()) - start for learner in learners)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.97


def test_kept_patches_are_those_that_were_chosen() -> None:
    tokens = torch.arange(10.0).reshape(1, 5, 2)
    keep = KeptPatches()
    assert torch.equal(keep(tokens), tokens)
    keep.kept = torch.tensor([[1, 3]])
    assert torch.equal(keep(tokens), tokens[:, [0, 2, 4]])


def test_patches_are_dropped_anew_each_step_and_not_at_the_end() -> None:
    learner = Learner(replace(TINY, patch_dropout=0.5), Composer("held-out", size_px=32))
    chosen = [learner.kept(number) for number in (0, 0, 1)]
    assert chosen[0] is not None
    assert chosen[0].shape == (4, 8)
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert learner.kept(5) is None


def test_average_precision_is_that_of_the_plain_sum() -> None:
    draws = np.random.default_rng(0)
    for _ in range(30):
        scores, truth = np.round(draws.normal(size=40), 1), draws.random(40) < 0.3
        truth[0] = True
        plain = np.mean([truth[scores >= score].mean() for score in scores[truth]])
        assert average_precision(scores, truth) == pytest.approx(plain)


def test_a_model_that_knows_the_truth_has_an_average_precision_of_one() -> None:
    class Told(torch.nn.Module):
        """Answers with what it was told, batch after batch."""

        def __init__(self, scenes: list[Scene]) -> None:
            super().__init__()
            self.at, self.nothing = 0, torch.nn.Parameter(torch.zeros(1))
            self.truth = torch.from_numpy(shown(scenes)).float()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.at += len(pixels)
            return self.truth[self.at - len(pixels) : self.at]

    composer = Composer("held-out", size_px=32)
    scenes = [composer.scene(index, seed=3) for index in range(30)]
    singles = [composer.scene(30 + index, seed=3, most=1) for index in range(15)]
    knows = evaluate(Told([*scenes, *singles]), composer, seed=3, count=30)
    assert (knows.mean_average_precision, knows.single_top1) == (1.0, 1.0)
    assert knows.classes == int(shown(scenes).any(axis=0).sum())


def test_weights_come_back_in_half_precision_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    model = build(TINY)
    path = tmp_path / "vit"
    save_weights(model.state_dict(), path, recipe=TINY, step=0)
    again = load_weights(path)
    assert all(torch.equal(again.state_dict()[n], v.half().float()) for n, v in model.state_dict().items())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FormatError, match="does not hold a model"):
        load_weights(path)


def test_a_recipe_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="patches of 8 px"):
        replace(TINY, size_px=36)

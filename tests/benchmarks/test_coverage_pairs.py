"""The sweep over models of pictures with words: layers are counted by what the model runs, and a wrong one is seen."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import coverage_pairs  # noqa: E402
from benchmarks.coverage import page  # noqa: E402
from benchmarks.coverage_pairs import Line, Pair, members, row, section, section_of, summary, tried, untried  # noqa: E402
from mmattn.adapters.clip.transformers_known import KNOWN  # noqa: E402
from mmattn.adapters.vlm.known import CLASSES  # noqa: E402


def _member(name: str) -> Pair:
    return next(pair for pair in members() if pair.name == name)


@pytest.mark.parametrize("name", ["Llava", "Qwen2.5-VL", "BLIP, captions"])
def test_every_attention_layer_of_a_class_is_counted_and_exact(name: str) -> None:
    line = tried(_member(name))
    assert line.layers == line.exact > 0
    assert line.is_accounted
    assert not line.reasons


def test_what_is_no_layer_has_mmattns_own_reason() -> None:
    line = tried(_member("Florence-2"))
    assert line.exact < line.layers
    assert line.is_accounted
    assert "channels" in line.reasons[0]


def test_a_layer_that_differs_or_is_missing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = coverage_pairs.mmattn.attend

    def exchanged(*args, **given):
        maps = attend(*args, **given)
        first, second, *rest = maps.layers
        return replace(maps, layers=(replace(first, storage=second.storage), *rest))

    monkeypatch.setattr(coverage_pairs.mmattn, "attend", exchanged)
    line = tried(_member("Llava"))
    assert line.layers - line.exact == 2
    assert not line.is_accounted
    assert "off by" in line.reasons[0]
    assert "no layer" in line.reasons[1]


def test_every_class_that_is_known_has_a_member_or_is_named() -> None:
    pairs = members()
    known = {name.partition(":")[0] for name in (*KNOWN, *CLASSES)}
    assert known <= {pair.cls for pair in pairs} | set(untried(pairs))
    assert untried([]) == sorted(known)


def test_the_page_keeps_the_other_table_when_one_is_written() -> None:
    line = Line(pair=_member("Llava"), layers=4, exact=3, reasons=("1 x off by 1e-01",))
    mine = section([line], without=["SomeModel"])
    assert section_of(page([], before=f"# Coverage\n\n{mine}")) == mine
    assert row(line) in mine
    assert "SomeModel" in mine
    assert summary([line]) == "1 classes, 1 members; 3 of 4 attention layers exact (75.0%); all of them in 0 classes."

"""`mmattn match` on the shipped scenes with the model that is part of the library: a word leads to what it names."""

import json
from pathlib import Path

import pytest

import mmattn as library
from mmattn import catalog

SAID = {
    name: truth.caption
    for name in catalog.scenes()
    if (truth := catalog.scene_truth(name)).caption and all(noun in truth.caption for noun in truth.nouns)
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What `mmattn match --pairs` says of each scene and its sentence, with no option but where to."""
    from mmattn.cli import main

    folder = tmp_path_factory.mktemp("pairs")
    table = folder / "pairs.csv"
    rows = [f'{catalog.scene_path(name)},"{text}"' for name, text in SAID.items()]
    table.write_text("\n".join(["image,text", *rows]) + "\n", encoding="utf-8")
    assert main(["match", "--pairs", str(table), "--json", str(folder / "all.json")]) == 0
    found = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    return {Path(record["input"]).stem: record for record in found}


def test_the_peak_of_each_named_thing_lies_in_its_box_but_for_one_in_ten(records):
    right = {}
    for name, record in records.items():
        truth = catalog.scene_truth(name)
        for noun in truth.nouns:
            word = next(one for one in record["words"] if one["text"].startswith(noun))
            x, y = word["peak_px"]
            right[f"{name}: {noun}"] = any(each.holds(x, y) for each in truth.objects if each.noun == noun)
    assert len(right) >= 10
    assert sum(right.values()) >= 0.9 * len(right), [asked for asked, hit in right.items() if not hit]


def test_the_model_is_ours_and_the_method_the_default(records):
    assert {(record["model"], record["method"]) for record in records.values()} == {("mmattn:clip", "interaction")}


def test_the_true_sentence_scores_higher_than_one_of_another_scene():
    texts = list(SAID.values())
    right = []
    for number, name in enumerate(SAID):
        found = library.match("mmattn:clip", catalog.scene_path(name), texts=texts, method="similarity")
        right.append(found.best == number)
    assert sum(right) >= len(right) - 1

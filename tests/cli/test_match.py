"""`mmattn match`: a picture and texts, tables of pairs, numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_towers import processor
from small_towers import towers as small_towers

import mmattn as library
from mmattn.cli.pairs import read_pairs


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP with random weights, saved with its processor: a folder is a model's name."""
    folder = tmp_path_factory.mktemp("towers")
    small_towers("CLIP").save_pretrained(folder)
    processor("CLIP").save_pretrained(folder)
    return str(folder)


def test_a_text_gives_a_drawing_and_the_agreed_numbers(mmattn, towers, photo, tmp_path):
    out = tmp_path / "seen.png"
    ran = mmattn("match", photo, "a red cat", "--model", towers, "-o", out, "--json", tmp_path / "all.json")
    assert (ran.code, ran.out.strip()) == (0, str(out)), ran
    assert out.stat().st_size > 10_000
    (record,) = json.loads((tmp_path / "all.json").read_text())
    assert list(record) == ["mmattn", "command", "model", "method", "input", "text", "score", "words"]
    assert (record["command"], record["text"], record["method"]) == ("match", "a red cat", "interaction")
    found = library.match(towers, photo, texts="a red cat")
    assert record["score"] == pytest.approx(float(found.scores[0]), rel=1e-5)
    assert [(one["text"], one["start_char"], one["end_char"]) for one in record["words"]] == [
        ("a", 0, 1),
        ("red", 2, 5),
        ("cat", 6, 9),
    ]
    for one in record["words"]:
        row = found.word(one["text"])
        for patch in one["patches"]:
            x0, y0, x1, y1 = patch["box_px"]
            token = row.axis.token_at(((x0 + x1) / 2, (y0 + y1) / 2))
            assert patch["weight"] == pytest.approx(float(row.values[0, token]), rel=1e-4, abs=1e-9)
        best = max(one["patches"], key=lambda patch: patch["weight"])["box_px"]
        assert one["peak_px"] == pytest.approx([(best[0] + best[2]) / 2, (best[1] + best[3]) / 2], abs=2e-3)


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BLIP whose words ask patches, saved with its processor."""
    folder = tmp_path_factory.mktemp("matcher")
    small_towers("BLIP, matching").save_pretrained(folder)
    processor("BLIP, matching").save_pretrained(folder)
    return str(folder)


def test_one_layer_and_head_of_cross_attention_are_drawn(mmattn, matcher, photo, tmp_path):
    numbers = tmp_path / "all.json"
    options = ("--model", matcher, "--method", "cross", "--layer", "0", "--head", "2", "--json", numbers)
    ran = mmattn("match", photo, "a red cat zebra", *options, "-o", tmp_path / "seen.png")
    assert ran.code == 0, ran
    (record,) = json.loads(numbers.read_text())
    found = library.match(matcher, photo, texts="a red cat zebra", method="cross", layer=0, head=2)
    assert len(found.words()[3].tokens) > 1, "a word of several pieces, whose shares stay shares"
    weights = [patch["weight"] for patch in record["words"][3]["patches"]]
    assert weights == pytest.approx(found.word("zebra").values[0, 1:].tolist(), rel=1e-4)
    assert (record["method"], record["score"]) == ("cross", pytest.approx(float(found.scores[0]), rel=1e-5))
    weights = [patch["weight"] for patch in record["words"][2]["patches"]]
    assert weights == pytest.approx(found.word("cat").values[0, 1:].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--method", "interaction"], ["Methods that fit it are", "cross_rollout"]),
        (["--head", "0"], ["do not go together", "cross"]),
        (["--method", "cross", "--layer", "7"], ["no layer 7", "0 to 1"]),
        (["--stream", "vision"], ["streams whose words do", "cross"]),
    ],
)
def test_what_does_not_fit_a_model_is_one_line(mmattn, matcher, photo, tmp_path, *, options, phrases):
    ran = mmattn("match", photo, "a cat", "--model", matcher, *options, "-o", tmp_path / "seen.png")
    assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1), ran
    assert all(phrase in ran.err for phrase in phrases), ran.err


def test_several_texts_are_numbered_in_a_folder_and_one_word_is_in_focus(mmattn, towers, photo, tmp_path):
    out = tmp_path / "out"
    ran = mmattn("match", photo, "a cat", "the cat on the mat", "--model", towers, "-o", f"{out}/", "--focus", "cat")
    assert ran.code == 0, ran
    assert sorted(path.name for path in out.iterdir()) == ["chelsea-1.png", "chelsea-2.png"]


def test_a_table_opens_the_model_once_and_names_the_picture_that_is_not_there(
    mmattn, towers, album, tmp_path, monkeypatch
):
    from mmattn.cli import session

    opened = []
    original = session.open_model
    monkeypatch.setattr(session, "open_model", lambda *given, **more: opened.append(1) or original(*given, **more))
    table = album / "pairs.csv"
    table.write_text('text,image,note\n"a cat, red",a.png,1\na dog,a.png,2\na car,gone.jpg,3\na mat,c.jpg,4\n')
    ran = mmattn("match", "--pairs", table, "--model", towers, "-o", tmp_path / "out", "--json", tmp_path / "all.json")
    assert ran.code == 2
    assert "1 of 3 pictures could not be drawn; the other 2 are done." in ran.err
    assert "gone.jpg" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-1.png", "a-2.png", "c.png"]
    texts = [record["text"] for record in json.loads((tmp_path / "all.json").read_text())]
    assert texts == ["a cat, red", "a dog", "a mat"]
    assert opened == [1]


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["PHOTO"], ["no text for", "Pass both"]),
        (["PHOTO", " "], ["Text 0 is empty"]),
        (["PHOTO", "a cat", "--focus", "dog"], ["dog", "cat"]),
        (["PHOTO", "a cat", "--method", "chefr"], ["chefr", "chefer"]),
        (["PHOTO", "a cat", "--pairs", "some.csv"], ["do not go together"]),
        (["--pairs", "nowhere.csv"], ["nowhere.csv", "--pairs names a CSV file"]),
        ([], ["There is no picture"]),
    ],
)
def test_what_cannot_be_matched_is_one_line(mmattn, towers, photo, tmp_path, *, options, phrases):
    out = tmp_path / "seen.png"
    ran = mmattn("match", *[photo if word == "PHOTO" else word for word in options], "--model", towers, "-o", out)
    assert (ran.code, ran.out, len(ran.err.strip().splitlines())) == (2, "", 1), ran
    assert all(phrase in ran.err for phrase in phrases), ran.err
    assert not out.exists()


def test_a_model_of_pictures_alone_is_refused(mmattn, tiny, photo, tmp_path):
    ran = mmattn("match", photo, "a cat", "--model", tiny, "-o", tmp_path / "seen.png")
    assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1), ran
    assert "two towers" in ran.err


def test_tables_keep_line_breaks_in_quotes_and_the_order_of_their_rows(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_bytes('\ufeffimage,text\r\na.png,"two\nlines"\r\nb.png,x\r\na.png,y\r\n'.encode())
    found = read_pairs(table)
    assert [(one.image.name, one.texts) for one in found] == [
        ("a.png", ("two\nlines",)),
        ("b.png", ("x",)),
        ("a.png", ("y",)),
    ]
    assert found[0].image.parent == tmp_path
    table.write_text(" image , text\n~/a.png,x\n", encoding="utf-8")
    assert read_pairs(table)[0].image == Path.home() / "a.png"


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (b"", "has the columns none"),
        (b"picture,text\na.png,x\n", "has the columns picture, text"),
        (b"image;text\na.png;x\n", "has the columns image;text. A table of pairs .* with commas between columns"),
        (b"image,image,text\na.png,b.png,x\n", "has the columns image, image, text. .* one column image"),
        (b"image,text\na.png,a cat, red\n", "Line 2 of 'pairs.csv' has more columns than the 2 of the first line"),
        ("image,text\na.png,x\n".encode("utf-16"), "no text in UTF-8"),
        (b"image,text\na\x00.png,x\n", "no text in UTF-8"),
        (b"image,text\n", "no pairs"),
        (b"image,text\na.png\n", "Line 2 of 'pairs.csv' has no text"),
        (b"image,text\n,x\n", "Line 2 of 'pairs.csv' has no picture"),
        (b'image,text\na.png,"x\n', "is no table"),
        (b"image,text\na.png,\xff\n", "no text in UTF-8"),
        (b"image,text\na.png," + b"x" * 10_001, "a text of 10,001 letters"),
    ],
)
def test_tables_that_are_none_say_where(tmp_path: Path, data: bytes, phrase: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_bytes(data)
    with pytest.raises(library.MmattnError, match=phrase):
        read_pairs(table)


def test_the_drawing_is_the_one_that_the_library_draws(mmattn, towers, photo, tmp_path):
    from PIL import Image

    mmattn("match", photo, "a red cat", "--model", towers, "-o", tmp_path / "cli.png", "--focus", "cat")
    found = library.match(towers, photo, texts="a red cat")
    library.links(found.relevances[0], focus="cat").save(tmp_path / "library.png")
    ours, theirs = (np.asarray(Image.open(tmp_path / name)) for name in ("cli.png", "library.png"))
    assert ours.shape == theirs.shape
    assert (ours[:250] == theirs[:250]).all()  # the caption below names the folder in one and its weights in the other

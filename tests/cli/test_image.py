"""`mmattn image`: pictures, folders, numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model
from weights import real_weights

import mmattn as library
from mmattn import catalog


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "svg", "pdf", "html"])
def test_suffix_decides_the_format(mmattn, tiny, photo, tmp_path, suffix):
    out = tmp_path / f"seen.{suffix}"
    ran = mmattn("image", photo, "-o", out, "--model", tiny)
    signs = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "webp": b"RIFF", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!doc"}
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.strip() == str(out)
    assert out.read_bytes().startswith(signs[suffix])


def test_picture_is_the_one_that_the_library_draws(mmattn, tiny, photo, tmp_path):
    mmattn(
        "image", photo, "-o", tmp_path / "cli.png", "--model", tiny, "--layer", "3", "--head", "1", "--query=200,100"
    )
    maps = library.attend(tiny, image=photo)
    seen = library.look(maps, layer=3, head=1, query=(200, 100))
    library.overlay(seen).save(tmp_path / "library.png")
    ours, theirs = (np.asarray(Image.open(tmp_path / name)) for name in ("cli.png", "library.png"))
    # The file's name stands where the catalog's would; all else is the same, pixel by pixel.
    assert ours.shape == theirs.shape
    assert (ours[:300] == theirs[:300]).all()


def test_json_alone_is_on_standard_output_and_has_the_agreed_keys(mmattn, tiny, photo, tmp_path):
    ran = mmattn("image", photo, "--model", tiny, "--json", "-", "-o", tmp_path / "seen.png", "--method", "rollout")
    (record,) = json.loads(ran.out)
    assert list(record) == [
        *("mmattn", "command", "model", "method", "input", "query", "target"),
        *("size_px", "rows", "cols", "values", "boxes_px", "peak_px"),
    ]
    assert record["mmattn"] == library.__version__
    assert (record["command"], record["model"], record["method"]) == ("image", tiny, "rollout")
    assert (record["input"], record["query"], record["target"]) == (str(photo), "class token", None)
    assert (tmp_path / "seen.png").exists()


@pytest.mark.parametrize("method", ["chefer", "grad_rollout", "attention_x_gradient"])
def test_methods_toward_a_target_name_it(mmattn, tiny, photo, tmp_path, method):
    out = tmp_path / "toward.svg"
    ran = mmattn("image", photo, "--model", tiny, "--json", "-", "-o", out, "--method", method, "--target", "7")
    (record,) = json.loads(ran.out)
    assert (record["method"], record["target"], record["query"]) == (method, "class 7", "class token")
    maps = library.attend(tiny, image=photo)
    seen = library.relevance(maps, method=method, target=7)
    assert np.array(record["values"]).flat[20] == pytest.approx(float(seen.values[0, 21]), rel=1e-4)
    ran = mmattn("image", photo, "--model", tiny, "--json", "-", "-o", out, "--method", method)
    (record,) = json.loads(ran.out)
    assert record["target"] == library.relevance(maps, method=method).target  # the top class
    assert library.overlay(seen).title == "toward class 7"
    assert f"{method} toward class 7" in library.overlay(seen).caption


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("chefer", "top")),
        (("--target", "7"), ("chefer", "class 7")),
        (("--query", "cls"), ("look", None)),
        (("--layer", "3"), ("look", None)),
        (("--head", "1"), ("look", None)),
        (("--method", "look"), ("look", None)),
    ],
)
def test_a_model_with_classes_is_read_toward_its_top_class_unless_raw_attention_is_asked_for(
    mmattn, tiny, photo, options, expected
):
    (record,) = json.loads(mmattn("image", photo, "--model", tiny, "--json", "-", *options).out)
    top = library.relevance(library.attend(tiny, image=photo)).target
    method, target = expected
    assert (record["method"], record["target"]) == (method, top if target == "top" else target)


def test_a_model_without_classes_shows_its_last_layer(mmattn, photo, tmp_path):
    name = tiny_model(tmp_path, classes=0)
    (record,) = json.loads(mmattn("image", photo, "--model", name, "--json", "-").out)
    assert (record["method"], record["target"]) == ("look", None)
    ran = mmattn("image", photo, "--model", name, "--json", "-", "--target", "7")
    assert (ran.code, ran.out) == (2, "")
    assert "features, not class logits" in ran.err


def test_what_cannot_be_read_toward_a_class_is_drawn_without_and_that_is_said(mmattn, photo, tmp_path):
    name = tiny_model(tmp_path, architecture="vit_dlittle_patch16_reg1_gap_256")
    ran = mmattn("image", photo, "--model", name, "-o", tmp_path / "seen.png", "--json", "-")
    assert ran.code == 0
    assert "Drawn with --method look instead" in ran.err
    assert json.loads(ran.out)[0]["method"] == "look"


def test_json_puts_every_value_at_its_box(mmattn, tiny, photo, tmp_path):
    file = tmp_path / "seen.json"
    assert mmattn("image", photo, "--model", tiny, "--json", file, "--method", "look").code == 0
    (record,) = json.loads(file.read_text())
    seen = library.look(library.attend(tiny, image=photo))
    values = np.array(record["values"])
    assert values.shape == (record["rows"], record["cols"]) == (14, 14)
    assert record["size_px"] == [451, 300]
    for (x0, y0, x1, y1), value in zip(record["boxes_px"], values.flat, strict=True):
        token = seen.axis.token_at(((x0 + x1) / 2, (y0 + y1) / 2))
        assert value == pytest.approx(float(seen.values[0, token]), rel=1e-5)
        assert seen.axis.place(token) == pytest.approx((x0, y0, x1, y1), abs=1e-3)
    hottest = record["boxes_px"][int(values.argmax())]
    assert record["peak_px"] == pytest.approx([(hottest[0] + hottest[2]) / 2, (hottest[1] + hottest[3]) / 2], abs=2e-3)


def test_folder_gives_one_file_each_and_names_the_bad_one_at_the_end(mmattn, tiny, album, tmp_path):
    out = tmp_path / "out"
    ran = mmattn("image", album, "-o", out, "--model", tiny, "--json", tmp_path / "all.json")
    assert ran.code == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png"]
    assert len(ran.err.strip().splitlines()) == 1
    assert "1 of 3 pictures could not be drawn; the other 2 are done." in ran.err
    assert "b.jpg" in ran.err
    assert [Path(record["input"]).name for record in json.loads((tmp_path / "all.json").read_text())] == [
        "a.png",
        "c.jpg",
    ]


def test_names_that_clash_get_a_suffix_and_it_is_said(mmattn, tiny, album, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "a.png").write_bytes((album / "a.png").read_bytes())
    out = tmp_path / "out"
    ran = mmattn("image", album / "a.png", twin / "a.png", "-o", out, "--model", tiny)
    assert ran.code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a-2.png", "a.png"]
    assert "a.png is taken" in ran.err


def test_a_photo_is_never_written_over(mmattn, tiny, album):
    before = (album / "a.png").read_bytes()
    assert mmattn("image", album / "a.png", "-o", album / "a.png", "--model", tiny).code == 2
    assert mmattn("image", album / "a.png", "-o", album, "--model", tiny).code == 0
    assert (album / "a.png").read_bytes() == before
    assert (album / "a-2.png").exists()


def test_patterns_and_formats(mmattn, tiny, album, tmp_path):
    ran = mmattn("image", f"{album}/[ac].*", "-o", tmp_path / "out", "--model", tiny, "--format", "webp")
    assert ran.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.webp", "c.webp"]


def test_sizes_reach_the_model(mmattn, tiny, photo, tmp_path):
    ran = mmattn("image", photo, "--model", tiny, "--size", "160", "--keep-aspect", "--json", "-")
    (record,) = json.loads(ran.out)
    assert (record["rows"], record["cols"]) == (10, 15)
    assert record["boxes_px"][-1][2:] == pytest.approx([451, 300], abs=1e-3)


def test_head_grid_has_a_tile_for_every_head(mmattn, tiny, album, tmp_path):
    ran = mmattn("image", album / "a.png", "-o", tmp_path / "grid.png", "--model", tiny, "--head-grid")
    one = mmattn("image", album / "a.png", "-o", tmp_path / "one.png", "--model", tiny, "--head-grid", "--layer", "3")
    assert (ran.code, one.code) == (0, 0)
    assert Image.open(tmp_path / "grid.png").height > 4 * Image.open(tmp_path / "one.png").height


def test_real_dinov2_looks_at_the_dogs(mmattn, tmp_path):
    real_weights("dinov2-small")
    ran = mmattn("image", catalog.photo_path("dogs"), "-o", tmp_path / "dogs.png", "--json", "-")
    (record,) = json.loads(ran.out)
    values, boxes = np.array(record["values"]).ravel(), np.array(record["boxes_px"])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    dogs = (x > 180) & (x < 450) & (y > 210) & (y < 640)
    assert record["model"] == "mmattn:dinov2-small"
    assert (record["rows"], record["cols"]) == (37, 37)
    assert values[dogs].sum() > 0.6 * values.sum()  # a quarter of what the model saw
    assert dogs[values.argmax()]

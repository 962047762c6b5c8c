"""Opening open_clip's models by name: folders, checkpoints, tags; what is said where one is not to be had."""

import fnmatch
import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from small_towers import word_pieces

import mmattn
from mmattn.adapters.clip.open_clip import adapter
from mmattn.errors import DownloadError, FormatError, InputError, NotFoundError

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "beside"},
    "custom_text": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as open_clip writes them for the hub, with a tokenizer of its own."""
    path, tokenizer = tmp_path_factory.mktemp("saved"), word_pieces()
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": len(tokenizer)}}
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    torch.manual_seed(0)
    given = {key: value for key, value in config.items() if key != "custom_text"}
    save_file(CustomTextCLIP(**given).state_dict(), str(path / "open_clip_model.safetensors"))
    tokenizer.save_pretrained(path)
    (path / "config.json").unlink(missing_ok=True)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "mine.safetensors"
    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-M-32-alt").state_dict(), str(path))
    return path


def test_a_folder_is_opened_with_its_transform_and_its_tokenizer(folder):
    maps = mmattn.attend(f"open_clip:local-dir:{folder}", image=PHOTO, text="The cat on the mat")
    assert maps.source.weights == folder.name
    assert [word.text for word in maps.select(stream="text")[0].query_axis.words()] == [
        "The",
        "cat",
        "on",
        "the",
        "mat",
    ]
    assert maps[0].key_axis.place(1) == pytest.approx((0, 0, 40, 22.5))  # squashed, as its config says
    assert maps.prepared.inputs[0].min() >= -1
    assert not maps.model.training
    assert len(mmattn.attend(f"open_clip:{folder}", text="a cat")) == 2


def test_what_the_catalog_found_is_opened_too(folder, checkpoint):
    assert isinstance(adapter.open("small", weights=folder).model, CustomTextCLIP)
    assert adapter.open("ViT-M-32-alt", weights=checkpoint).weights == "mine.safetensors"


def test_a_checkpoint_is_opened_by_its_architecture(checkpoint):
    maps = mmattn.attend(f"open_clip:ViT-M-32-alt@{checkpoint}", image=PHOTO, text="a cat")
    assert {layer.stream for layer in maps} == {"vision", "text"}
    with pytest.raises(FormatError, match="does not fit ViT-S-32"):
        adapter.open(f"ViT-S-32@{checkpoint}")


def test_pictures_are_prepared_as_all_weights_of_an_architecture_agree():
    from mmattn.adapters.clip.open_clip_open import _agreed

    assert _agreed("ViT-B-16-SigLIP")["resize_mode"] == "squash"
    assert _agreed("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert _agreed("ViT-M-32-alt") == {}


@pytest.mark.parametrize(
    ("name", "problem", "said"),
    [
        ("ViT-B-33/openai", NotFoundError, "ViT-B-32"),
        ("ViT-B-32/laion3b", NotFoundError, "laion2b_s34b_b79k"),
        ("ViT-B-32", NotFoundError, "without the tag"),
        ("ViT-B-32@", InputError, "no file after the @"),
        ("ViT-B-33@x.pt", NotFoundError, "no architecture"),
        ("ViT-B-32@not_there.pt", InputError, "no checkpoint"),
        ("local-dir:/not/there", NotFoundError, "open_clip_config.json"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name, problem, said):
    with pytest.raises(problem, match=said):
        adapter.open(name)


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "RN50/openai", "hf-hub:nobody/nothing"])
def test_weights_that_cannot_be_fetched_are_one_clear_error(name, monkeypatch):
    from mmattn.adapters.clip import open_clip_open

    def gone():
        raise OSError("no way there")

    monkeypatch.setattr(open_clip_open, "check_reachable", gone)
    monkeypatch.setattr(open_clip_open, "_cached", lambda config: False)
    with pytest.raises(DownloadError, match=r"no way there.*local file"):
        adapter.open(name)


def test_folders_that_lack_something_and_broken_files_are_told(folder, tmp_path):
    config = (folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(NotFoundError, match="no weights"):
        adapter.open(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="cannot be opened"):
        adapter.open(f"local-dir:{tmp_path}")
    with pytest.raises(FormatError, match="cannot be read as a checkpoint"):
        adapter.open(f"ViT-B-32@{tmp_path / 'open_clip_model.safetensors'}")


def test_families_name_what_there_is():
    names = [family.name.removeprefix("open_clip:") for family in adapter.models()]
    left = [one for one in open_clip.list_models() if not any(fnmatch.fnmatch(one, name) for name in names)]
    assert left == []

"""Opening two-tower models of transformers: folders, names on the hub, what is refused."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from small_sides import SIDED
from small_towers import MEMBERS, processor, towers

import mmattn
from mmattn.adapters.clip.transformers import adapter
from mmattn.adapters.clip.transformers_known import KNOWN, opens_config
from mmattn.adapters.clip.transformers_lxmert import LXMERTS
from mmattn.errors import DownloadError, InputError, ModelError

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)


def saved(folder, name):
    towers(name).save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["CLIP", "ChineseCLIP", "AltCLIP", "SigLIP 2", "AIMv2", "any two"])
def test_a_folder_opens_with_its_processor(tmp_path, name):
    maps = mmattn.attend(saved(tmp_path, name), image=PHOTO, text="A red cat")
    expected = mmattn.attend(towers(name), image=PHOTO, text="A red cat", processor=processor(name))
    for one, same in zip(maps, expected, strict=True):
        assert torch.allclose(one.weights(), same.weights(), atol=1e-6)
        assert one.key_axis.place(1) == same.key_axis.place(1)
    assert maps.source.weights == tmp_path.name


def test_a_model_that_names_its_folder_needs_no_processor(tmp_path):
    folder = saved(tmp_path, "CLIP")
    model = type(towers("CLIP")).from_pretrained(folder).eval()
    maps = mmattn.attend(model, image=PHOTO, text="A red cat")
    assert [word.text for word in maps.select(stream="text")[0].key_axis.words()] == ["A", "red", "cat"]


def test_a_folder_without_a_tokenizer_still_looks_at_pictures(tmp_path):
    towers("CLIP").save_pretrained(tmp_path)
    assert len(mmattn.attend(str(tmp_path), image=PHOTO)) == 2
    with pytest.raises(InputError, match="CLIPTokenizer knows no word"):
        mmattn.attend(str(tmp_path), text="a cat")


def test_classes_are_known_by_name_and_every_one_is_tested():
    assert {pair.cls for pair in (*MEMBERS.values(), *SIDED.values())} == set(KNOWN) - set(LXMERTS)  # tested apart
    for name in (
        "CLIPVisionModel",
        "CLIPTextModel",
        "BlipTextModel",
        "GroupViTModel",
        "ViltForImagesAndTextClassification",
        "VisualBertModel",
    ):
        assert not opens_config({"architectures": [name]})
    assert not opens_config({})
    assert not opens_config({"architectures": []})


def test_a_folder_of_another_class_names_capture(tmp_path):
    config = {"architectures": ["VisualBertModel"], "model_type": "visual_bert"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"VisualBertModel.*mmattn.capture"):
        mmattn.attend(str(tmp_path), image=PHOTO, text="a cat")
    with pytest.raises(ModelError, match=r"VisualBertModel.*mmattn.capture"):
        adapter.open(str(tmp_path))


def test_a_model_that_lacks_weights_is_not_opened(tmp_path):
    folder = saved(tmp_path, "CLIP")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of CLIPModel, such as visual_projection.weight"):
        mmattn.attend(folder, image=PHOTO)


def test_a_folder_that_cannot_be_read_says_so(tmp_path):
    folder = saved(tmp_path, "CLIP")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be opened"):
        mmattn.attend(folder, image=PHOTO)


def test_a_name_that_the_hub_does_not_give_says_what_to_do(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadError, match=r"hf:nobody/nothing could not be had .*pass a folder"):
        adapter.open("nobody/nothing")


def test_what_can_be_opened_is_listed():
    families = list(adapter.models())
    assert all(family.name == "hf:OWNER/NAME" for family in families)
    assert any("SigLIP 2" in family.what for family in families)

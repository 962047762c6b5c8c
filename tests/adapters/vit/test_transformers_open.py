"""Folders are opened by the class that their config names; what is wrong with one is said in a line."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from small_transformers import KINDS, PLAIN, member

import mmattn
from mmattn.adapters.vit.transformers import adapter
from mmattn.assets import __file__ as assets
from mmattn.errors import DownloadError, InputError, MmattnError, ModelError

PHOTO = assets.replace("__init__.py", "photos/dogs.jpg")


def saved(folder, model, processor=None):
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["ViT", "DINOv2 with registers", "Swin", "SegFormer", "SAM's encoder", "CLIP's tower"])
def test_a_folder_is_opened_by_its_name_and_gives_the_modules_own_maps(name, tmp_path):
    model = member(name)
    folder = saved(tmp_path, model)
    opened = mmattn.attend(folder, image=PHOTO)
    passed = mmattn.attend(model, image=PHOTO)
    assert opened.source.adapter == "transformers.vit"
    assert len(opened.layers) == KINDS[name].layers
    for one, other in zip(opened.layers, passed.layers, strict=True):
        assert torch.equal(one.weights(), other.weights())
        assert one.query_axis.places().tolist() == other.query_axis.places().tolist()


def test_labels_and_the_processor_come_with_the_model(tmp_path):
    model = hf.ViTForImageClassification(hf.ViTConfig(**PLAIN, id2label={0: "cat", 1: "dog", 2: "fig"}))
    processor = hf.DeiTImageProcessor(size={"height": 80, "width": 80}, crop_size={"height": 64, "width": 64})
    opened = adapter.open(saved(tmp_path, model, processor))
    assert opened.labels == ("cat", "dog", "fig")
    assert type(opened.processor).__name__ == "DeiTImageProcessor"
    assert opened.weights == tmp_path.name
    assert not opened.model.training
    maps = mmattn.attend(str(tmp_path), image=PHOTO)
    assert maps.source.preprocessing == "resized to 80 x 80 px, cropped to 64 x 64 px"
    assert adapter.open(saved(tmp_path, member("ViT, no head"))).labels is None


def test_a_saved_processor_that_cannot_be_read_is_not_replaced_by_another(tmp_path):
    model = hf.ViTForImageClassification(hf.ViTConfig(**PLAIN))
    folder = saved(tmp_path, model, hf.ViTImageProcessor(size={"height": 64, "width": 64}))
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(InputError, match="cannot be opened.*save_pretrained"):
        adapter.open(folder)


def test_an_mae_opened_by_name_hides_nothing(tmp_path):
    folder = saved(tmp_path, hf.ViTMAEModel(hf.ViTMAEConfig(**PLAIN)))
    assert json.loads((tmp_path / "config.json").read_text())["mask_ratio"] == 0.75
    assert len(mmattn.attend(folder, image=PHOTO)[0].query_axis) == 17


def test_a_pooler_may_be_missing_and_nothing_else(tmp_path):
    folder = saved(tmp_path, member("ViT, no head"))
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({key: value for key, value in whole.items() if "pooler" not in key}, file, metadata={"format": "pt"})
    assert adapter.open(folder)
    lacking = [key for key in whole if ".0." in key]
    save_file({key: value for key, value in whole.items() if key not in lacking}, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"lacks {len(lacking)} weights of ViTModel, such as .*\.0\..*Pass a complete"
    ):
        adapter.open(folder)


def test_weights_of_another_shape_are_refused_in_one_line(tmp_path):
    folder = saved(tmp_path, member("ViT, no head"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    with pytest.raises(InputError, match="cannot be opened") as raised:
        adapter.open(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [b"", b"not a checkpoint", None])
def test_broken_and_missing_weights_are_refused(broken, tmp_path):
    folder = saved(tmp_path, member("ViT, no head"))
    if broken is None:
        (tmp_path / "model.safetensors").unlink()
    else:
        (tmp_path / "model.safetensors").write_bytes(broken)
    with pytest.raises(MmattnError, match="cannot be opened.*save_pretrained") as raised:
        adapter.open(folder)
    assert "\n" not in str(raised.value)


def test_a_pickle_is_never_read(tmp_path):
    folder = saved(tmp_path, member("ViT, no head"))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        adapter.open(folder)


def test_a_model_of_another_kind_is_refused_by_its_class(tmp_path):
    folder = saved(tmp_path, hf.VideoMAEModel(hf.VideoMAEConfig(**PLAIN, num_frames=4)))
    with pytest.raises(ModelError, match=r"VideoMAEModel.*opens models that look at single pictures"):
        adapter.open(folder)
    with pytest.raises(ModelError, match="No adapter reads"):
        mmattn.attend(folder, image=PHOTO)


def test_a_name_that_the_hub_does_not_give_fails_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadError, match=r"hf:nobody/nothing could not be had .*pass a folder"):
        adapter.open("nobody/nothing")


def test_what_can_be_opened_is_listed():
    families = list(adapter.models())
    assert all(family.name == "hf:OWNER/NAME" for family in families)
    assert any("Swin" in family.what for family in families)

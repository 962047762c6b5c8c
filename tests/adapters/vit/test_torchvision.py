"""torchvision's classifiers: their weights' transforms, the sizes that they take, names and files."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_stages import of_torchvision
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

import mmattn
from mmattn import plugins
from mmattn.adapters.transforms import read_transform, run_transform
from mmattn.adapters.vit.pictures import Features
from mmattn.adapters.vit.torchvision import TorchvisionOptions, adapter
from mmattn.adapters.vit.torchvision_input import native_px, preset_of, sized
from mmattn.adapters.vit.torchvision_names import ATTENTIVE
from mmattn.assets import __file__ as assets
from mmattn.errors import DownloadError, FormatError, InputError, ModelError, NoAttentionError, NotFoundError
from mmattn.interception.protocol import MediaGiven
from mmattn.opening import open_model
from mmattn.readers import read_photo

WIDE = assets.replace("__init__.py", "photos/coffee.jpg")  # 600 x 400 px


def prepared(model, image=None, options=None, processor=None, **given):
    media = MediaGiven(image=None if image is None else read_photo(image), **given)
    return adapter.prepare(model, media, processor, options)


@pytest.mark.parametrize("name", ["vit", "swin", "swin v2", "maxvit"])
def test_it_claims_its_classes_and_reads_them(name):
    model = of_torchvision(name)
    assert plugins.claiming(model) == ("torchvision.vit", adapter)
    size = 112 if name == "maxvit" else 64
    maps = mmattn.attend(model, image=WIDE, options=TorchvisionOptions(size_px=size))
    given = prepared(model, WIDE, TorchvisionOptions(size_px=size)).inputs[0]
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(given)
    assert [layer.name for layer in maps.layers] == [call.module for call in recording.calls]
    assert maps.readout == ("cls" if name == "vit" else "mean")
    for layer in maps.layers:
        boxes = np.array([layer.key_axis.place(int(token)) for token in layer.key_axis.content])
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        assert (low >= (65, -1)).all()  # a middle square of 600 x 400 px
        assert (high <= (535, 401)).all()


def test_derived_classes_are_claimed_and_other_parts_of_torchvision_are_not():
    class Mine(VisionTransformer):
        pass

    assert adapter.claims(Mine.__new__(Mine))
    with torch.device("meta"):
        assert not adapter.claims(models.video.r3d_18())
        assert not adapter.claims(models.segmentation.fcn_resnet50(weights=None, weights_backbone=None))


def test_changing_a_cell_changes_the_row_that_the_axis_names():
    model, photo = of_torchvision("swin"), read_photo(WIDE)

    def first_layer(pixels):
        return mmattn.attend(model, image=pixels, options=TorchvisionOptions(size_px=64, crop=False)).layers[0]

    before = first_layer(photo.pixels)
    axis = before.query_axis
    for token in (0, 101, 255):
        x0, y0, x1, y1 = axis.place(token)
        changed = photo.pixels.copy()
        changed[round(y0) + 4 : round(y1) - 4, round(x0) + 4 : round(x1) - 4] ^= 255
        moved = (first_layer(changed).weights() - before.weights()).abs().sum(dim=(0, 2))
        assert int(moved.argmax()) == token


@pytest.mark.parametrize("name", ATTENTIVE)
def test_the_steps_of_a_preset_make_what_the_preset_makes(name):
    picture = Image.open(WIDE).convert("RGB")
    for weights in models.get_model_weights(name):
        preset = weights.transforms()
        steps = sized(preset, size_px=(preset.crop_size[0], preset.crop_size[0]), whole=False)
        assert torch.equal(run_transform(steps, picture), preset(picture))
        assert read_transform(preset, size_px=picture.size) == read_transform(steps, size_px=picture.size)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"])
def test_a_model_built_in_python_gets_the_transform_of_its_default_weights(name):
    with torch.device("meta"):
        model = models.get_model(name)
    preset, default = preset_of(model), models.get_model_weights(name).DEFAULT.transforms()
    assert (preset.crop_size, preset.resize_size) == (default.crop_size, default.resize_size)
    assert preset.interpolation == default.interpolation


def test_a_larger_vit_gets_the_transform_of_weights_of_its_size():
    with torch.device("meta"):
        model = models.vit_b_16(image_size=384, num_classes=3)
    assert preset_of(model).resize_size == [384]
    assert native_px(model) == (384, 384)
    strange = of_torchvision("vit")
    assert native_px(strange) == (64, 64)
    assert prepared(strange, WIDE).preprocessing == "resized to 109 x 73 px, cropped to 64 x 64 px"


def test_a_transform_of_the_user_cannot_be_told_a_size():
    preset = models.ViT_B_16_Weights.DEFAULT.transforms()
    with pytest.raises(InputError, match=r"size_px=96.*ImageClassification cannot be told"):
        prepared(of_torchvision("swin"), WIDE, TorchvisionOptions(size_px=96), processor=preset)


def test_a_transform_of_the_user_is_read():
    preset = models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1.transforms(crop_size=64, resize_size=80)
    made = prepared(of_torchvision("vit"), WIDE, processor=preset)
    assert made.preprocessing == "resized to 120 x 80 px, cropped to 64 x 64 px"
    assert torch.equal(made.inputs[0][0], preset(Image.open(WIDE).convert("RGB")))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vit", TorchvisionOptions(), (64, 64)),
        ("vit", TorchvisionOptions(size_px=96), "Expected 64 but got 96.*takes 64 x 64 px"),
        ("vit", TorchvisionOptions(keep_aspect=True), r"Leave the size \(and keep_aspect\) out"),
        ("swin", TorchvisionOptions(size_px=(90, 50)), (90, 50)),
        ("swin", TorchvisionOptions(size_px=64, keep_aspect=True), (96, 64)),
        ("swin v2", TorchvisionOptions(size_px=64, keep_aspect=True), (96, 64)),
        ("maxvit", TorchvisionOptions(size_px=100), "MaxVit cannot take inputs of 100 x 100 px.*takes 112 x 112 px"),
        ("maxvit", TorchvisionOptions(), (112, 112)),
    ],
)
def test_sizes_are_taken_or_refused_with_those_that_are(name, options, expected):
    model = of_torchvision(name)
    if isinstance(expected, tuple):
        made = prepared(model, WIDE, options)
        assert made.inputs[0].shape[2:] == expected[::-1]
        with torch.no_grad():
            made.run()
        return
    with pytest.raises(InputError, match=expected):
        prepared(model, WIDE, options)


def test_a_batch_of_photos_of_different_sizes_has_the_places_of_each():
    model, names = of_torchvision("swin"), [WIDE, WIDE.replace("coffee.jpg", "horse.png")]
    options = TorchvisionOptions(size_px=64)
    both = mmattn.attend(model, image=names, options=options)
    for index, name in enumerate(names):
        for layer, alone in zip(both.layers, mmattn.attend(model, image=name, options=options).layers, strict=True):
            own = layer.sample(index)
            assert torch.allclose(own.weights(), alone.weights(), atol=1e-5)
            assert own.key_axis == alone.key_axis


def test_a_convolutional_network_is_refused_before_it_runs():
    with pytest.raises(NoAttentionError, match="ResNet has no attention"):
        mmattn.attend(models.resnet18().eval(), image=WIDE)
    with pytest.raises(NoAttentionError, match="resnet50 has no attention"):
        open_model("torchvision:resnet50")


def test_a_class_score_is_a_logit_and_features_have_none():
    logits = prepared(of_torchvision("vit"), WIDE).run().detach()
    assert float(adapter.score(logits, 1)) == float(logits[0, 1])
    headless = of_torchvision("vit").__class__(
        image_size=32, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8
    )
    headless.heads = nn.Identity()
    output = prepared(headless.eval(), WIDE).run()
    assert isinstance(output, Features)
    with pytest.raises(ModelError, match="features, not class logits"):
        adapter.score(output, 1)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_a_file_opens_with_its_own_number_of_classes(name, tmp_path):
    torch.manual_seed(0)
    given = {"image_size": 96} if name == "vit_b_32" else {}
    model = models.get_model(name, num_classes=7, **given).eval()
    path = tmp_path / "mine.pth"
    torch.save(model.state_dict(), path)
    entry, _, opened = open_model(f"torchvision:{name}@{path}")
    assert (entry, opened.weights, opened.labels) == ("torchvision.vit", "mine.pth", None)
    picture = torch.rand(1, 3, *([96, 96] if given else [224, 224]))
    with torch.no_grad():
        assert torch.allclose(opened.model(picture), model(picture), atol=1e-5)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, str(path))
    with pytest.raises(FormatError, match="'other.safetensors' does not fit swin_t"):
        open_model(f"torchvision:swin_t@{path}")
    with pytest.raises(InputError, match="torchvision:NAME@FILE"):
        open_model("torchvision:swin_t@")
    with pytest.raises(InputError, match=r"There is no checkpoint.*torchvision:NAME@FILE"):
        open_model(f"torchvision:swin_t@{tmp_path / 'missing.pth'}")


def test_names_end_in_the_error_that_helps(monkeypatch):
    def unresolved(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    with pytest.raises(NotFoundError, match='no classifier "vit_b_61".*vit_b_16'):
        open_model("torchvision:vit_b_61")
    with pytest.raises(NotFoundError, match='no weights "MINE" for vit_b_16.*IMAGENET1K_SWAG_E2E_V1'):
        open_model("torchvision:vit_b_16.MINE")
    with pytest.raises(DownloadError, match=r"IMAGENET1K_V1 of torchvision's swin_t.*torchvision:swin_t@FILE"):
        open_model("torchvision:swin_t")


def test_the_families_name_every_classifier_with_token_attention():
    assert {family.name for family in adapter.models()} == {
        "torchvision:vit_*",
        "torchvision:swin_*",
        "torchvision:maxvit_*",
    }
    others = [name for name in models.list_models(module=models) if name not in ATTENTIVE]
    assert "resnet50" in others
    assert not [name for name in others if "former" in name or "vit" in name or "swin" in name]

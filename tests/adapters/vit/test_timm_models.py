"""timm's other models: who claims them, what sizes they take, where their attention lies in the picture."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_stages import staged
from timm.data import create_transform, resolve_model_data_config

import mmattn
from mmattn import plugins
from mmattn.adapters.vit.pictures import Features
from mmattn.adapters.vit.timm import TimmOptions
from mmattn.adapters.vit.timm_models import adapter
from mmattn.adapters.vit.timm_run import readout_of
from mmattn.assets import __file__ as assets
from mmattn.errors import InputError, ModelError, NoAttentionError
from mmattn.interception.protocol import LeavesOut, MediaGiven, TakesSizes
from mmattn.readers import read_photo

WIDE = assets.replace("__init__.py", "photos/coffee.jpg")  # 600 x 400 px


def prepared(model, image=None, options=None, **given):
    media = MediaGiven(image=None if image is None else read_photo(image), **given)
    return adapter.prepare(model, media, None, options)


@pytest.mark.parametrize("name", ["swin", "maxvit", "hiera", "pvt", "cait", "naflex"])
def test_it_reads_what_the_plain_adapter_does_not(name):
    model = staged(name)
    assert plugins.claiming(model) == ("timm.models", adapter)
    assert isinstance(adapter, LeavesOut)
    assert isinstance(adapter, TakesSizes)


def test_plain_models_stay_with_their_own_adapter_and_strangers_with_theirs():
    assert not adapter.claims(timm.create_model("test_vit"))
    assert not adapter.claims(torch.nn.TransformerEncoderLayer(8, 2))
    stranger = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4))
    stranger.pretrained_cfg = {"input_size": (3, 64, 64)}
    assert adapter.claimed_class(stranger) is torch.nn.Module  # whoever knows more of it comes first

    class Derived(type(staged("pvt"))):
        pass

    assert adapter.claimed_class(Derived.__new__(Derived)) is type(staged("pvt"))


@pytest.mark.parametrize("name", ["swin v2", "maxvit", "hiera", "pvt", "crossvit", "cait"])
def test_every_layer_lies_in_the_part_of_the_photo_that_the_model_saw(name):
    model = staged(name)
    maps = mmattn.attend(model, image=WIDE)
    assert maps.layers
    for layer in maps.layers:
        for axis in (layer.query_axis, layer.key_axis):
            if not len(axis.content):
                continue
            boxes = np.array([axis.place(int(token)) for token in axis.content])
            low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
            assert (low >= (99, -1)).all()  # the middle square of 600 x 400 px
            assert (high <= (501, 401)).all()


def test_the_tensor_is_that_of_timms_own_transform():
    model = staged("pvt")
    own = create_transform(**resolve_model_data_config(model), is_training=False)
    ours = prepared(model, WIDE).inputs[0][0]
    assert torch.equal(ours, own(Image.open(WIDE).convert("RGB")))


def test_changing_a_cell_moves_the_window_position_that_the_axis_names():
    model = staged("swin")
    photo = read_photo(WIDE)
    seen: list[torch.Tensor] = []  # what the first attention is given, [window, position, channel]

    def first_layer(pixels):
        watched = model.get_submodule("layers.0.blocks.0.attn")
        handle = watched.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        maps = mmattn.attend(model, image=pixels, options=TimmOptions(crop=False))
        handle.remove()
        return maps.layers[0]

    layer = first_layer(photo.pixels)
    axis = layer.query_axis
    index = layer.storage[0].query_index.flatten()
    assert len(axis.content) == 256
    before = seen[-1]
    for token in (0, 37, 255):
        x0, y0, x1, y1 = axis.place(token)
        changed = photo.pixels.copy()
        changed[round(y0) + 4 : round(y1) - 4, round(x0) + 4 : round(x1) - 4] ^= 255
        first_layer(changed)
        moved = (seen[-1] - before).abs().amax(dim=2).flatten()
        assert int(index[moved.argmax()]) == token


def test_a_batch_of_photos_of_different_sizes_has_the_places_of_each():
    model = staged("swin")
    names = [WIDE, WIDE.replace("coffee.jpg", "horse.png")]
    both = mmattn.attend(model, image=names)
    assert len(both.layers[0].key) == 2
    for index, name in enumerate(names):
        one = mmattn.attend(model, image=name)
        for layer, alone in zip(both.layers, one.layers, strict=True):
            own = layer.sample(index)
            assert torch.allclose(own.weights(), alone.weights(), atol=1e-5)
            assert own.key_axis == alone.key_axis


SIZES = [
    # layout, options, what comes out or what is said
    ("swin", TimmOptions(), (64, 64)),
    ("swin", TimmOptions(size_px=96), r"Input height \(96\).*takes 64 x 64 px.*set_input_size\(\(96, 96\)\)"),
    ("swin", TimmOptions(keep_aspect=True), r"Input width \(96\).*64 x 64 px.*set_input_size\(\(64, 96\)\)"),
    ("swin of any size", TimmOptions(size_px=64, keep_aspect=True), (96, 64)),
    ("swin of any size", TimmOptions(size_px=(80, 48)), (80, 48)),
    ("maxvit", TimmOptions(), (160, 160)),
    ("maxvit", TimmOptions(size_px=200), r"broadcast.*takes 160 x 160 px\. Leave the size \(and keep_aspect\) out\."),
    ("hiera", TimmOptions(), (64, 64)),
    ("hiera", TimmOptions(size_px=96), r'64 x 64 px.*create_model\("hiera_tiny_224", img_size=\(96, 96\)\)'),
    ("pvt", TimmOptions(size_px=64, keep_aspect=True), (96, 64)),
    ("pvt", TimmOptions(size_px=(70, 50)), (70, 50)),
    ("naflex", TimmOptions(size_px=64, keep_aspect=True), (96, 64)),
    ("naflex", TimmOptions(size_px=100), r"384 x 384 or 96 x 96 px|96 x 96 or 384 x 384 px"),
    ("cait", TimmOptions(size_px=80), "64 x 64 px"),
    ("xcit", TimmOptions(size_px=96, keep_aspect=True), (144, 96)),
    ("clip's resnet", TimmOptions(size_px=64, keep_aspect=True), (96, 64)),
]


@pytest.mark.parametrize(("name", "options", "expected"), SIZES)
def test_sizes_are_taken_or_refused_with_those_that_are(name, options, expected):
    model = staged(name)
    if isinstance(expected, tuple):
        width, height = expected
        made = prepared(model, WIDE, options)
        assert made.inputs[0].shape[2:] == (height, width)
        with torch.no_grad():
            made.run()
        return
    with pytest.raises(InputError, match=expected) as caught:
        prepared(model, WIDE, options)
    assert str(caught.value).startswith(f"{type(model).__name__} cannot take inputs of")


def test_a_size_that_only_the_real_forward_refuses_is_explained():
    with pytest.raises(InputError, match=r"cannot take inputs of 224 x 224 px.*out of bounds.*pass that as size_px"):
        mmattn.attend(staged("mvit"), image=WIDE)
    with pytest.raises(InputError, match=r"cannot take inputs of 96 x 96 px.*out of bounds.*img_size=\(96, 96\)"):
        mmattn.attend(staged("mvit"), image=WIDE, options=TimmOptions(size_px=96))


def test_the_users_own_tensors_are_held_to_the_same_sizes():
    assert prepared(staged("swin"), inputs=torch.rand(2, 3, 64, 64)).inputs[0].shape == (2, 3, 64, 64)
    with pytest.raises(InputError, match="takes 64 x 64 px"):
        prepared(staged("swin"), inputs=torch.rand(1, 3, 96, 64))
    with pytest.raises(InputError, match=r"shape \[1, 1, 64, 64\]"):
        prepared(staged("swin"), inputs=torch.rand(1, 1, 64, 64))
    with pytest.raises(InputError, match="does not fit into memory"):
        prepared(staged("naflex"), inputs=torch.zeros(1, 3, 2080, 2080))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet18", NoAttentionError, "ResNet has no attention.*gradient method"),
        ("test_convnext", NoAttentionError, "ConvNeXt has no attention"),
        ("mixer_s32_224", NoAttentionError, "MlpMixer has no attention"),
        ("mobilevitv2_050", NoAttentionError, r"ByobNet has no token attention: .*attn.*linear attention"),
        ("swiftformer_xs", NoAttentionError, "SwiftFormer has no token attention"),
        ("edgenext_xx_small", ModelError, "EdgeNeXt attends between channels"),
        ("lambda_resnet26t", ModelError, "LambdaLayer sums its keys up"),
    ],
)
def test_models_without_token_attention_are_refused_before_they_run(name, error, message):
    model = timm.create_model(name).eval()
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(error, match=message):
        prepared(model, WIDE)
    assert not ran


def test_channel_attention_beside_token_attention_is_left_out_with_the_reason():
    maps = mmattn.attend(staged("xcit"), image=WIDE)
    assert [layer.name for layer in maps.layers] == ["cls_attn_blocks.0.attn", "cls_attn_blocks.1.attn"]
    assert len(maps.left_out) == 2
    assert all("channels" in phrase for phrase in maps.left_out)


@pytest.mark.parametrize(
    ("name", "readout"),
    [
        ("swin", "mean"),
        ("maxvit", "mean"),
        ("hiera", "mean"),
        ("pvt", "mean"),
        ("mvit", "mean"),
        ("cait", "cls"),
        ("xcit", "cls"),
        ("pit", "cls"),
        ("crossvit", "cls"),
        ("naflex", "mean"),
        ("naflex, pooled", "pool"),
        ("clip's resnet", "pool"),
    ],
)
def test_the_readout_is_what_the_head_reads(name, readout):
    assert readout_of(staged(name)) == readout


def test_a_class_score_is_a_logit_and_features_have_none():
    made = prepared(staged("swin"), WIDE)
    logits = made.run().detach()
    assert float(adapter.score(logits, 2)) == float(logits[0, 2])
    headless = prepared(staged("swin", num_classes=0), WIDE).run()
    assert isinstance(headless, Features)
    with pytest.raises(ModelError, match="features, not class logits"):
        adapter.score(headless, 2)


def test_rollout_and_look_name_the_default_query():
    maps = mmattn.attend(staged("swin"), image=WIDE)
    assert "mean over" in mmattn.look(maps).labels[0]
    rolled = mmattn.rollout(maps)
    assert torch.isfinite(rolled.values).all()
    assert "class token" in mmattn.look(mmattn.attend(staged("cait"), image=WIDE)).labels[0]

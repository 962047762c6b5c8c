"""The doors, on real timm models: what comes back, for one input and a batch, and what is refused."""

import gc
import weakref

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import mmattn
from mmattn.errors import GoneError, InputError, ModelError, NoAttentionError, NotFoundError
from mmattn.schema.axes import PatchGrid, Positions
from mmattn.schema.media import Photo


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=96, depth=3, num_classes=5).eval()


@pytest.fixture
def picture():
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (120, 200, 3), dtype=np.uint8))


def transform_of(model):
    """The transform that timm makes for this model at its own size."""
    config = timm.data.resolve_data_config({"input_size": (3, 96, 96)}, model=model)
    return timm.data.create_transform(**config, is_training=False)


def test_attend_gives_layers_media_source_and_readout(model, picture):
    maps = mmattn.attend(model, image=picture)
    assert [layer.name for layer in maps] == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]
    assert isinstance(maps[0].query_axis, PatchGrid)
    assert maps[0].query_axis.size_px == (200, 120)
    assert isinstance(maps.media[0], Photo)
    assert maps.readout == "cls"
    assert maps.source.adapter == "timm.vit"
    assert {"mmattn", "torch", "timm"} <= set(maps.source.versions)
    assert max(layer.error for layer in maps) < 1e-5


def test_a_batch_gives_a_list_in_the_order_of_the_inputs(model, picture):
    other = picture.transpose(Image.Transpose.ROTATE_90)
    maps = mmattn.attend(model, image=[picture, other])
    assert maps.sample_count == 2
    both = mmattn.look(maps, layer=0)
    assert isinstance(both, list)
    for found, image in zip(both, (picture, other), strict=True):
        alone = mmattn.look(mmattn.attend(model, image=image), layer=0)
        assert torch.allclose(found.values, alone.values, atol=1e-6)
        assert found.axis.size_px == image.size
    assert len(mmattn.rollout(maps)) == 2
    assert len(mmattn.draw(maps)) == 2


def test_a_recording_is_lifted_when_the_image_is_the_one_that_ran(model, picture):
    transform = transform_of(model)
    with mmattn.capture(model) as recording, torch.no_grad():
        model(transform(picture)[None])
    assert isinstance(recording.maps[0].query_axis, Positions)
    lifted = mmattn.attend(recording, image=picture)
    direct = mmattn.attend(model, image=picture)
    assert torch.allclose(mmattn.rollout(lifted).values, mmattn.rollout(direct).values, atol=1e-6)
    assert lifted[0].query_axis == direct[0].query_axis
    with pytest.raises(InputError, match="recording saw another input"):
        mmattn.attend(recording, image=picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_a_recording_of_several_passes_asks_which(model, picture):
    transform = transform_of(model)
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with mmattn.capture(model) as recording, torch.no_grad():
        model(transform(picture)[None])
        model(transform(flipped)[None])
    with pytest.raises(InputError, match="pass_index=0 to 1"):
        mmattn.attend(recording, image=flipped)
    second = mmattn.attend(recording, image=flipped, pass_index=1)
    direct = mmattn.attend(model, image=flipped)
    assert torch.allclose(mmattn.look(second).values, mmattn.look(direct).values, atol=1e-6)
    with pytest.raises(NotFoundError, match="no pass 2"):
        mmattn.attend(recording, image=flipped, pass_index=2)


def test_a_model_that_the_user_passed_is_kept_weakly_and_its_end_is_said():
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    maps = mmattn.attend(own, inputs=torch.rand(1, 3, 32, 32))
    assert maps.model is own
    maps.rerun()
    alive = weakref.ref(own)
    del own
    gc.collect()
    assert alive() is None
    with pytest.raises(GoneError, match="model of these maps is gone"):
        _ = maps.model
    with pytest.raises(GoneError):
        maps.rerun()


def test_prepared_tensors_are_not_normalized_twice(model):
    x = torch.randn(1, 3, 96, 96)
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mmattn.attend(model, inputs=x)
    handle.remove()
    assert torch.equal(seen[0], x)


def test_wrapped_models_are_unwrapped(model):
    x = torch.rand(1, 3, 96, 96)
    plain = mmattn.look(mmattn.attend(model, inputs=x)).values
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert torch.allclose(mmattn.look(mmattn.attend(wrapped.eval(), inputs=x)).values, plain, atol=1e-6)


def test_training_mode_is_warned_about():
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).train()
    with pytest.warns(UserWarning, match="training mode"):
        mmattn.attend(own, inputs=torch.rand(1, 3, 32, 32))


def test_a_model_that_no_adapter_knows_is_pointed_to_capture():
    with pytest.raises(ModelError, match=r"mmattn\.capture\(model\)"):
        mmattn.attend(nn.TransformerEncoderLayer(8, 2), inputs=torch.rand(1, 3, 8))


def test_a_model_without_attention_is_refused_by_name():
    resnet = timm.create_model("resnet18").eval()
    with pytest.raises(NoAttentionError, match="ResNet"), mmattn.capture(resnet):
        resnet(torch.rand(1, 3, 64, 64))


def test_nothing_to_look_at_and_unknown_names_are_refused(model, picture):
    with pytest.raises(InputError, match="nothing to look at"):
        mmattn.attend(model)
    with pytest.raises(InputError, match="list of images is empty"):
        mmattn.attend(model, image=[])
    with pytest.raises(NotFoundError, match="has dinov2-small"):
        mmattn.attend("mmattn:dinov2-smal", image=picture)
    with pytest.raises(NotFoundError, match="no folder and does not say which library"):
        mmattn.attend("vit_small_patch14_dinov2", image=picture)
    with pytest.raises(NotFoundError, match='no library "tim"'):
        mmattn.attend("tim:vit_tiny_patch16_224", image=picture)
    with pytest.raises(InputError, match="cannot be drawn"):
        mmattn.draw(3)


def test_capture_keeps_windows_apart_on_positions():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2,), num_heads=(3,), embed_dim=12)
    with mmattn.capture(swin.eval()) as recording, torch.no_grad():
        swin(torch.rand(1, 3, 56, 56))
    layer = recording.maps[0]
    blocks, heads, queries, keys = layer.storage[0].weights().shape
    assert (blocks, heads, queries, keys) == (4, 3, 49, 49)
    assert len(layer.query_axis) == 4 * 49
    dense = layer.weights()
    assert torch.allclose(dense.sum(-1), torch.ones(3, 196), atol=1e-5)
    assert dense[:, :49, 49:].abs().max() == 0


def test_head_grid_has_a_tile_for_every_layer_and_head(model, picture):
    maps = mmattn.attend(model, image=picture)
    sheet = mmattn.head_grid(maps)
    assert len(sheet.panels) == 9
    assert "every layer and head" in sheet.caption
    assert len(mmattn.head_grid(maps, layers=[-1]).panels) == 3


def test_reprs_fit_one_screen(model, picture):
    maps = mmattn.attend(model, image=picture)
    for shown in (repr(maps), repr(mmattn.rollout(maps)), repr(mmattn.draw(maps))):
        assert len(shown.splitlines()) <= 20
        assert max(map(len, shown.splitlines())) <= 160

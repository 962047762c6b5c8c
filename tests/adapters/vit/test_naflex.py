"""Packed sequences of patches at their own aspect, as timm's NaFlex collator makes them."""

import numpy as np
import pytest
import timm
import torch
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import patchify_image
from torch import Tensor, nn

import mmattn
from mmattn.adapters.vit.naflex import unpacked
from mmattn.errors import InputError
from mmattn.schema.axes import PatchGrid


def collated(*images: Tensor, length: int, channels_last: bool = True) -> dict[str, Tensor]:
    """What timm's own cutting and collating make of images."""
    cut = [patchify_image(image, (16, 16), channels_last=channels_last) for image in images]
    names = ("patches", "patch_coord", "patch_valid")
    batch, _ = NaFlexCollator(length)([(dict(zip(names, one, strict=True)), 0) for one in cut])
    return batch


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("naflexvit_base_patch16_gap", embed_dim=48, num_heads=3, depth=2).eval()


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_survive_packing(channels_last: bool) -> None:
    images = torch.rand(2, 3, 48, 80)
    given = collated(*images, length=20, channels_last=channels_last)
    back, packing = unpacked(given, patch_px=(16, 16), channels_last=channels_last)
    assert torch.equal(back, images)
    again = packing.packed(back)
    valid = given["patch_valid"].bool()
    assert torch.equal(again["patches"][valid], given["patches"][valid])
    assert torch.equal(again["patch_coord"][valid], given["patch_coord"][valid])


def test_packed_patches_are_attended_at_their_places_and_padding_at_none(model: nn.Module) -> None:
    images = torch.rand(2, 3, 48, 80)
    packed = collated(*images, length=20)
    maps = mmattn.attend(model, inputs=packed)
    layer = maps.samples[1].layers[0]
    assert isinstance(layer.key_axis, PatchGrid)
    assert (layer.key_axis.rows, layer.key_axis.cols) == (3, 5)
    with torch.no_grad():
        plain = mmattn.attend(model, inputs=images)
    assert torch.allclose(
        layer.weights()[:, :, layer.key_axis.content],
        plain.samples[1].layers[0].weights()[:, :, plain.samples[1].layers[0].key_axis.content],
        atol=1e-5,
    )
    assert layer.key_axis.place(layer.key_axis.content[0]) == (0.0, 0.0, 16.0, 16.0)


def test_a_changed_patch_moves_the_key_that_the_axis_names(model: nn.Module) -> None:
    image = torch.rand(3, 48, 80)
    other = image.clone()
    other[:, 32:48, 16:32] = 0.0
    keys = []
    for one in (image, other):
        with mmattn.capture(model) as recording, torch.no_grad():
            model(collated(one, length=18))
        keys.append(recording.calls[0].k)
    moved = (keys[0] - keys[1]).abs().amax(dim=(0, 1, 3))
    layer = mmattn.attend(model, inputs=collated(image, length=18)).layers[0]
    token = layer.key_axis.token_at((20.0, 40.0))
    index = layer.storage[0].key_index
    position = token if index is None else int(np.flatnonzero(index[0].numpy() == token)[0])
    assert int(moved.argmax()) == position


def test_samples_of_several_aspects_are_refused(model: nn.Module) -> None:
    packed = collated(torch.rand(3, 48, 80), torch.rand(3, 80, 48), length=20)
    with pytest.raises(InputError, match="several aspects.*one by one"):
        mmattn.attend(model, inputs=packed)


def test_half_a_packing_is_refused(model: nn.Module) -> None:
    packed = collated(torch.rand(3, 48, 80), length=20)
    del packed["patch_valid"]
    with pytest.raises(InputError, match="lacks patch_valid"):
        mmattn.attend(model, inputs=packed)

"""DINOv2-small as transformers has it, with the weights of the catalog: the maps of the timm model, exactly."""

import re

import numpy as np
import pytest
import torch
import transformers as hf
from torchvision import transforms
from weights import real_weights

import mmattn
from mmattn.assets import __file__ as assets
from mmattn.opening import open_model

NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.o_proj": "attn.proj",
}


def renamed(theirs, state):
    """The tensor that transformers calls `theirs`, from timm's state."""
    name = re.sub(r"^encoder\.layer\.", "blocks.", theirs)
    for one, other in NAMES.items():
        name = name.replace(one, other)
    part = re.search(r"attention\.([qkv])_proj", name)
    if part is None:
        return state.get(name)
    joined = state[name.replace(part[0], "attn.qkv")]
    return joined.chunk(3)["qkv".index(part[1])]


@pytest.fixture(scope="module")
def models():
    real_weights("dinov2-small")
    timm_model = open_model("mmattn:dinov2-small")[2].model
    config = hf.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    model = hf.Dinov2Model(config).eval()
    state = {name: renamed(name, timm_model.state_dict()) for name in model.state_dict()}
    assert [name for name, tensor in state.items() if tensor is None] == ["embeddings.mask_token"]
    model.load_state_dict({name: tensor for name, tensor in state.items() if tensor is not None}, strict=False)
    return timm_model, model


def test_real_maps_are_those_of_timm(models):
    timm_model, model = models
    photo = assets.replace("__init__.py", "photos/dogs.jpg")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    side = 518  # at others the two libraries interpolate positions differently
    processor = hf.BitImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=mean, image_std=std
    )
    transform = transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    maps = mmattn.attend(model, image=photo, processor=processor)
    other = mmattn.attend(timm_model, image=photo, processor=transform)
    assert len(maps.layers) == len(other.layers) == 12
    for layer, same in zip(maps.layers[::5], other.layers[::5], strict=True):
        assert torch.allclose(layer.weights(heads=[0, 5]), same.weights(heads=[0, 5]), atol=1e-5)
        assert np.array_equal(layer.query_axis.places(), same.query_axis.places())

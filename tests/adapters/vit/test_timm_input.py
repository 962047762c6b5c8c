"""What the model gets equals timm's own transform, bit for bit, and its geometry is inverted."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer

from mmattn.adapters.vit.timm import TimmOptions, adapter
from mmattn.errors import InputError
from mmattn.interception.protocol import MediaGiven
from mmattn.readers import read_photo

CONFIGS = {
    "center": {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"},
    "center, all of it": {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
    "center, much cut": {"crop_pct": 0.6, "crop_mode": "center", "interpolation": "bilinear"},
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    "squash and cut": {"crop_pct": 0.875, "crop_mode": "squash", "interpolation": "lanczos"},
    "border": {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bicubic"},
    "border and cut": {"crop_pct": 0.8, "crop_mode": "border", "interpolation": "bilinear"},
    "not square": {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic", "input_size": (3, 48, 80)},
    "not square, border": {
        "crop_pct": 0.95,
        "crop_mode": "border",
        "interpolation": "bicubic",
        "input_size": (3, 80, 48),
    },
}
SIZES = [(200, 130), (130, 200), (7, 5), (64, 64), (1, 40), (1400, 1000), (301, 6)]


def model_with(config):
    size = config.get("input_size", (3, 64, 64))
    model = VisionTransformer(img_size=size[1:], patch_size=16, embed_dim=12, depth=1, num_heads=1, num_classes=2)
    model.pretrained_cfg = {"input_size": size, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), **config}
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_tensor_equals_timms_own_transform(name, size):
    model = model_with(CONFIGS[name])
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    own = create_transform(**resolve_model_data_config(model), is_training=False)
    prepared = adapter.prepare(model, MediaGiven(image=read_photo(pixels)), None, None)
    assert torch.equal(prepared.inputs[0], own(Image.fromarray(pixels))[None])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(200, 130), (130, 200), (30, 21), (640, 480)])
def test_painted_patch_is_found_at_the_token_whose_place_it_fills(name, size):
    model = model_with(CONFIGS[name])
    blank = np.zeros((size[1], size[0], 3), np.uint8)
    facts = adapter.prepare(model, MediaGiven(image=read_photo(blank)), None, None).facts
    axis = facts.layout.axis(facts.geometries[0])
    inside = [
        token
        for token in axis.content
        if min(axis.place(int(token))[:2]) >= 0
        and axis.place(int(token))[2] <= size[0]
        and axis.place(int(token))[3] <= size[1]
    ]
    for token in (inside[0], inside[-1]):
        x0, y0, x1, y1 = axis.place(int(token))
        high, low = np.maximum(np.round((x1, y1)), np.round((x0, y0)) + 1).astype(int), np.round((x0, y0)).astype(int)
        painted = blank.copy()
        painted[low[1] : high[1], low[0] : high[0]] = 255
        tensor = adapter.prepare(model, MediaGiven(image=read_photo(painted)), None, None).inputs[0][0]
        ground = adapter.prepare(model, MediaGiven(image=read_photo(blank)), None, None).inputs[0][0]
        change = (tensor - ground).clamp(min=0).mean(0)
        patches = change.unfold(0, 16, 16).unfold(1, 16, 16).sum(dim=(-1, -2)).flatten()
        assert int(patches.argmax()) == axis.cells[token]


def test_a_picture_too_thin_for_the_border_mode_is_refused_where_timm_crashes():
    model, pixels = model_with(CONFIGS["border"]), np.zeros((3, 501, 3), np.uint8)
    own = create_transform(**resolve_model_data_config(model), is_training=False)
    with pytest.raises(ValueError, match="must be > 0"):
        own(Image.fromarray(pixels))
    with pytest.raises(InputError, match="resized to 64 x 0 px"):
        adapter.prepare(model, MediaGiven(image=read_photo(pixels)), None, None)


def test_a_picture_of_one_row_and_one_of_fifty_megapixels():
    model = model_with(CONFIGS["center"])
    for size in ((50_000, 1), (1, 50_000), (8000, 6250)):
        pixels = np.full((size[1], size[0], 3), 90, np.uint8)
        prepared = adapter.prepare(model, MediaGiven(image=read_photo(pixels)), None, None)
        assert prepared.inputs[0].shape == (1, 3, 64, 64)
        assert float(prepared.inputs[0][0, 0].std()) < 1e-5


def test_preprocessing_is_said_in_one_phrase():
    model = model_with(CONFIGS["center"])
    photos = [read_photo(np.zeros((130, 200, 3), np.uint8)), read_photo(np.zeros((200, 130, 3), np.uint8))]
    one = adapter.prepare(model, MediaGiven(image=photos[0]), None, None)
    assert one.preprocessing == "resized to 109 x 71 px, cropped to 64 x 64 px"
    both = adapter.prepare(model, MediaGiven(image=photos), None, None)
    assert both.preprocessing == "each resized and cropped to 64 x 64 px"
    squeezed = adapter.prepare(model, MediaGiven(image=photos[0]), None, TimmOptions(crop=False))
    assert squeezed.preprocessing == "resized to 64 x 64 px"


def test_inputs_of_more_patches_than_fit_into_memory_are_refused():
    model = model_with(CONFIGS["center"])
    model.set_input_size(img_size=64)
    model.patch_embed.strict_img_size = False
    strip = read_photo(np.zeros((3, 2000, 3), np.uint8))
    whole = TimmOptions(keep_aspect=True, size_px=336)
    with pytest.raises(InputError, match=r"px has \d+ patches.*far wider than it is long.*smaller size_px"):
        adapter.prepare(model, MediaGiven(image=strip), None, whole)
    with pytest.raises(InputError, match=r"px has 40000 patches.*smaller size_px"):
        adapter.prepare(model, MediaGiven(image=strip), None, TimmOptions(size_px=3200))
    assert adapter.prepare(model, MediaGiven(image=strip), None, TimmOptions(keep_aspect=True, size_px=16)).inputs

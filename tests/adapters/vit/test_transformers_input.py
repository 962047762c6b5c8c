"""What the model gets equals its image processor, bit for bit, and what the processor did is inverted."""

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from small_transformers import PLAIN, member
from torchvision import transforms

from mmattn.adapters.vit.transformers import TransformersOptions, adapter
from mmattn.adapters.vit.transformers_input import photo_tensor, processor_of
from mmattn.adapters.vit.transformers_patches import images_of, patches_of
from mmattn.errors import InputError
from mmattn.schema.media import Photo

MODEL = member("ViT")

SQUARE = {"height": 96, "width": 80}
PROCESSORS = {
    "ViT": hf.ViTImageProcessor(size=SQUARE),
    "ViT, Pillow": hf.ViTImageProcessorPil(size=SQUARE),
    "ViT, nearest": hf.ViTImageProcessor(size=SQUARE, resample=Image.Resampling.NEAREST),
    "DeiT, cut": hf.DeiTImageProcessor(size={"height": 110, "width": 100}, crop_size=SQUARE),
    "BEiT": hf.BeitImageProcessor(size=SQUARE),
    "CLIP": hf.CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
    "CLIP, Pillow": hf.CLIPImageProcessorPil(size={"shortest_edge": 110}, crop_size={"height": 96, "width": 96}),
    "CLIP, cut larger than the picture": hf.CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 96, "width": 96}
    ),
    "DINOv2": hf.BitImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112}),
    "DINOv3": hf.DINOv3ViTImageProcessor(size=SQUARE),
    "ConvNeXT, cut by its share": hf.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.8),
    "ConvNeXT, squeezed": hf.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "PoolFormer": hf.PoolFormerImageProcessor(size={"shortest_edge": 96}, crop_size=SQUARE),
    "LeViT": hf.LevitImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
    "MobileViT, channels swapped": hf.MobileViTImageProcessor(
        size={"shortest_edge": 108}, crop_size={"height": 96, "width": 96}
    ),
    "SegFormer": hf.SegformerImageProcessor(size=SQUARE),
    "PVT": hf.PvtImageProcessor(size=SQUARE),
    "SigLIP": hf.SiglipImageProcessor(size=SQUARE),
    "SAM, padded": hf.SamImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}),
    "YOLOS, its own aspect": hf.YolosImageProcessor(size={"shortest_edge": 96, "longest_edge": 160}),
    "DPT, its own aspect": hf.DPTImageProcessor(size=SQUARE, keep_aspect_ratio=True, ensure_multiple_of=32),
    "DPT, padded": hf.DPTImageProcessor(size=SQUARE, do_pad=True, size_divisor=50),
    "Donut": hf.DonutImageProcessor(size=SQUARE),
    "GLPN, whole 32s": hf.GLPNImageProcessor(),
    "SAM of two stages": hf.Sam2ImageProcessor(size=SQUARE),
}
SIZES = [(200, 130), (130, 200), (64, 96), (1500, 1000), (641, 479)]


def picture(size, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def made(pixels, processor, *, model=MODEL, **options):
    return photo_tensor(Photo(pixels=pixels), model=model, processor=processor, options=TransformersOptions(**options))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_tensor_is_the_processors_own(name, size):
    pixels = picture(size)
    tensor, geometry = made(pixels, PROCESSORS[name])
    expected = PROCESSORS[name](images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(tensor[None], expected)
    assert geometry.model_px == (expected.shape[3], expected.shape[2])


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_a_spot_of_the_picture_is_found_where_the_geometry_says(name, size):
    processor = PROCESSORS[name]
    black = np.zeros((size[1], size[0], 3), np.uint8)
    ground, geometry = made(black, processor)
    scale_x, scale_y = 1 / geometry.to_input[0, 0], 1 / geometry.to_input[1, 1]
    half = np.ceil([4 / min(1, scale_x), 4 / min(1, scale_y)]).astype(int)
    for share in ((0.35, 0.4), (0.5, 0.5), (0.65, 0.55)):
        low = (np.array(share) * size).astype(int) - half
        high = low + 2 * half
        spotted = black.copy()
        spotted[low[1] : high[1], low[0] : high[0]] = 255
        light = (made(spotted, processor)[0] - ground).clamp(min=0).mean(0).double()
        rows, cols = (torch.arange(side) + 0.5 for side in light.shape)
        found = np.array([(light.sum(0) * cols).sum() / light.sum(), (light.sum(1) * rows).sum() / light.sum()])
        expected = geometry.to_model @ np.array([*(low + high) / 2, 1.0])
        assert np.abs(found - expected).max() <= 0.5, (found, expected, str(geometry))


@pytest.mark.parametrize("name", [name for name in PROCESSORS if not name.startswith(("GLPN", "DPT, its"))])
@pytest.mark.parametrize("size", [(7, 9), (301, 12), (5, 60)])
def test_tiny_and_thin_pictures_are_placed_or_refused(name, size):
    pixels = picture(size)
    try:
        tensor, geometry = made(pixels, PROCESSORS[name])
    except InputError:
        return
    assert geometry.model_px == (tensor.shape[2], tensor.shape[1])
    inside = geometry.to_model @ np.array([size[0] / 2, size[1] / 2, 1.0])
    assert np.abs(inside - np.array(geometry.model_px) / 2).max() <= (64 if "SAM, p" in name else 1.5)


def test_known_geometries():
    size = (640, 480)
    _, clip = made(picture(size), hf.CLIPImageProcessor())
    assert str(clip) == "resized to 298 x 224 px, cropped to 224 x 224 px"
    assert (clip.steps[1].left, clip.steps[1].top) == (37, 0)
    _, sam = made(picture(size), hf.SamImageProcessor())
    assert str(sam) == "resized to 1024 x 768 px, padded by 0, 0, 0, 256 px (left, top, right, bottom)"
    _, deit = made(picture(size), hf.DeiTImageProcessor())
    assert str(deit) == "resized to 256 x 256 px, cropped to 224 x 224 px"
    _, detr = made(picture(size), hf.YolosImageProcessor())
    assert str(detr) == "resized to 1056 x 800 px"


def test_a_processor_that_reflects_its_border_is_refused():
    with pytest.raises(InputError, match="ZoeDepthImageProcessor does more to a picture than resize, crop and pad"):
        made(picture((200, 130)), hf.ZoeDepthImageProcessor())
    assert made(picture((200, 130)), hf.ZoeDepthImageProcessor(do_pad=False))[1].steps


def test_pictures_that_a_processor_cannot_take_are_refused_in_its_name():
    with pytest.raises(InputError, match="GLPNImageProcessor cannot take the picture of 20 x 30 px"):
        made(picture((20, 30)), hf.GLPNImageProcessor())
    with pytest.raises(InputError, match="1 x 300 px is too thin for ViTImageProcessor"):
        made(picture((1, 300)), hf.ViTImageProcessor())
    with pytest.raises(InputError, match="40 x 40000 px is too thin for CLIPImageProcessor: far longer"):
        made(picture((40, 40_000)), hf.CLIPImageProcessor())


def test_processors_of_another_kind_are_refused():
    with pytest.raises(InputError, match="processor= is a int"):
        made(picture((64, 64)), 3)
    with pytest.raises(InputError, match=r"makes pixel_values \[1, 1, 3, 224, 224\] of one picture"):
        made(picture((64, 64)), hf.VideoMAEImageProcessor())


def test_a_transform_of_torchvision_is_taken():
    transform = transforms.Compose([transforms.Resize(80), transforms.CenterCrop(64), transforms.ToTensor()])
    pixels = picture((120, 90))
    tensor, geometry = made(pixels, transform)
    assert torch.equal(tensor, transform(Image.fromarray(pixels)))
    assert str(geometry) == "resized to 106 x 80 px, cropped to 64 x 64 px"
    with pytest.raises(InputError, match="cannot be told to Compose"):
        made(pixels, transform, size_px=32)


DEFAULTS = {
    "ViT": ("ViTImageProcessor", "resized to 64 x 64 px"),
    "DeiT": ("DeiTImageProcessor", "resized to 73 x 73 px, cropped to 64 x 64 px"),
    "DINOv2 with registers": ("BitImageProcessor", "resized to 96 x 64 px, cropped to 64 x 64 px"),
    "CLIP's tower": ("CLIPImageProcessor", "resized to 96 x 64 px, cropped to 64 x 64 px"),
    "SigLIP's tower": ("SiglipImageProcessor", "resized to 64 x 64 px"),
    "SAM's encoder": (
        "SamImageProcessor",
        "resized to 64 x 43 px, padded by 0, 0, 0, 21 px (left, top, right, bottom)",
    ),
    "Donut's Swin": (
        "DonutImageProcessor",
        "resized to 64 x 42 px, padded by 0, 11, 0, 11 px (left, top, right, bottom)",
    ),
    "CvT": ("ConvNextImageProcessor", "resized to 109 x 73 px, cropped to 64 x 64 px"),
    "SegFormer": ("SegformerImageProcessor", "resized to 512 x 512 px"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_without_a_processor_the_models_class_has_one_at_the_models_size(name):
    processor = processor_of(member(name))
    kind, phrase = DEFAULTS[name]
    assert type(processor).__name__ == kind
    assert str(made(picture((300, 200)), None, model=member(name))[1]) == phrase


def test_a_model_of_timm_inside_the_wrapper_brings_timms_transform():
    config = hf.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 64})
    model = hf.TimmWrapperForImageClassification(config).eval()
    tensor, geometry = made(picture((300, 200)), None, model=model)
    assert tensor.shape[1:] == geometry.model_px[::-1]
    assert "cropped to" in str(geometry)


def test_a_class_without_a_processor_says_so():
    model = hf.VitDetModel(
        hf.VitDetConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=64, patch_size=16)
    )
    with pytest.raises(InputError, match=r"no image processor for VitDetModel \(vitdet\).*Pass processor="):
        made(picture((64, 64)), None, model=model)


def test_a_picture_cut_into_patches_is_an_image_again():
    processor = hf.Siglip2ImageProcessor(max_num_patches=40, patch_size=8)
    tensor, geometry = made(picture((300, 200)), processor)
    assert (str(geometry), tensor.shape) == ("resized to 64 x 40 px", (3, 40, 64))
    encoded = processor(images=Image.fromarray(picture((300, 200))), return_tensors="pt")
    again = patches_of(tensor[None], patch_px=8)
    assert torch.equal(again["pixel_values"], encoded["pixel_values"])
    assert again["spatial_shapes"].tolist() == encoded["spatial_shapes"].tolist() == [[5, 8]]
    with pytest.raises(InputError, match="one by one"):
        images_of(processor(images=[picture((300, 200)), picture((200, 300))], return_tensors="pt"))
    with pytest.raises(InputError, match=r"for 7 x 7 patches"):
        images_of({"pixel_values": torch.zeros(1, 40, 192), "spatial_shapes": [[7, 7]]})


SQUEEZED = {
    "ViT": (64, 64),
    "DeiT": (64, 64),
    "CLIP's tower": (64, 64),
    "DINOv2": (64, 64),
    "MobileViT": (64, 64),
    "SegFormer": (512, 512),
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_the_whole_picture_is_seen_where_it_is_asked_for(name):
    pixels = picture((300, 200))
    _, squeezed = made(pixels, None, model=member(name), crop=False)
    width, height = SQUEEZED[name]
    assert str(squeezed) == f"resized to {width} x {height} px"
    _, kept = made(pixels, None, model=member(name), keep_aspect=True, size_px=64)
    assert str(kept) == "resized to 96 x 64 px"
    _, larger = made(pixels, None, model=member(name), size_px=128)
    assert larger.model_px == (128, 128)


def test_options_that_a_processor_cannot_be_told_are_refused():
    pixels = picture((300, 200))
    with pytest.raises(InputError, match="ConvNextImageProcessor cannot take the picture"):
        made(pixels, hf.ConvNextImageProcessor(size={"shortest_edge": 64}), crop=False)
    with pytest.raises(InputError, match="gives 288 x 192 px where 64 x 64 px were asked for"):
        made(pixels, hf.GLPNImageProcessor(), size_px=64)
    for wrong in ({"size_px": 0}, {"size_px": (0, 3)}, {"size_px": (32, 32), "keep_aspect": True}):
        with pytest.raises(InputError, match="is no size"):
            TransformersOptions(**wrong)
    assert adapter.image_options(size_px=96, keep_aspect=True) == TransformersOptions(size_px=96, keep_aspect=True)


def test_the_processor_saved_with_a_model_is_taken_before_the_one_of_its_class(tmp_path):
    hf.ViTModel(hf.ViTConfig(**PLAIN)).save_pretrained(tmp_path)
    hf.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    model = hf.ViTModel.from_pretrained(tmp_path)
    assert str(made(picture((144, 90)), None, model=model)[1]) == "resized to 115 x 72 px, cropped to 64 x 64 px"

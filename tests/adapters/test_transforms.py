"""A transform is read as steps: where a painted patch lands is where the geometry says."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio, TrimBorder
from timm.data.transforms_factory import create_transform
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from mmattn.adapters import transforms as module
from mmattn.adapters.transforms import read_transform, run_transform
from mmattn.errors import InputError

TAIL = [v1.ToTensor(), v1.Normalize([0.5] * 3, [0.5] * 3)]
V2_TAIL = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
SIZES = [(640, 480), (480, 640), (333, 1000), (50, 60), (1200, 90)]

CHAINS = {
    "short side": [v1.Resize(256), v1.CenterCrop(224), *TAIL],
    "short side, odd": [v1.Resize(249), v1.CenterCrop(224), *TAIL],
    "long side bounded": [v1.Resize(200, max_size=301), v1.CenterCrop((224, 320)), *TAIL],
    "squash": [v1.Resize((240, 256)), v1.CenterCrop((224, 240)), *TAIL],
    "padded crop": [v1.CenterCrop(700), v1.Resize((224, 224)), *TAIL],
    "pad": [v1.Pad((3, 9, 20, 1)), v1.Resize((224, 224)), *TAIL],
    "keep ratio": [ResizeKeepRatio((224, 224), longest=1.0), CenterCropOrPad(224), *TAIL],
    "keep ratio, between": [ResizeKeepRatio((180, 224), longest=0.3), CenterCropOrPad((224, 232)), *TAIL],
    "trim": [TrimBorder(7), v1.Resize(230), v1.CenterCrop(224), *TAIL],
    "v2": [v2.Resize(240, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop((224, 200)), *V2_TAIL],
    "v2 tensor first": [v2.ToImage(), v2.Pad([4, 6]), v2.Resize(240), v2.CenterCrop(224), *V2_TAIL[1:]],
    "preset": [ImageClassification(crop_size=208, resize_size=236)],
    "nested": [v1.Compose([v1.Resize(256), v1.Compose([v1.CenterCrop(224)])]), *TAIL],
}


def centroid(tensor):
    """Centre of mass of what is brighter than the ground, in continuous pixels."""
    mass = (tensor.mean(0) - tensor.mean(0).median()).clamp(min=0)
    rows, cols = torch.arange(mass.shape[0]) + 0.5, torch.arange(mass.shape[1]) + 0.5
    return float((mass.sum(0) * cols).sum() / mass.sum()), float((mass.sum(1) * rows).sum() / mass.sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_painted_patch_lands_where_the_geometry_says(name, size):
    transform = v1.Compose(CHAINS[name])
    geometry = read_transform(transform, size_px=size)
    model_box = np.array([geometry.to_input @ [x, y, 1.0] for x, y in ((0, 0), geometry.model_px)])
    low, high = np.clip(model_box, 0, size)
    start = low + (high - low) * (0.55, 0.3)  # off the middle, inside of what is seen
    extent = np.maximum((high - low) * 0.12, 2)
    x0, y0 = np.floor(start).astype(int)
    x1, y1 = np.minimum(np.ceil(start + extent).astype(int), size)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    tensor = run_transform(transform, Image.fromarray(pixels))
    assert (tensor.shape[2], tensor.shape[1]) == geometry.model_px
    expected = geometry.to_model @ [(x0 + x1) / 2, (y0 + y1) / 2, 1.0]
    assert np.abs(np.array(centroid(tensor)) - expected).max() <= 0.5


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_running_step_by_step_is_running_the_transform(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    transform = v1.Compose(CHAINS[name])
    assert torch.equal(run_transform(transform, image), torch.as_tensor(transform(image)))


@pytest.mark.parametrize("size", [(700, 2), (2, 700), (1, 1), (611, 5)])
@pytest.mark.parametrize("config", [{"crop_pct": 0.9}, {"input_size": (3, 96, 160)}, {"interpolation": "bilinear"}])
def test_elongated_picture_gives_the_same_numbers_without_the_whole(monkeypatch, size, config):
    transform = create_transform(**{"input_size": (3, 64, 64), "interpolation": "bicubic", **config})
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    whole = transform(image)
    monkeypatch.setattr(module, "LARGEST_PX", 200 * 200)
    assert torch.equal(run_transform(transform, image), whole)


def test_thin_picture_stays_small_in_memory():
    import tracemalloc

    transform = create_transform(input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.9)
    for size in ((60_000, 1), (1, 60_000)):
        image = Image.new("RGB", size, (10, 200, 90))
        tracemalloc.start()
        tensor = run_transform(transform, image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert tensor.shape == (3, 224, 224)
        assert float(tensor.std(dim=(1, 2)).max()) < 1e-5
        assert peak < 100e6


def test_thin_picture_that_is_not_cropped_is_refused():
    transform = v1.Compose([v1.Resize(248), *TAIL])
    with pytest.raises(InputError, match="too large to build"):
        run_transform(transform, Image.new("RGB", (60_000, 1)))


def test_unknown_random_and_subclassed_steps_are_named():
    class Tilted(v1.Resize):
        pass

    for step, name in (
        (v1.Lambda(lambda image: image), "Lambda"),
        (v1.RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (v1.RandomResizedCrop(224), "RandomResizedCrop"),
        (Tilted(224), "Tilted"),
    ):
        with pytest.raises(InputError, match=name):
            read_transform(v1.Compose([step, *TAIL]), size_px=(10, 10))
    with pytest.raises(InputError, match="random"):
        read_transform(ResizeKeepRatio(224, random_scale_prob=0.5), size_px=(10, 10))


def test_transform_that_gives_no_tensor_is_refused():
    with pytest.raises(InputError, match="ToTensor"):
        run_transform(v1.Compose([v1.Resize(32)]), Image.new("RGB", (40, 40)))

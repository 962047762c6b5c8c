"""What people hand in: pictures of any shape, batches of pairs, several pictures for a text, their own processors."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from small_towers import _clip_images, byte_pairs, processor, towers

import mmattn

TEXTS = ["a red cat on the mat", "the dog on the photo"]
WIDE = np.random.default_rng(0).integers(0, 255, (64, 160, 3), dtype=np.uint8)
TALL = np.random.default_rng(1).integers(0, 255, (192, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg={"width": 64, "heads": 2, "layers": 2}).eval()


def transform(mode):
    return image_transform_v2(PreprocessCfg(size=64, resize_mode=mode, interpolation="bilinear"), is_train=False)


def cases(clip):
    """Name, model, processor, and which part of a picture of this size the model sees."""
    middle = {(160, 64): (48, 0, 112, 64), (64, 192): (0, 64, 64, 128)}
    nearly = {(160, 64): (51.6, 3.6, 108.4, 60.4), (64, 192): (3.6, 67.6, 60.4, 124.4)}  # 64 of 72
    whole = {(160, 64): (0, 0, 160, 64), (64, 192): (0, 0, 64, 192)}
    return [
        ("open_clip", clip, None, middle),
        ("open_clip, squeezed", clip, (transform("squash"), open_clip.get_tokenizer("ViT-B-32")), whole),
        ("open_clip, padded", clip, (transform("longest"), open_clip.get_tokenizer("ViT-B-32")), whole),
        ("transformers, cut", towers("CLIP"), processor("CLIP"), nearly),
        ("transformers, squeezed", towers("SigLIP"), processor("SigLIP"), whole),
    ]


@pytest.mark.parametrize("photo", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("number", range(5))
def test_a_picture_that_is_not_square_has_its_patches_where_the_model_looked(number, photo, clip):
    name, model, made, expected = cases(clip)[number]
    size = (photo.shape[1], photo.shape[0])
    found = mmattn.match(model, photo, texts=TEXTS, processor=made, steps=1)
    axis = found.relevances[0].axis
    assert axis.size_px == size
    assert axis.seen_box() == pytest.approx(expected[size], abs=0.6), name
    maps = mmattn.attend(model, image=photo, text=TEXTS[0], processor=made)
    assert maps.select(stream="vision")[-1].key_axis.places() == pytest.approx(axis.places())
    width, height = mmattn.links(found.relevances[0], focus="cat").image().size
    assert (width > height) == (photo is WIDE)


@pytest.mark.parametrize("number", [0, 3, 4])
def test_a_batch_of_pairs_is_its_pairs_one_by_one(number, clip):
    _, model, made, _ = cases(clip)[number]
    maps = mmattn.attend(model, image=[WIDE, TALL], text=TEXTS, processor=made)
    assert maps.sample_count == 2
    for index, (photo, text) in enumerate(zip((WIDE, TALL), TEXTS, strict=True)):
        alone = mmattn.attend(model, image=photo, text=text, processor=made)
        for stream in ("vision", "text"):
            ours, theirs = maps.samples[index].select(stream=stream)[-1], alone.select(stream=stream)[-1]
            _, rows, columns = theirs.weights().shape  # a batch may be padded
            assert torch.allclose(ours.weights()[:, :rows, :columns], theirs.weights(), atol=1e-5)
        grids = [one.select(stream="vision")[-1].key_axis for one in (maps.samples[index], alone)]
        assert grids[0].places() == pytest.approx(grids[1].places())


@pytest.mark.parametrize("number", [0, 3])
def test_several_pictures_stand_for_one_text_each(number, clip):
    _, model, made, _ = cases(clip)[number]
    found = mmattn.match(model, [WIDE, TALL], texts=TEXTS, processor=made, method="gradeclip")
    for one, photo in zip(found, (WIDE, TALL), strict=True):
        alone = mmattn.match(model, photo, texts=TEXTS, processor=made, method="gradeclip")
        assert torch.allclose(one.scores, alone.scores, atol=1e-4)
        assert torch.allclose(one.relevances[1].values, alone.relevances[1].values, atol=1e-5)
        assert one.relevances[0].axis.size_px == (photo.shape[1], photo.shape[0])
    maps = mmattn.attend(model, image=[WIDE, TALL], text=TEXTS[0], processor=made)
    assert maps.sample_count == 2
    assert [one.select(stream="vision")[-1].key_axis.size_px for one in maps.samples] == [(160, 64), (64, 192)]


def test_a_processor_of_ones_own_is_what_the_model_sees(clip):
    """Scores are the model's own on what that processor makes, in both libraries."""
    import transformers as hf
    from PIL import Image

    squeezing, words = transform("squash"), open_clip.get_tokenizer("ViT-B-32")
    found = mmattn.match(clip, WIDE, texts=TEXTS, processor=(squeezing, words), method="similarity")
    with torch.no_grad():
        image, text, scale = clip(squeezing(Image.fromarray(WIDE))[None], words(TEXTS))
    assert torch.allclose(found.scores, scale * (image @ text.T)[0], atol=1e-4)
    assert not torch.allclose(
        found.scores, mmattn.match(clip, WIDE, texts=TEXTS, method="similarity").scores, atol=1e-3
    )
    model = towers("CLIP")
    plain = hf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, image_mean=[0.5] * 3)
    for images in (plain, _clip_images()):
        own = hf.CLIPProcessor(images, byte_pairs())
        found = mmattn.match(model, WIDE, texts=TEXTS, processor=own, method="similarity")
        given = own(text=TEXTS, images=[WIDE], padding=True, return_tensors="pt")
        with torch.no_grad():
            assert torch.allclose(found.scores, model(**given).logits_per_image[0], atol=1e-3)

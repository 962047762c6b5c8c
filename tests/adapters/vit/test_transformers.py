"""Vision models of transformers: claims, maps equal to the eager model's own softmaxes, readout, refusals."""

import copy

import numpy as np
import pytest
import torch
import transformers as hf
from small_transformers import KINDS, PLAIN, member
from written_out import SoftmaxLog

import mmattn
from mmattn.adapters.vit.transformers import TransformersOptions, adapter, readout_of
from mmattn.adapters.vit.transformers_open import opens_config
from mmattn.errors import GoneError, InputError, ModelError, NoAttentionError
from mmattn.interception.protocol import MediaGiven
from mmattn.readers import read_photo

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)


def eager_twin(model):
    """The same weights, with the library's own plain softmaxes."""
    twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("name", KINDS)
def test_weights_equal_those_of_the_eager_model(name):
    model = member(name)
    maps = mmattn.attend(model, image=PHOTO)
    twin = eager_twin(model)
    prepared = adapter.prepare(twin, MediaGiven(image=read_photo(PHOTO)), None, None)
    with torch.no_grad(), SoftmaxLog() as log:
        prepared.run()
    pools = 1 if KINDS[name].readout == "pool" else 0  # torch's own attention layer, fused also here
    assert len(log.results) + pools == len(maps.layers) == KINDS[name].layers
    for layer, expected in zip(maps.layers, log.results, strict=False):
        (storage,) = layer.storages
        found = storage.weights()
        ordered = expected.transpose(1, 2) if expected.dim() == 5 else expected  # Hiera: heads before windows
        assert found.numel() == ordered.numel()
        assert torch.allclose(found, ordered.reshape(found.shape), atol=1e-5), layer.name
        assert layer.error < 1e-4


def test_a_pool_has_the_weights_of_torchs_own_layer():
    model = member("SigLIP's tower")
    maps = mmattn.attend(model, image=PHOTO)
    tensor = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO)), None, None).inputs[0]
    with torch.no_grad():
        hidden = model(tensor).last_hidden_state
        head = model.head
        _, expected = head.attention(head.probe, hidden, hidden, average_attn_weights=False)
    assert torch.allclose(maps[-1].weights(), expected[0], atol=1e-5)
    assert maps[-1].kind == "cross"


def test_patches_of_their_own_aspect_give_what_the_padded_ones_give():
    model = member("SigLIP 2's tower")
    processor = hf.Siglip2ImageProcessor(max_num_patches=16, patch_size=16)
    encoded = processor(images=PHOTO, return_tensors="pt")
    rows, cols = encoded["spatial_shapes"][0].tolist()
    assert rows * cols < 16
    maps = mmattn.attend(model, image=PHOTO)
    axis = maps[0].query_axis
    assert (axis.rows, axis.cols) == (rows, cols)
    assert axis.place(0) == pytest.approx((0, 0, 90 / cols, 120 / rows))
    with mmattn.capture(model) as recording, torch.no_grad():
        padded = model(**encoded)
    assert torch.allclose(maps.rerun().pooler_output, padded.pooler_output, atol=1e-5)
    with_padding = recording.maps[0].weights()[:, : rows * cols, : rows * cols]
    assert torch.allclose(maps[0].weights(), with_padding, atol=1e-5)
    assert torch.equal(mmattn.attend(model, inputs=encoded)[0].weights(), maps[0].weights())


def test_an_mae_that_hides_nothing_shuffles_nothing():
    model = member("MAE")
    maps = mmattn.attend(model, image=PHOTO)
    again = mmattn.attend(model, image=PHOTO)
    assert torch.equal(maps[1].weights(), again[1].weights())
    tensor = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO)), None, None).inputs[0]
    with torch.no_grad():
        patches = model.embeddings.patch_embeddings(tensor) + model.embeddings.position_embeddings[:, 1:]
        keys = model.layers[0].attention.k_proj(model.layers[0].layernorm_before(patches))
        with mmattn.capture(model) as recording:
            model(tensor, noise=torch.arange(16).float()[None])
    heads = keys.unflatten(-1, (4, -1)).transpose(1, 2)
    assert torch.allclose(recording.calls[0].k[:, :, 1:], heads, atol=1e-5)
    assert torch.equal(recording.maps[0].weights(), maps[0].weights())
    with mmattn.capture(model) as shuffled, torch.no_grad():
        model(tensor)
    with pytest.raises(InputError, match="saw 1 tensors and this input gives 2"):
        mmattn.attend(shuffled, image=PHOTO)


@pytest.mark.parametrize("name", KINDS)
def test_layers_have_axes_and_the_readout_is_known(name):
    kind = KINDS[name]
    maps = mmattn.attend(member(name), image=PHOTO)
    assert maps.readout == kind.readout
    assert len(maps.layers[-1].query_axis) == kind.tokens
    assert not maps.left_out
    for layer in maps.layers:
        weights = layer.weights()
        assert weights.shape[1:] == (len(layer.query_axis), len(layer.key_axis))
        assert float((weights.sum(-1) - 1).abs().max()) < 1e-4


def test_a_class_token_is_the_first_token_and_patches_follow_row_by_row():
    axis = mmattn.attend(member("DINOv3"), image=PHOTO)[0].query_axis
    assert axis.roles == ("cls", "register", "register", *["content"] * 16)
    assert axis.place(3) == pytest.approx((0, 0, 90 / 4, 120 / 4))
    assert axis.place(18) == pytest.approx((3 * 90 / 4, 3 * 120 / 4, 90, 120))


def test_a_batch_equals_its_pictures_one_by_one():
    other = PHOTO[::-1, :80].copy()
    model = member("Swin")
    both = mmattn.attend(model, image=[PHOTO, other])
    for sample, photo in zip(both.samples, (PHOTO, other), strict=True):
        alone = mmattn.attend(model, image=photo)
        for one, same in zip(sample.layers, alone.layers, strict=True):
            assert torch.allclose(one.weights(), same.weights(), atol=1e-5)
            assert one.query_axis.place(0) == same.query_axis.place(0)


OURS = [
    "AlignVisionModel",
    "Aimv2VisionModel",
    "BeitForSemanticSegmentation",
    "Blip2VisionModel",
    "CLIPForImageClassification",
    "CLIPVisionModelWithProjection",
    "DepthAnythingForDepthEstimation",
    "Dinov2Backbone",
    "HieraForPreTraining",
    "IJepaModel",
    "PixioModel",
    "SamHQVisionModel",
    "Sam2VisionModel",
    "SegformerForImageClassification",
    "SiglipForImageClassification",
    "SwinBackbone",
    "TimmWrapperModel",
    "UperNetForSemanticSegmentation",
    "ViTMAEForPreTraining",
    "VitPoseForPoseEstimation",
    "YolosModel",
]
OTHERS = [
    "BertModel",
    "CLIPModel",
    "CLIPTextModel",
    "BlipForConditionalGeneration",
    "Mask2FormerModel",
    "SamModel",
    "SiglipModel",
    "TimesformerModel",
    "VideoMAEForVideoClassification",
    "ViltModel",
    "VisionEncoderDecoderModel",
    "VivitModel",
    "VJEPA2Model",
    "Qwen2VLModel",
    "WhisperModel",
]


@pytest.mark.parametrize("name", OURS)
def test_models_of_single_pictures_are_claimed(name):
    assert opens_config({"architectures": [name]})


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_words_sounds_frames_and_queries_are_left_to_others(name):
    assert not opens_config({"architectures": [name]})


@pytest.mark.parametrize(
    "config",
    [{}, {"architectures": None}, {"architectures": []}, {"architectures": ["os"]}, {"architectures": ["a b"]}],
)
def test_configs_that_name_no_class_are_not_opened(config):
    assert not opens_config(config)


def test_a_score_is_the_logit_of_a_class():
    model = member("ViT")
    prepared = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO)), None, None)
    output = prepared.run()
    assert adapter.score(output, 1) == output.logits[0, 1]
    assert adapter.score(output, None) == output.logits.max()
    with pytest.raises(InputError, match="no class 2: this model has 2 classes"):
        adapter.score(output, 2)


@pytest.mark.parametrize("name", ["ViT, no head", "YOLOS", "DPT", "SegFormer"])
def test_a_target_needs_a_classifier(name):
    model = member(name)
    prepared = adapter.prepare(model, MediaGiven(image=read_photo(PHOTO)), None, None)
    with pytest.raises(ModelError, match="a class target has nothing to point at"):
        adapter.score(prepared.run(), 0)


def test_masks_drawn_at_random_are_refused():
    model = hf.ViTMAEModel(hf.ViTMAEConfig(**PLAIN)).eval()
    with pytest.raises(ModelError, match=r"hides 75% of the patches at random.*mask_ratio=0\.0"):
        mmattn.attend(model, image=PHOTO)
    config = copy.deepcopy(member("Hiera").config)
    assert config.mask_ratio == 0.6
    base = hf.HieraModel(config).eval()
    assert mmattn.attend(base, image=PHOTO).layers
    masking = hf.HieraModel(config, is_mae=True).eval()
    with pytest.raises(ModelError, match=r"HieraModel hides 60% of the patches"):
        mmattn.attend(masking, image=PHOTO)


def test_networks_without_attention_say_so():
    model = hf.ConvNextModel(hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 8], num_stages=2)).eval()
    with pytest.raises(NoAttentionError, match="No attention was seen in ConvNextModel"):
        mmattn.attend(model, image=PHOTO)


@pytest.mark.parametrize("given", [{"text": "a dog"}, {"audio": np.zeros(10)}, {"image": PHOTO, "text": "a dog"}])
def test_other_modalities_are_refused(given):
    with pytest.raises(InputError, match="It looks at pictures"):
        mmattn.attend(member("ViT"), **given)


def test_another_size_is_taken_where_it_is_asked_for():
    model = member("ViT")
    larger = mmattn.attend(model, image=PHOTO, options=TransformersOptions(size_px=96))
    assert len(larger[0].query_axis) == 37
    whole = mmattn.attend(model, image=PHOTO, options=TransformersOptions(keep_aspect=True))
    assert (whole[0].query_axis.rows, whole[0].query_axis.cols) == (5, 4)
    with pytest.raises(InputError, match=r"cannot take inputs of 96 x 96 px.*made for 64 x 64 px.*size_px"):
        mmattn.attend(model, inputs=torch.zeros(1, 3, 96, 96))


def test_given_pixel_values_are_never_normalized_twice():
    model = member("ViT")
    processor = hf.ViTImageProcessor(size={"height": 64, "width": 64})
    given = processor(images=PHOTO, return_tensors="pt")
    maps = mmattn.attend(model, inputs=given)
    assert torch.equal(maps[0].weights(), mmattn.attend(model, inputs=given["pixel_values"])[0].weights())
    assert maps[0].query_axis.place(1) == (0, 0, 16, 16)
    both = mmattn.attend(model, inputs=given, image=PHOTO)
    assert both[0].query_axis.place(1) == pytest.approx((0, 0, 90 / 4, 120 / 4))
    with pytest.raises(InputError, match="not what the processor makes of the picture"):
        mmattn.attend(model, inputs=given["pixel_values"] + 1, image=PHOTO)
    with pytest.raises(InputError, match="bool_masked_pos, pixel_values.*on pixel_values alone"):
        mmattn.attend(member("ViT, no head"), inputs={"bool_masked_pos": torch.zeros(1, 16), **given})


def test_half_precision_and_a_recording():
    model = copy.deepcopy(member("DINOv2")).to(torch.bfloat16)
    maps = mmattn.attend(model, image=PHOTO)
    assert maps[0].weights().shape == (4, 17, 17)
    model = member("DINOv2")
    processor = hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    with mmattn.capture(model) as recording, torch.no_grad():
        model(**processor(images=PHOTO, return_tensors="pt"))
    again = mmattn.attend(recording, image=PHOTO, processor=processor)
    assert torch.equal(again[0].weights(), mmattn.attend(model, image=PHOTO)[0].weights())


def test_maps_do_not_keep_the_model_alive():
    torch.manual_seed(0)
    model = hf.ViTModel(hf.ViTConfig(**PLAIN)).eval()
    maps = mmattn.attend(model, image=PHOTO)
    del model
    with pytest.raises(GoneError, match="was deleted"):
        maps.rerun()


READ = {
    "ViTForImageClassification": ("ViTConfig", "cls"),
    "DeiTForImageClassification": ("DeiTConfig", "cls"),
    "BeitForImageClassification": ("BeitConfig", "mean"),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", "mean"),
    "IJepaForImageClassification": ("IJepaConfig", "mean"),
    "ViTMSNForImageClassification": ("ViTMSNConfig", "cls"),
    "CLIPForImageClassification": ("CLIPConfig", "mean"),
    "MetaClip2ForImageClassification": ("MetaClip2Config", "mean"),
    "SiglipForImageClassification": ("SiglipConfig", "mean"),
}


@pytest.mark.parametrize("name", READ)
def test_the_readout_is_what_the_logits_depend_on(name):
    config, readout = READ[name]
    towers = {"text_config": {"hidden_size": 32, "num_hidden_layers": 1}, "vision_config": PLAIN}
    given = towers if config in ("CLIPConfig", "MetaClip2Config", "SiglipConfig") else PLAIN
    torch.manual_seed(0)
    model = getattr(hf, name)(getattr(hf, config)(**given)).eval()
    assert readout_of(model) == readout
    assert len(mmattn.attend(model, image=PHOTO)[0].query_axis.content) == 16
    output = model(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    (gradient,) = torch.autograd.grad(output.logits[0, 0], output.hidden_states[-1])
    read = gradient[0].abs().sum(-1) > 0
    assert read.nonzero().flatten().tolist() == ([0] if readout == "cls" else list(range(len(read) - 16, len(read))))


def test_the_readout_of_other_heads():
    beit = hf.BeitForImageClassification(hf.BeitConfig(**PLAIN, use_mean_pooling=False))
    assert readout_of(beit) == "cls"
    assert readout_of(hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**PLAIN, use_head=True))) == "pool"
    assert readout_of(hf.SiglipVisionModel(hf.SiglipVisionConfig(**PLAIN, vision_use_head=False))) == ""
    assert (
        readout_of(hf.SwinBackbone(hf.SwinConfig(image_size=64, window_size=4, depths=[1, 1], num_heads=[2, 2]))) == ""
    )
    timm = hf.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 1})
    assert readout_of(hf.TimmWrapperForImageClassification(timm)) == "cls"

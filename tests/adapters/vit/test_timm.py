"""timm's plain vision transformers: weights are the model's own, tokens stand where the axis says."""

import copy
import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_vits import FAMILIES, model_of, vit
from torch.overrides import TorchFunctionMode

import mmattn
from mmattn.adapters.vit.pictures import Features
from mmattn.adapters.vit.timm import TimmOptions, adapter
from mmattn.errors import GoneError, InputError, ModelError
from mmattn.interception.protocol import Adapter, MediaGiven
from mmattn.readers import read_photo

LEAST_ERROR = 1e-5


def noise(width=120, height=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class SeenSoftmax(TorchFunctionMode):
    """What every softmax of an unfused model gave, in order."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax":
            self.results.append(result.detach())
        return result


def reference_weights(model, tensor):
    """The weights of timm's own unfused path, `[sample, head, query, key]` a layer."""
    plain = copy.deepcopy(model)
    lambdas = []
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "_compute_lambda"):
            lambdas.append(module._compute_lambda().detach())
    seen = SeenSoftmax()
    with torch.no_grad(), seen:
        plain(tensor)
    assert seen.results, "no softmax ran: the reference is none"
    if lambdas:
        halves = [weights.unflatten(1, (-1, 2)) for weights in seen.results]
        return [half[:, :, 0] - factor * half[:, :, 1] for half, factor in zip(halves, lambdas, strict=True)]
    return seen.results


def prepared_tensor(model, photo, options=None):
    return adapter.prepare(model, MediaGiven(image=photo), None, options).inputs[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_timms_own_unfused_path(name):
    model = model_of(name)
    photos = [read_photo(noise(seed=seed)) for seed in (1, 2)]
    maps = mmattn.attend(model, image=photos)
    batch = torch.cat([prepared_tensor(model, photo) for photo in photos])
    expected = reference_weights(model, batch)
    assert len(maps.layers) == len(expected)
    for layer, reference in zip(maps.layers, expected, strict=True):
        weights = layer.storage[0].weights()
        assert weights.shape == reference.shape
        assert float((weights - reference).abs().max()) <= LEAST_ERROR
        assert layer.error is not None
        assert layer.error <= LEAST_ERROR


@pytest.mark.parametrize("name", FAMILIES)
def test_axes_name_the_special_tokens_and_the_readout(name):
    family, model = FAMILIES[name], model_of(name)
    maps = mmattn.attend(model, image=noise())
    axis = maps.layers[0].key_axis
    assert tuple(role for role in axis.roles if role != "content") == family.special
    assert axis.roles == family.special + ("content",) * (axis.rows * axis.cols)
    assert maps.readout == family.readout
    assert adapter.claims(model)
    for layer in maps.layers:
        assert (len(layer.query_axis), len(layer.key_axis)) == layer.weights().shape[1:]
        assert layer.stream == "vision"


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.special])
def test_special_tokens_stand_in_the_models_own_order(name):
    """Moving a learned token moves the key of the token that the axis says it is, at the first layer."""
    model = copy.deepcopy(model_of(name))
    tensor = prepared_tensor(model, read_photo(noise()))
    before = first_keys(model, tensor)
    roles = FAMILIES[name].special
    for attribute, role in (("cls_token", "cls"), ("dist_token", "distillation"), ("reg_token", "register")):
        token = getattr(model, attribute, None)
        if token is None:
            continue
        with torch.no_grad():
            token += torch.linspace(-1, 1, token.shape[-1])  # one direction that no norm undoes
        after = first_keys(model, tensor)
        moved = (after - before).abs().amax(dim=(0, 1, 3)) > 1e-4
        assert torch.nonzero(moved).flatten().tolist() == [i for i, found in enumerate(roles) if found == role]
        before = after


def first_keys(model, tensor):
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(tensor)
    call = recording.calls[0]
    return call.k if call.k is not None else call.weights.transpose(-1, -2)


@pytest.mark.parametrize("name", FAMILIES)
def test_changing_one_cell_of_the_picture_moves_the_token_that_the_axis_names(name):
    family, model = FAMILIES[name], model_of(name)
    width, height = family.size_px
    pixels = noise(width * 6, height * 2 + 37, seed=3)  # far wider than the crop that the model sees
    photo = read_photo(pixels)
    axis = mmattn.attend(model, image=photo).layers[0].key_axis
    chosen = [axis.content[0], axis.content[len(axis.content) // 2 + 1], axis.content[-1]]
    photos = [photo]
    for token in chosen:
        x0, y0, x1, y1 = axis.place(int(token))
        assert axis.token_at(((x0 + x1) / 2, (y0 + y1) / 2)) == token
        margin_x, margin_y = (x1 - x0) * 0.25, (y1 - y0) * 0.25  # the resize's filter reaches over the edge
        painted = pixels.copy()
        painted[round(y0 + margin_y) : round(y1 - margin_y), round(x0 + margin_x) : round(x1 - margin_x)] ^= 255
        photos.append(read_photo(painted))
    before, *after = first_keys(model, prepared_tensor(model, photos))
    for token, keys in zip(chosen, after, strict=True):
        moved = (keys - before).abs().amax(dim=(0, 2))
        if family.mixes:  # a convolutional stem reaches over the edge of a cell: its neighbors move too
            (row, col), (top_row, top_col) = (divmod(int(axis.cells[i]), axis.cols) for i in (token, moved.argmax()))
            assert max(abs(row - top_row), abs(col - top_col)) <= 1
            assert float(moved[token]) >= 0.5 * float(moved.max())
            continue
        assert int(moved.argmax()) == token
        if before.shape[-1] != before.shape[-2]:
            others = np.delete(np.arange(len(axis)), token)
            assert float(moved[others].max()) < 0.05 * float(moved[token])


def test_place_of_a_token_holds_in_a_picture_that_its_camera_turned():
    model = model_of("ViT")
    upright = noise(300, 140, seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    maps = mmattn.attend(model, image=buffer.getvalue())
    assert maps.media[0].size_px == (300, 140)
    assert np.array_equal(maps.media[0].pixels, upright)
    axis = maps.layers[0].key_axis
    token = axis.token_at((150, 70))
    x0, y0, x1, y1 = axis.place(token)
    painted = upright.copy()
    painted[int(y0) + 6 : int(y1) - 6, int(x0) + 6 : int(x1) - 6] ^= 255
    before, after = (first_keys(model, prepared_tensor(model, read_photo(p))) for p in (upright, painted))
    assert int((after - before).abs().amax(dim=(0, 1, 3)).argmax()) == token


def test_dinov2_takes_518_and_the_pictures_own_aspect():
    import timm

    model = timm.create_model("vit_small_patch14_dinov2", depth=1, embed_dim=48, num_heads=3, dynamic_img_size=True)
    model.eval()
    photo = read_photo(noise(640, 427))
    square = mmattn.attend(model, image=photo).layers[0].key_axis
    assert (square.rows, square.cols) == (37, 37)
    whole = mmattn.attend(model, image=photo, options=TimmOptions(size_px=518, keep_aspect=True)).layers[0].key_axis
    assert (whole.rows, whole.cols) == (37, round(37 * 640 / 427))
    assert np.allclose(whole.seen_box(), (0, 0, 640, 427))
    squeezed = mmattn.attend(model, image=photo, options=TimmOptions(size_px=224, crop=False)).layers[0].key_axis
    assert (squeezed.rows, squeezed.cols) == (16, 16)
    assert np.allclose(squeezed.seen_box(), (0, 0, 640, 427))
    with pytest.raises(InputError, match="must be multiples of that: 210 or 224 x 210 or 224"):
        mmattn.attend(model, image=photo, options=TimmOptions(size_px=223))


def test_a_model_of_one_size_refuses_another_and_says_which_it_takes():
    with pytest.raises(InputError, match="takes 96 x 64 px only"):
        mmattn.attend(model_of("ViT"), image=noise(), options=TimmOptions(size_px=224))
    with pytest.raises(InputError, match="takes 96 x 64 px only"):
        mmattn.attend(model_of("ViT"), inputs=torch.zeros(1, 3, 64, 64))


def test_padded_grid_covers_what_was_padded():
    model = vit(dynamic_img_size=True, dynamic_img_pad=True)().eval()
    axis = mmattn.attend(model, inputs=torch.rand(1, 3, 50, 70)).layers[0].key_axis
    assert (axis.rows, axis.cols) == (4, 5)
    assert axis.place(len(axis) - 1) == (64, 48, 80, 64)


def test_a_batch_keeps_one_axis_a_picture_and_shares_equal_ones():
    model = model_of("ViT")
    pictures = [noise(100, 80), noise(300, 90, seed=1)]
    maps = mmattn.attend(model, image=pictures)
    assert [axis.size_px for axis in maps.layers[0].key] == [(100, 80), (300, 90)]
    alone = mmattn.attend(model, image=pictures[1])
    assert torch.allclose(maps.samples[1].layers[1].weights(), alone.layers[1].weights(), atol=1e-6)
    assert maps.samples[1].layers[1].key_axis == alone.layers[1].key_axis
    assert len(mmattn.attend(model, image=[pictures[0]] * 2).layers[0].key) == 1
    mixed = vit(dynamic_img_size=True)().eval()
    with pytest.raises(InputError, match="in 2 sizes"):
        mmattn.attend(mixed, image=pictures, options=TimmOptions(keep_aspect=True))


def test_prepared_tensors_are_taken_as_they_are():
    model, tensor = model_of("ViT"), torch.randn(2, 3, 64, 96)
    prepared = adapter.prepare(model, MediaGiven(inputs=tensor), None, None)
    assert torch.equal(prepared.inputs[0], tensor)
    maps = mmattn.attend(model, inputs=tensor)
    assert maps.media == ()
    assert maps.layers[0].key_axis.place(1) == (0, 0, 16, 16)


def test_prepared_tensors_beside_their_picture_get_its_places():
    model, photo = model_of("ViT"), read_photo(noise(200, 150))
    tensor = prepared_tensor(model, photo)
    with_both = mmattn.attend(model, image=photo, inputs=tensor)
    assert with_both.layers[0].key_axis == mmattn.attend(model, image=photo).layers[0].key_axis
    own_size = mmattn.attend(model, image=noise(96, 64), inputs=torch.randn(1, 3, 64, 96))
    assert own_size.layers[0].key_axis.place(1) == (0, 0, 16, 16)
    with pytest.raises(InputError, match="is not what the transform makes of the picture"):
        mmattn.attend(model, image=photo, inputs=torch.randn(1, 3, 64, 96))
    with pytest.raises(InputError, match="2 samples and image= 1 pictures"):
        mmattn.attend(model, image=photo, inputs=torch.randn(2, 3, 64, 96))


def test_the_users_own_transform_is_inverted():
    from torchvision import transforms

    chain = [transforms.Resize((64, 96)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    photo = read_photo(noise(200, 150))
    maps = mmattn.attend(model_of("ViT"), image=photo, processor=transforms.Compose(chain))
    assert np.allclose(maps.layers[0].key_axis.seen_box(), (0, 0, 200, 150))
    refused = transforms.Compose([transforms.Lambda(lambda image: image), *chain])
    with pytest.raises(InputError, match="Lambda"):
        mmattn.attend(model_of("ViT"), image=photo, processor=refused)
    with pytest.raises(InputError, match="processor= is a str"):
        mmattn.attend(model_of("ViT"), image=photo, processor="center")


def test_a_recording_is_lifted_to_places():
    model, photo = model_of("ViT"), read_photo(noise())
    tensor = prepared_tensor(model, photo)
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(tensor)
    lifted, direct = mmattn.attend(recording, image=photo), mmattn.attend(model, image=photo)
    assert lifted.layers[0].key_axis == direct.layers[0].key_axis
    assert torch.equal(lifted.layers[1].weights(), direct.layers[1].weights())


def test_half_precision_and_patch_dropout():
    model = copy.deepcopy(model_of("ViT")).bfloat16()
    assert mmattn.attend(model, image=noise()).layers[0].storage[0].source.q.dtype == torch.bfloat16
    dropping = vit(patch_drop_rate=0.5)()
    with pytest.raises(ModelError, match=r"drops 50% of its patches.*model.eval\(\)"):
        adapter.prepare(dropping.train(), MediaGiven(image=read_photo(noise())), None, None)
    assert mmattn.attend(dropping.eval(), image=noise()).layers[0].key_axis.rows == 4


def test_tokens_that_no_axis_explains_are_refused():
    model, photo = model_of("ViT"), read_photo(noise())
    prepared = adapter.prepare(model, MediaGiven(image=photo), None, None)
    with torch.no_grad(), mmattn.capture(model) as recording:
        model.blocks(torch.randn(1, 19, 48))
    with pytest.raises(ModelError, match=r"19 tokens. Expected are 24 patches \(4 x 6\)"):
        adapter.layers(recording.calls, prepared)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": None}, "no picture"),
        ({"image": [], "inputs": None}, "no picture"),
        ({"image": "cat.jpg"}, "holds str"),
        ({"inputs": torch.zeros(3, 64, 96)}, r"\[3, 64, 96\]"),
        ({"inputs": torch.zeros(1, 3, 64, 96, dtype=torch.uint8)}, "uint8"),
        ({"image": read_photo(noise()), "text": "a cat"}, "got text"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        adapter.prepare(model_of("ViT"), MediaGiven(**given), None, None)


def test_wrong_options_and_channels_are_refused():
    media = MediaGiven(image=read_photo(noise()))
    with pytest.raises(InputError, match="options= is a dict"):
        adapter.prepare(model_of("ViT"), media, None, {"size_px": 3})
    with pytest.raises(InputError, match="is no size"):
        TimmOptions(size_px=(3, 4), keep_aspect=True)
    with pytest.raises(InputError, match="1 channels"):
        adapter.prepare(vit(in_chans=1)().eval(), media, None, None)


def test_class_scores():
    model, photo = model_of("ViT"), read_photo(noise())
    logits = adapter.prepare(model, MediaGiven(image=photo), None, None).run().detach()
    assert float(adapter.score(logits, 3)) == float(logits[0, 3])
    assert float(adapter.score(logits, None)) == float(logits.max())
    assert float(adapter.score(torch.cat([logits, -logits]), None)) == pytest.approx(float(logits.max() - logits.min()))
    for wrong in (5, -6, True, "cat"):
        with pytest.raises(InputError, match="this model has 5 classes"):
            adapter.score(logits, wrong)
    headless = vit(num_classes=0)().eval()
    output = adapter.prepare(headless, MediaGiven(image=photo), None, None).run()
    assert isinstance(output, Features)
    with pytest.raises(ModelError, match="features, not class logits"):
        adapter.score(output, 3)


def test_prepare_does_not_keep_the_model_alive():
    model = vit()().eval()
    prepared = adapter.prepare(model, MediaGiven(image=read_photo(noise())), None, None)
    prepared.run()
    del model
    with pytest.raises(GoneError, match="was deleted"):
        prepared.run()


def test_the_adapter_takes_its_seat_and_claims_no_others():
    import timm

    assert isinstance(adapter, Adapter)
    others = {
        "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
        "cait_xxs24_224": {"embed_dim": 48, "depth": 1},
        "resnet10t": {},
    }
    for name, options in others.items():
        assert not adapter.claims(timm.create_model(name, **options))


def test_the_uniform_baseline_is_known_with_and_without_fused_attention() -> None:
    for fused in (True, False):
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1).eval()
        model.blocks[0].attn.fused_attn = fused
        found = mmattn.look(mmattn.attend(model, inputs=torch.rand(1, 3, 64, 64)))
        assert found.uniform is not None
        assert torch.allclose(found.uniform, torch.full((1, 17), 1 / 17))

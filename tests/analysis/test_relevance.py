"""Readings toward a target of real models, against the eager way: all maps kept, autograd, whole matrices."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from retained import chefer_in_full, close, raised, retained, rollout_in_full
from small_vits import model_of
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

import mmattn
from mmattn.analysis import relevance
from mmattn.errors import GoneError, InputError, ModelError, NotFoundError

METHODS = ("chefer", "grad_rollout", "attention_x_gradient")


def picture(samples=1, *, height=64, width=96):
    return torch.randn(samples, 3, height, width, generator=torch.Generator().manual_seed(3))


def asking(name, tokens):
    """The row over tokens that asks in the reference."""
    row = torch.zeros(tokens, dtype=torch.float64)
    if "without class token" in name:
        row[:] = 1 / tokens
    else:
        row[0] = 1
    return row


@pytest.mark.parametrize(
    "name", ["ViT", "ViT with registers", "DeiT, distilled", "ViT with qk-norm", "ViT without class token"]
)
def test_plain_transformers_equal_the_eager_way(name):
    model, x = model_of(name), picture()
    maps = mmattn.attend(model, inputs=x)
    pairs = retained(model, x, [2])
    products = [raised(a, g)[0] for a, g in pairs]
    row = asking(name, products[0].shape[-1])
    assert close(mmattn.relevance(maps, method="chefer", target=2).values[0], row @ chefer_in_full(products))
    rolled = mmattn.relevance(maps, method="grad_rollout", target=2)
    assert close(rolled.values[0], row @ rollout_in_full(products))
    summed = sum(row @ (a * g)[0].mean(0) for a, g in pairs)
    assert close(mmattn.relevance(maps, method="attention_x_gradient", target=2).values[0], summed)
    last = row @ (pairs[-1][0] * pairs[-1][1])[0].mean(0)
    if float(last.abs().max()):
        assert close(mmattn.relevance(maps, method="attention_x_gradient", target=2, layer=-1).values[0], last)


def test_registers_with_a_linear_head_of_ones_own_equal_the_eager_way():
    torch.manual_seed(1)
    model = copy.deepcopy(model_of("ViT with registers"))
    model.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 7))
    x = picture()
    found = mmattn.relevance(mmattn.attend(model, inputs=x), target=6)
    products = [raised(a, g)[0] for a, g in retained(model, x, [6])]
    assert close(found.values[0], chefer_in_full(products)[0])
    assert found.axis.roles[:4] == ("cls", "register", "register", "register")


@pytest.mark.parametrize("name", ["SigLIP", "SigLIP with class token"])
def test_an_attention_pool_asks_on_top(name):
    model, x = model_of(name), picture()
    maps = mmattn.attend(model, inputs=x)
    *body, (a, g) = retained(model, x, [1])
    products = [raised(*pair)[0] for pair in body]
    read = products[0].shape[-1] - a.shape[-1]  # a pool may leave the class token out
    pool, a, g = (torch.nn.functional.pad(one, (read, 0)) for one in (raised(a, g)[0], a, g))
    expected = pool @ (chefer_in_full(products) + torch.eye(pool.shape[-1], dtype=torch.float64))
    found = mmattn.relevance(maps, target=1)
    assert close(found.values[0], expected[0])
    assert found.labels == ("attention pool",)
    rolled = mmattn.relevance(maps, method="grad_rollout", target=1)
    assert close(rolled.values[0], (pool / pool.sum() @ rollout_in_full(products))[0])
    product = mmattn.relevance(maps, method="attention_x_gradient", target=1)
    expected = (a * g)[0].mean(0)[0]
    assert close(product.values[0], expected[read:])
    assert not expected[:read].any()


def test_a_batch_gives_one_result_each_with_a_target_each():
    model, x = model_of("ViT"), picture(3)
    maps = mmattn.attend(model, inputs=x)
    for method in METHODS:
        together = mmattn.relevance(maps, method=method, target=[0, 4, None])
        assert [one.target for one in together[:2]] == ["class 0", "class 4"]
        for index, found in enumerate(together):
            alone = mmattn.attend(model, inputs=x[index : index + 1])
            expected = mmattn.relevance(alone, method=method, target=[0, 4, None][index])
            assert close(found.values, expected.values.double())
            assert found.target == expected.target


def test_a_target_changes_the_answer_and_the_default_is_the_top_class():
    model, x = model_of("ViT"), picture()
    maps = mmattn.attend(model, inputs=x)
    with torch.no_grad():
        top = int(model(x).argmax())
    found = mmattn.relevance(maps)
    assert found.target == f"class {top}"
    other = mmattn.relevance(maps, target=(top + 1) % 5)
    assert not torch.allclose(found.values, other.values, rtol=1e-2)
    assert torch.equal(mmattn.relevance(maps, target=top - 5).values, found.values)  # counted from the end


def classifier(implementation):
    """A small ViT of transformers whose config names its classes."""
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        id2label=dict(enumerate(("cat", "dog", "fig"))),
    )
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return ViTForImageClassification(config).eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_and_a_softmax_written_out_read_alike(method):
    x, found = picture(height=64, width=64), []
    for implementation in ("sdpa", "eager"):
        model = classifier(implementation)
        found.append(mmattn.relevance(mmattn.attend(model, inputs=x), method=method, target="fig"))
    assert close(found[0].values, found[1].values.double())
    assert found[0].target == found[1].target == "'fig' (2)"  # as the model's own config names it


@pytest.mark.parametrize("change", ["autocast", "bfloat16", "compiled", "lifted"])
def test_models_are_read_however_they_run(change):
    model, x = classifier("sdpa"), picture(height=64, width=64)
    expected = mmattn.relevance(mmattn.attend(model, inputs=x), target=1).values[0]
    if change == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = mmattn.relevance(mmattn.attend(model, inputs=x), target=1)
    elif change == "lifted":
        with mmattn.capture(model) as recording:
            model(pixel_values=x)
        found = mmattn.relevance(mmattn.attend(recording, inputs=x), target=1)
    else:
        other = model.bfloat16() if change == "bfloat16" else torch.compile(model)
        found = mmattn.relevance(mmattn.attend(other, inputs=x), target=1)
    assert float(torch.corrcoef(torch.stack([found.values[0], expected]))[0, 1]) > 0.999


def test_a_text_classifier_is_read_toward_its_classes():
    config = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, num_labels=3)
    maps = mmattn.attend(BertForSequenceClassification(config).eval(), inputs={"input_ids": torch.tensor([[1, 2, 3]])})
    assert mmattn.relevance(maps, target=1).values.shape == (1, 3)
    with pytest.raises(InputError, match="target 7 names no logit"):
        mmattn.relevance(maps, target=7)


def test_units_say_what_values_are():
    maps = mmattn.attend(model_of("ViT"), inputs=picture())
    found = {method: mmattn.relevance(maps, method=method, target=2) for method in METHODS}
    assert found["chefer"].unit == "relevance"
    assert float(found["chefer"].values.min()) >= 0
    share = found["grad_rollout"]
    assert share.unit == "share"
    assert float(share.values.sum() + share.outside.sum()) == pytest.approx(1, abs=1e-5)
    signed = found["attention_x_gradient"]
    assert signed.unit == "signed relevance"
    assert float(signed.values.min()) < 0 < float(signed.values.max())


def test_a_patch_may_ask_and_start_layers_leave_out_the_lower_ones():
    model, x = model_of("ViT"), picture()
    maps = mmattn.attend(model, inputs=x)
    products = [raised(a, g)[0] for a, g in retained(model, x, [2])]
    token = 1 + 2 * 6 + 3  # row 2, column 3 of a grid of six columns
    found = mmattn.relevance(maps, target=2, query=(3 * 16 + 8, 2 * 16 + 8), start_layer=0)
    assert close(found.values[0], chefer_in_full(products)[token])
    assert found.query_tokens == ((token,),)
    upper = mmattn.relevance(maps, target=2, start_layer=1)
    assert close(upper.values[0], products[1][0])


def test_the_model_stays_as_it_was():
    model, x = copy.deepcopy(model_of("ViT")), picture()
    maps = mmattn.attend(model, inputs=x)
    with torch.no_grad():
        before, hooks = model(x), sum(len(module._forward_pre_hooks) for module in model.modules())
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        found = mmattn.relevance(maps)  # though gradients are off here
        assert torch.equal(model(x), before)
    assert not found.values.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks
    with torch.inference_mode():
        assert torch.equal(mmattn.relevance(maps).values, found.values)
    model.requires_grad_(False)
    assert close(mmattn.relevance(maps).values, found.values.double())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_that_were_there_stay():
    model, x = copy.deepcopy(model_of("ViT")), picture()
    model(x).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    mmattn.relevance(mmattn.attend(model, inputs=x))
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())


def named(model, labels):
    return mmattn.attend(model, inputs=picture()).named(labels=labels)


def test_classes_are_found_by_their_names():
    labels = ("goldfish", "tabby, tabby cat", "crane", "crane, machine", "lynx, catamount")
    maps = named(model_of("ViT"), labels)
    assert mmattn.relevance(maps, target="Tabby Cat").target == "'tabby, tabby cat' (1)"
    assert mmattn.relevance(maps, target="crane").target == "'crane' (2)"  # the one that is called so and no more
    with pytest.raises(NotFoundError, match='no class "goldfsh".*The nearest names are: goldfish.*an index, 0 to 4'):
        mmattn.relevance(maps, target="goldfsh")
    twice = named(model_of("ViT"), ("a, x", "b, x", "c", "d", "e"))
    with pytest.raises(NotFoundError, match="2 classes are called \"x\": 'a, x' \\(0\\), 'b, x' \\(1\\)"):
        mmattn.relevance(twice, target="x")


@pytest.mark.parametrize(
    ("options", "error", "phrase"),
    [
        ({"target": 5}, NotFoundError, "no class 5: this model has 5 classes, 0 to 4"),
        ({"target": -6}, NotFoundError, "no class -6"),
        ({"target": "cat"}, NotFoundError, "names of this model's 5 classes are not known"),
        ({"target": 1.5}, InputError, "1.5 is no class"),
        ({"target": True}, InputError, "True is no class"),
        ({"target": [1, 2]}, InputError, "2 targets for 1 sample"),
        ({"method": "chefr"}, NotFoundError, 'no method "chefr".*chefer'),
        ({"method": "chefer", "layer": 1}, InputError, "do not go together"),
        ({"method": "attention_x_gradient", "start_layer": 1}, InputError, "do not go together"),
        ({"start_layer": 9}, NotFoundError, "no layer 9"),
        ({"query": "nobody"}, NotFoundError, "nobody"),
    ],
)
def test_what_cannot_be_asked(options, error, phrase):
    maps = mmattn.attend(model_of("ViT"), inputs=picture())
    with pytest.raises(error, match=phrase):
        mmattn.relevance(maps, **options)


def test_models_and_maps_without_gradients(tmp_path):
    maps = mmattn.attend(model_of("ViT"), inputs=picture(2))
    maps.save(tmp_path / "maps.safetensors")
    with pytest.raises(GoneError, match="cannot run again: a loaded file"):
        mmattn.relevance(mmattn.load(tmp_path / "maps.safetensors"))
    with pytest.raises(GoneError, match="one sample of a batch.*Pass the maps of the batch"):
        mmattn.relevance(maps.samples[1])
    model = copy.deepcopy(model_of("ViT"))
    lost = mmattn.attend(model, inputs=picture())
    del model
    with pytest.raises(GoneError, match="The model of these maps is gone"):
        mmattn.relevance(lost)
    headless = copy.deepcopy(model_of("ViT"))
    headless.reset_classifier(0)
    with pytest.raises(ModelError, match="gives features, not class logits"):
        mmattn.relevance(mmattn.attend(headless, inputs=picture()))
    with pytest.raises(ModelError, match="put together of 2 softmaxes"):
        mmattn.relevance(mmattn.attend(model_of("differential attention"), inputs=picture()))
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model_of("ViT")), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match="is quantized. A gradient needs"):
        mmattn.relevance(mmattn.attend(quantized, inputs=picture()))


def test_tensors_of_inference_mode_have_no_gradient():
    with torch.inference_mode():
        inside = copy.deepcopy(model_of("ViT"))
    maps = mmattn.attend(inside, inputs=picture())
    with pytest.raises(ModelError, match="made in torch.inference_mode.*attend again"):
        mmattn.relevance(maps)
    with torch.inference_mode():
        maps = mmattn.attend(model_of("ViT"), inputs=picture() * 1)
    with pytest.raises(ModelError, match="made in torch.inference_mode"):
        mmattn.relevance(maps)


def test_a_graph_that_is_cut_on_the_way_is_refused_not_read_in_part():
    model = copy.deepcopy(model_of("ViT"))
    model.blocks[1].register_forward_pre_hook(lambda module, args: tuple(one.detach() for one in args))
    maps = mmattn.attend(model, inputs=picture())
    with pytest.raises(ModelError, match=r"No gradient reaches blocks\.0\.attn"):
        mmattn.relevance(maps)


def test_a_model_in_training_mode_is_said_to_be_random():
    model = copy.deepcopy(model_of("ViT")).train()
    with pytest.warns(UserWarning, match="training mode"):
        maps = mmattn.attend(model, inputs=picture())
    with pytest.warns(UserWarning, match="another random pass"):
        mmattn.relevance(maps)


class Reentrant(nn.Module):
    """A block under the older kind of checkpointing, whose forward pass has no graph."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_is_read_where_it_keeps_a_graph_and_refused_where_it_does_not():
    model = copy.deepcopy(model_of("ViT"))
    maps = mmattn.attend(model, inputs=picture())
    expected = mmattn.relevance(maps, target=1)
    model.set_grad_checkpointing(True)
    assert close(mmattn.relevance(maps, target=1).values, expected.values.double())
    model.set_grad_checkpointing(False)
    model.blocks = nn.Sequential(*map(Reentrant, model.blocks))
    with pytest.raises(ModelError, match="No gradient reaches|checkpoints its activations"):
        mmattn.relevance(mmattn.attend(model, inputs=picture()))


def test_the_caption_names_the_target():
    maps = named(model_of("ViT"), ("goldfish", "tabby cat", "crane", "lynx", "fig"))
    (found,) = relevance(maps, target="tabby cat")
    drawing = mmattn.overlay(found, on=torch.rand(64, 96, 3).numpy())
    assert "toward 'tabby cat' (1)" in repr(found)
    said = drawing.caption
    assert "chefer toward 'tabby cat' (1)" in said
    assert "query: class token" in said

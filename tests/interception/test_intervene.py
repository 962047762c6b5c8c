"""Edits of attention weights, against the computation written out."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from mmattn import errors
from mmattn.interception import Call, capture, intervene, weights_of


class Attention(nn.Module):
    """Fused or written out; grouped where there are fewer key heads."""

    def __init__(self, *, fused: bool = True, key_heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.key_heads, self.fused = 4, key_heads, fused
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 8 * key_heads), nn.Linear(32, 8 * key_heads)
        self.change = None
        self.dropout = 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            out = F.scaled_dot_product_attention(
                q, k, v, enable_gqa=self.key_heads < 4, dropout_p=self.dropout if self.training else 0.0
            )
        else:
            k, v = (part.repeat_interleave(4 // self.key_heads, 1) for part in (k, v))
            weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
            weights = weights if self.change is None else self.change(weights)
            out = F.dropout(weights, self.dropout, self.training) @ v
        return out.transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(**options)}) for _ in range(3))
        self.recompute: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            step = block["attn"]
            x = x + (step(x) if self.recompute is None else checkpoint(step, x, use_reentrant=self.recompute))
        return x


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def uniform(weights: Tensor) -> Tensor:
    return torch.full_like(weights, 1 / weights.shape[-1])


def permuted(weights: Tensor) -> Tensor:
    return weights[..., torch.tensor([3, 0, 4, 1, 2])]


def headless(weights: Tensor) -> Tensor:
    return weights * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None, None]


def moved(weights: Tensor) -> Tensor:
    changed = weights.clone()
    changed[0, 2, 1, 3] += 0.125
    return changed


EDITS = {"uniform": uniform, "permuted": permuted, "head set to zero": headless, "one weight moved": moved}


def written_out(change, *, key_heads: int = 4, only: int | None = None) -> Model:
    model = Model(fused=False, key_heads=key_heads)
    for number, block in enumerate(model.blocks):
        if only in (None, number):
            block["attn"].change = change
    return model.eval()


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", EDITS)
def test_output_equals_the_written_out_computation(name: str, fused: bool, key_heads: int) -> None:
    change, x = EDITS[name], draw(2, 5, 32)
    model, twin = Model(fused=fused, key_heads=key_heads).eval(), written_out(change, key_heads=key_heads)
    plain = model(x)
    with intervene(model, lambda weights, call: change(weights)):
        edited = model(x)
    torch.testing.assert_close(edited, twin(x), atol=1e-5, rtol=0)
    assert (edited - plain).abs().max() > 1e-4
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_flow_through_edited_weights(fused: bool) -> None:
    change = EDITS["head set to zero"]
    model, twin = Model(fused=fused).eval(), written_out(change)
    x, y = draw(2, 5, 32).requires_grad_(), draw(2, 5, 32).requires_grad_()
    with intervene(model, lambda weights, call: change(weights)):
        model(x).square().sum().backward()
    twin(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_weights_themselves_equals_the_written_out_one() -> None:
    kept: dict[str, list[Tensor]] = {"mine": [], "twin": []}

    def keep(name: str):
        def change(weights: Tensor, call: Call | None = None) -> Tensor:
            weights.retain_grad()
            kept[name].append(weights)
            return weights

        return change

    model, twin, x = Model().eval(), written_out(keep("twin")), draw(2, 5, 32)
    with intervene(model, keep("mine")):
        model(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert len(kept["mine"]) == 3
    for mine, other in zip(kept["mine"], kept["twin"], strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_none_leaves_the_fused_kernel_bit_for_bit() -> None:
    model, x = Model().eval(), draw(2, 5, 32)
    plain, seen = model(x), []
    with intervene(model, lambda weights, call: seen.append(weights.shape)):
        assert torch.equal(model(x), plain)
    assert seen == [torch.Size([2, 4, 5, 5])] * 3


def test_none_after_writing_into_the_weights_changes_nothing() -> None:
    model, x, seen = Model(fused=False).eval(), draw(2, 5, 32), []
    with torch.no_grad():
        plain = model(x)
        with (
            intervene(model, lambda weights, call: weights * 2),
            intervene(model, lambda weights, call: seen.append(weights.zero_())),
        ):
            doubled = model(x)
        assert torch.equal(doubled, written_out(lambda weights: weights * 2)(x))
        with intervene(model, lambda weights, call: seen.append(weights.zero_())):
            assert torch.equal(model(x), plain)
    assert len(seen) == 6


@pytest.mark.parametrize(
    "layers",
    ["blocks.1.attn", ["blocks.1.attn"], "blocks.1", "blocks.?.attn", lambda path: path == "blocks.1.attn"],
    ids=["path", "list", "the block that holds it", "pattern", "predicate"],
)
def test_layers_limit_the_edit(layers) -> None:
    model, x, paths = Model().eval(), draw(2, 5, 32), []

    def edit(weights: Tensor, call: Call) -> Tensor | None:
        paths.append(call.module)
        return uniform(weights)

    with intervene(model, edit, layers=layers):
        edited = model(x)
    if layers == "blocks.?.attn":
        assert paths == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]
    else:
        assert paths == ["blocks.1.attn"]
        torch.testing.assert_close(edited, written_out(uniform, only=1)(x), atol=1e-5, rtol=0)


def test_layers_that_match_nothing_list_those_there_are() -> None:
    model, x = Model().eval(), draw(2, 5, 32)
    with pytest.raises(errors.NotFoundError, match=r"'blocks\.7\.attn'.*blocks\.0\.attn"):
        intervene(model, lambda weights, call: None, layers="blocks.7.attn")
    with (
        pytest.raises(errors.NotFoundError, match=r"the predicate.*blocks\.0\.attn"),
        intervene(model, lambda weights, call: None, layers=lambda path: False),
    ):
        model(x)
    with (
        pytest.raises(errors.NotFoundError, match=r"blocks\.0\.attn\.q.*blocks\.0\.attn"),
        intervene(model, lambda weights, call: None, layers="blocks.0.attn.q"),
    ):
        model(x)


def test_a_cait_head_set_to_zero_after_mixing_is_dead() -> None:
    torch.manual_seed(0)
    model = timm.create_model("cait_xxs24_224", depth=1, embed_dim=48, num_heads=4, img_size=64, num_classes=3).eval()
    attention, x = model.blocks[0].attn, torch.randn(1, 16, 48)
    changed = []

    def edit(weights: Tensor, call: Call) -> Tensor:
        changed.append(weights.shape)
        return weights * torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None, None]

    plain = attention(x)
    with intervene(attention, edit):
        out = attention(x)
    assert changed == [torch.Size([1, 4, 16, 16])]
    q, k, v = attention.qkv(x).reshape(1, 16, 3, 4, 12).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhqd,bhkd->bqkh", q * attention.scale, k)
    mixed = attention.proj_w(attention.proj_l(scores).softmax(2)).permute(0, 3, 1, 2)
    mixed = torch.cat([torch.zeros_like(mixed[:, :1]), mixed[:, 1:]], 1)
    expected = attention.proj((mixed @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert (out - plain).abs().max() > 1e-4


@pytest.mark.parametrize("form", ["einsum", "value left", "bmm", "queryless", "product"])
def test_edits_of_hand_written_forms(form: str) -> None:
    class HandAttention(nn.Module):
        change = staticmethod(lambda weights: weights)

        def forward(self, q: Tensor, v: Tensor) -> Tensor:
            if form == "einsum":
                return torch.einsum("bqhk,bkhd->bqhd", self.change((q @ q.mT).softmax(-1)), v)
            if form == "product":
                return (self.change((q @ q.mT).softmax(-1))[..., None] * v[:, :, None]).sum(-2)
            if form == "value left":
                return v.mT @ self.change((q @ q.mT).softmax(-1)).transpose(-2, -1)
            if form == "bmm":
                return torch.bmm(self.change((q @ q.mT).softmax(-1)).flatten(0, 1), v.flatten(0, 1))
            return torch.einsum("bk,bkd->bd", self.change(q[0, 0].softmax(-1)), v[0, :, :5])

    model, twin = HandAttention(), HandAttention()
    twin.change = lambda weights: weights.flip(-1)
    q, v = draw(2, 5, 5, 5), draw(2, 5, 5, 8)
    with intervene(model, lambda weights, call: weights.flip(-1)):
        edited = model(q, v)
    torch.testing.assert_close(edited, twin(q, v), atol=1e-6, rtol=0)
    assert (edited - model(q, v)).abs().max() > 1e-3


@pytest.mark.parametrize("need_weights", [True, False])
def test_edits_of_torch_multi_head_attention(need_weights: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(16, 2, batch_first=True).eval(), draw(2, 5, 16)
    with intervene(layer, lambda weights, call: uniform(weights)):
        out, _ = layer(x, x, x, need_weights=need_weights)
    value = F.linear(x, layer.in_proj_weight[32:], layer.in_proj_bias[32:])
    expected = layer.out_proj(value.mean(1, keepdim=True).expand(-1, 5, -1))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_edits_of_flex_attention_have_gradients() -> None:
    class Flex(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))

    q = draw(1, 2, 16, 8)
    model = Flex()
    with intervene(model, lambda weights, call: uniform(weights)):
        out = model(q)
    torch.testing.assert_close(out, q.mean(-2, keepdim=True).expand_as(q), atol=1e-5, rtol=0)
    with capture(model) as recording, intervene(model, lambda weights, call: weights * 0.5):
        half = model(q)
    torch.testing.assert_close(half, model(q) / 2, atol=1e-5, rtol=0)
    assert recording.calls[0].error < 1e-5


def test_edits_of_jagged_samples() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    samples = [draw(3, 16), draw(6, 16)]
    x = torch.nested.nested_tensor(samples, layout=torch.jagged).unflatten(-1, (2, 8)).transpose(1, 2)
    with intervene(model := Bare(), lambda weights, call: weights * 2):
        out = model(x)
    for twice, once in zip(out.unbind(), model(x).unbind(), strict=True):
        torch.testing.assert_close(twice, once * 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_edited_weights_are_dropped_out_as_the_call_would(fused: bool) -> None:
    model, twin, x = Model(fused=fused).train(), written_out(uniform).train(), draw(2, 5, 32)
    for block in (*model.blocks, *twin.blocks):
        block["attn"].dropout = 0.4
    torch.manual_seed(3)
    expected = twin(x)
    torch.manual_seed(3)
    with intervene(model, lambda weights, call: uniform(weights)), capture(model) as recording:
        edited = model(x)
    if fused:  # the written-out form draws once more for the mask that the edit replaces
        torch.testing.assert_close(edited, expected, atol=1e-5, rtol=0)
    assert all(call.dropout == pytest.approx(0.4) for call in recording.calls)
    assert (edited - written_out(uniform)(x)).abs().max() > 1e-3


@pytest.mark.parametrize("inside", [True, False])
def test_a_capture_sees_the_edited_weights(inside: bool) -> None:
    model, x = Model().eval(), draw(2, 5, 32)
    edit = intervene(model, lambda weights, call: uniform(weights) if call.module == "blocks.1.attn" else None)
    if inside:
        with edit, capture(model) as recording:
            model(x)
    else:
        with capture(model) as recording, edit:
            model(x)
    torch.testing.assert_close(weights_of(recording.calls[1]), torch.full((2, 4, 5, 5), 0.2))
    assert recording.calls[1].q is None
    assert recording.calls[0].q is not None
    assert all(call.error < 1e-5 for call in recording.calls)


@pytest.mark.parametrize("fused", [True, False])
def test_edits_in_another_precision_are_cast_for_the_value(fused: bool) -> None:
    model, x = Model(fused=fused).eval(), draw(2, 5, 32)
    with intervene(model, lambda weights, call: uniform(weights).double()), capture(model) as recording:
        edited = model(x)
    torch.testing.assert_close(edited, written_out(uniform)(x), atol=1e-5, rtol=0)
    assert recording.calls[0].error < 1e-5


def test_edits_apply_in_the_order_in_which_they_were_opened() -> None:
    model, x, seen = Model().eval(), draw(2, 5, 32), []

    def last(weights: Tensor, call: Call) -> Tensor:
        seen.append(weights)
        return weights

    with intervene(model, lambda weights, call: weights * 0), intervene(model, last):
        out = model(x)
    assert all(weights.abs().max() == 0 for weights in seen)
    assert torch.equal(out, x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_edits_with_gradients_are_refused(reentrant: bool) -> None:
    model, x = Model().eval(), draw(2, 5, 32).requires_grad_()
    model.recompute = reentrant
    with pytest.raises(errors.ModelError, match=r"activation checkpointing.*Turn checkpointing off"):  # noqa: SIM117
        with intervene(model, lambda weights, call: uniform(weights)):
            model(x)
    with torch.no_grad(), intervene(model, lambda weights, call: uniform(weights)):
        edited = model(x.detach())
    torch.testing.assert_close(edited, written_out(uniform)(x).detach(), atol=1e-5, rtol=0)


def test_wrong_shape_is_refused() -> None:
    model = Model().eval()
    with (
        pytest.raises(errors.InputError, match=r"\[2, 4, 5\] for weights of shape \[2, 4, 5, 5\]"),
        intervene(model, lambda weights, call: weights[..., 0]),
    ):
        model(draw(2, 5, 32))


def test_masks_and_causality_reach_the_edit() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5)

    x, seen = draw(1, 2, 5, 8), []
    with intervene(model := Causal(), lambda weights, call: seen.append((weights, call.causal, call.scale))):
        model(x)
    weights, causal, scale = seen[0]
    assert (causal, scale) == (True, 0.5)
    expected = (x @ x.mT * 0.5).masked_fill(torch.ones(5, 5).triu(1) > 0, -math.inf).softmax(-1)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_model_without_attention_is_refused() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(errors.NoAttentionError, match="No attention was seen in Linear"):  # noqa: SIM117
        with intervene(model, lambda weights, call: weights):
            model(draw(1, 3))
